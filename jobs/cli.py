"""The `genlip` command. Imports nothing heavy: each verb loads what it needs when it runs."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.leaving import leave

if TYPE_CHECKING:
    from jobs.recipe import Recipe

app = typer.Typer(
    name="genlip",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From URL tables to a vision transformer that speaks.",
    epilog="Example: genlip plan jobs/recipes/demo.yaml; the README lists the commands in the order of a run.",
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as genlip train names it.")]
RunOrRecipe = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Replace a value of the recipe; may be given several times."),
]


@app.command()
def plan(
    recipe: RecipePath,
    scale: Annotated[
        str, typer.Option(metavar="ROWS", help="Plan machines, hours, storage, requests, money for so many: 8B, 800M.")
    ] = "",
    set_: Overrides = None,
) -> None:
    """Print every derived number; start nothing."""
    from jobs.plan import plan_run, plan_scale
    from jobs.recipe import load_recipe

    loaded = load_recipe(recipe, set_)
    raise typer.Exit(plan_scale(loaded, scale) if scale else plan_run(loaded))


@app.command()
def bench(
    recipe: RecipePath,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="ingest, annotate, select, shards, store or train; repeatable."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Your own images/ and metadata.parquet (file, caption).")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Measure how fast this machine does each stage."""
    from jobs.capacity.bench import bench as run
    from jobs.recipe import load_recipe

    raise typer.Exit(run(load_recipe(recipe, set_), only or [], corpus))


@app.command()
def ingest(
    recipe: RecipePath,
    retry: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Ask again for rows that failed so: timeout, http_5xx, transient, all."),
    ] = None,
    part: Annotated[str, typer.Option(metavar="I/N", help="In a job array: only these units; first: plan.")] = "",
    set_: Overrides = None,
) -> None:
    """Download a URL table, then curate; again: resume."""
    from jobs.ingest import ingest as run
    from jobs.recipe import load_recipe

    loaded = load_recipe(recipe, set_)
    raise typer.Exit(_recorded("ingest", loaded, lambda: run(loaded, retry or [], part), part))


@app.command()
def annotate(recipe: RecipePath, set_: Overrides = None) -> None:
    """Compute the columns that curation asks for."""
    from jobs.curate import annotate as run
    from jobs.recipe import load_recipe

    loaded = load_recipe(recipe, set_)
    raise typer.Exit(_recorded("annotate", loaded, lambda: run(loaded)))


@app.command()
def select(
    recipe: RecipePath,
    explain: Annotated[str | None, typer.Option(metavar="KEY", help="Say why this sample is in or out.")] = None,
    compare: Annotated[str | None, typer.Option(metavar="NAME", help="Say what changed since selection NAME.")] = None,
    set_: Overrides = None,
) -> None:
    """Choose the training samples by the recipe's rules."""
    from jobs.curate import select_samples
    from jobs.recipe import load_recipe

    loaded = load_recipe(recipe, set_)
    if explain or compare:  # questions
        raise typer.Exit(select_samples(loaded, explain, compare))
    raise typer.Exit(_recorded("select", loaded, lambda: select_samples(loaded, None, None)))


@app.command()
def curate(recipe: RecipePath, set_: Overrides = None) -> None:
    """Annotate, select, shard; write the report."""
    from jobs.curate import curate as run
    from jobs.recipe import load_recipe

    loaded = load_recipe(recipe, set_)
    raise typer.Exit(_recorded("curate", loaded, lambda: run(loaded)))


@app.command()
def inspect(store: Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of a store.")]) -> None:
    """Show what a store holds."""
    from jobs.curation.inspect import inspect_store

    raise typer.Exit(inspect_store(store))


@app.command()
def index(
    files: Annotated[
        str, typer.Argument(metavar="FILES", help="Tars: a folder, a glob in quotes, or a URL. Tables: *.parquet.")
    ],
    store: Annotated[str, typer.Option(help="The store that gets the index.")],
    name: Annotated[str, typer.Option(help="Of the dataset: shards/NAME.")],
    caption: Annotated[
        str, typer.Option(help="Where captions stand: txt or json:FIELD; in tables the column.")
    ] = "txt",
    image: Annotated[str, typer.Option(help="In tables: the column of images.")] = "image",
) -> None:
    """Make a dataset of others' tars or tables where they lie."""
    from jobs.index import index_files

    raise typer.Exit(index_files(files, store, name, caption, image))


@app.command()
def tokenizer(recipe: RecipePath, set_: Overrides = None) -> None:
    """Train or take a tokenizer; count caption tokens."""
    from jobs.recipe import load_recipe
    from jobs.tokenizer import make_tokenizer

    loaded = load_recipe(recipe, set_)
    raise typer.Exit(_recorded("tokenizer", loaded, lambda: make_tokenizer(loaded)))


@app.command()
def train(
    recipe: RecipePath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Take two steps at full size and forget them.")] = False,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Resume though this key has changed; repeatable.")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Train or resume, under Ray Train or torchrun."""
    from jobs.recipe import load_recipe

    if dry_run:
        from jobs.trials import dry_run as try_out

        raise typer.Exit(try_out(load_recipe(recipe, set_)))
    from jobs.training import train as run

    loaded = load_recipe(recipe, set_)
    raise typer.Exit(_recorded("train", loaded, lambda: run(loaded, allow or [])))


@app.command()
def overfit(
    recipe: RecipePath,
    steps: Annotated[int, typer.Option(min=2, help="Updates on the same batch.")] = 100,
    set_: Overrides = None,
) -> None:
    """Train on one batch again and again."""
    from jobs.recipe import load_recipe
    from jobs.trials import overfit as run

    raise typer.Exit(run(load_recipe(recipe, set_), steps))


@app.command()
def audit(run: RunDir) -> None:
    """Prove that a run read exactly its plan."""
    from jobs.audit import audit as check

    raise typer.Exit(check(run))


@app.command("verify-resume")
def verify_resume(run: RunDir, steps: Annotated[int, typer.Option(help="Steps on each side.")] = 20) -> None:
    """Compare the steps around the newest checkpoint."""
    from jobs.audit import verify

    raise typer.Exit(verify(run, steps))


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, one of its checkpoints, or a model folder.")],
    data: Annotated[str, typer.Option(help="Measure on this instead of the run's held-out shards.")] = "",
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The tokenizer of a model folder that has none.")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Measure a model on held-out images, beside chance."""
    from jobs.evaluation import evaluate_folder

    raise typer.Exit(_recorded("eval", run, lambda: evaluate_folder(run, data, tokenizer, set_ or [])))


@app.command()
def compare(recipe: RecipePath, set_: Overrides = None) -> None:
    """Train and measure every objective; one report."""
    from jobs.compare.command import compare as run
    from jobs.recipe import load_recipe

    loaded = load_recipe(recipe, set_)
    raise typer.Exit(_recorded("compare", loaded, lambda: run(loaded)))


@app.command()
def caption(
    run: RunDir,
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Image files.")] = None,
    heldout: Annotated[int, typer.Option(help="Held-out images to caption where no file is named.")] = 24,
    sheet: Annotated[Path | None, typer.Option(help="Contact sheet, PNG. [default: RUN/captions.png]")] = None,
) -> None:
    """Caption images and draw a contact sheet."""
    from jobs.captions import caption_images

    make_sheet = partial(caption_images, run, images or [], heldout, sheet or run / "captions.png")
    raise typer.Exit(_recorded("caption", run, make_sheet))


@app.command()
def report(run: RunDir) -> None:
    """Write the run's report: one HTML file."""
    from jobs.reporting.page import write_report

    raise typer.Exit(write_report(run))


@app.command()
def submit(
    recipe: RecipePath,
    verb: Annotated[
        str,
        typer.Argument(metavar="VERB", help="ingest, curate, tokenizer, train, eval, compare; or cluster, to stay."),
    ],
    to: Annotated[str, typer.Option(help="ray, kubernetes or slurm.")],
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster: http://HEAD:8265. [default: RAY_API_SERVER_ADDRESS]")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Print what would be submitted, and stop.")] = False,
    set_: Overrides = None,
) -> None:
    """Run a verb of a recipe on a cluster."""
    from jobs.cluster.submit import submit as run

    raise typer.Exit(run(recipe, verb, to, address, render, set_ or []))


@app.command()
def status(
    run: RunOrRecipe,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Show how far a run is and what failed, from its folders."""
    from jobs.status.command import show_status

    raise typer.Exit(show_status(run, as_json, watch))


@app.command()
def logs(
    run: RunOrRecipe,
    verb: Annotated[str, typer.Argument(metavar="VERB", help="Of the stage. [default: the newest]")] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go on as it grows, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(min=0, help="So many from the end; 0: all.")] = 100,
) -> None:
    """Print what a stage of a run has said."""
    from jobs.status.logs import show_log

    raise typer.Exit(show_log(run, verb, follow, lines))


@app.command()
def exporter(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; before there is one, its recipe.")],
    port: Annotated[int, typer.Option(help="Serve the numbers at http://HOST:PORT/metrics.")] = 9400,
    textfile: Annotated[
        Path | None, typer.Option(help="Write them once to this file instead, for node_exporter.")
    ] = None,
) -> None:
    """Give a run's numbers to Prometheus."""
    from jobs.cluster.exporter import export

    raise typer.Exit(export(run, port, textfile))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo-out"),
    corpus: Annotated[
        Path | None, typer.Option(help="Your own folder with images/ and metadata.parquet (columns file, caption).")
    ] = None,
    tier: Annotated[str, typer.Option(help="Corpus to obtain: small, full or fixtures (no network).")] = "small",
    set_: Overrides = None,
) -> None:
    """Run the whole job here on real images."""
    from jobs.demo.run import run_demo

    raise typer.Exit(run_demo(out, corpus, tier, set_ or []))


def _recorded(verb: str, run: "Recipe | Path", work: Callable[[], int], part: str = "") -> int:
    """Do the work of a verb, in the run folder's record where there is one to keep: what a folder that is no run is
    asked for leaves no trace. Returns the exit code."""
    from jobs.stages import recorded
    from train.recipe import RECIPE_FILE

    if isinstance(run, Path):
        return recorded(work, run, verb) if (run / RECIPE_FILE).exists() else work()
    return recorded(work, run.run_dir, verb, part, run)


def main() -> None:
    """Entry point: errors meant for the user carry an exit code and become a message; all others a traceback."""
    leave(_run())


def _run() -> int:
    try:
        app()
    except SystemExit as ended:  # how typer ends, with success too
        return ended.code if isinstance(ended.code, int) else 0
    except Exception as error:
        exit_code = getattr(error, "exit_code", None)
        if exit_code is None:
            raise
        sys.stderr.write(f"error: {error}\n")
        return int(exit_code)
    return 0


if __name__ == "__main__":
    main()
