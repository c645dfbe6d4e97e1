"""`genlip demo`: the whole job on real images, each step an ordinary genlip command that is shown before it runs."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

from jobs.console import duration, say, table
from jobs.demo.corpus import Tier, build_corpus, read_corpus
from jobs.demo.registry import RegistryUnavailable, default_cache
from jobs.demo.server import start_server
from jobs.demo.urls import write_url_table
from jobs.recipe import Recipe, load_recipe
from jobs.reporting.page import STEPS_FILE
from pipeline.errors import EXIT_ENVIRONMENT, UserError

TEMPLATE = Path(__file__).resolve().parents[1] / "recipes" / "demo.yaml"
SERVED_FILE = "served.json"


@dataclass
class _Steps:
    """What has been run, and how long it took."""

    done: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def timed(self, title: str) -> Iterator[None]:
        say(f"\n\033[1m$ {title}\033[0m" if sys.stdout.isatty() else f"\n$ {title}")
        began = time.monotonic()
        yield
        self.done.append((title, time.monotonic() - began))

    def genlip(self, *arguments: str) -> None:
        """Run a genlip command; the demo ends where the command fails."""
        with self.timed(f"genlip {' '.join(arguments)}"):
            code = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], check=False).returncode
        if code:
            raise UserError(
                f"genlip {arguments[0]} ended with exit code {code}",
                next_step="solve what it says above, and run the same demo command again: it goes on from here",
                exit_code=code if code > 0 else 1,
            )


def run_demo(out: Path, corpus: Path | None, tier: str, overrides: list[str]) -> int:
    """Run or continue the demo in a folder.

    Args:
        out: Everything goes here; running again goes on where the last run ended.
        corpus: A user's folder with images/ and metadata.parquet, or None for a corpus of the registries.
        tier: Which corpus to obtain: small, full or fixtures.
        overrides: `a.b=value` entries for the recipe.
    """
    if tier not in get_args(Tier):
        raise UserError(f"unknown tier {tier!r}", next_step=f"use one of: {', '.join(get_args(Tier))}")
    steps = _Steps()
    served = _read_served(out)
    folder = served.corpus if served else corpus or _obtain_corpus(steps, out, tier)
    recipe = _write_recipe(out, overrides)
    run_dir = str(recipe.run_dir)
    path = str(out / "recipe.yaml")
    with _serve(steps, folder, served, out):
        steps.genlip("ingest", path)
    steps.genlip("tokenizer", path)
    steps.genlip("plan", path)
    steps.genlip("train", path)
    steps.genlip("eval", run_dir)
    steps.genlip("caption", run_dir)
    (recipe.run_dir / STEPS_FILE).write_text(json.dumps(steps.done, indent=1) + "\n", encoding="utf-8")
    steps.genlip("report", run_dir)
    _say_end(steps, recipe.run_dir)
    return 0


def _obtain_corpus(steps: _Steps, out: Path, tier: str) -> Path:
    """The tier's corpus; the shipped fixtures, said clearly, where its registries cannot be reached."""
    folder = out / "corpus"
    with steps.timed(f"obtain the corpus: tier {tier}"):
        try:
            summary = build_corpus(cast(Tier, tier), folder, default_cache())
        except RegistryUnavailable as error:
            say(f"{error}")
            say("going on with the fixtures that ship with genlip: 240 emoji, enough to see it work, not to learn much")
            folder = out / "corpus-fixtures"
            summary = build_corpus("fixtures", folder, default_cache())
        say(
            f"{summary.num_images:,} images, {summary.num_captions:,} distinct captions, {summary.num_classes} classes,"
            f" {summary.num_bytes / 1e6:.0f} MB in {summary.folder}{' (already there)' if summary.is_reused else ''}"
        )
    return folder


def _write_recipe(out: Path, overrides: list[str]) -> Recipe:
    """Put the demo's recipe into the folder, once; its paths are the folder's."""
    path = out / "recipe.yaml"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(TEMPLATE.read_text(encoding="utf-8").replace("demo-out/", f"{out}/"), encoding="utf-8")
    if overrides:
        recipe = load_recipe(path, overrides)
        # JSON is YAML: the steps below, and the user who repeats them, read the overridden values.
        path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True), indent=1) + "\n")
        return recipe
    return load_recipe(path)


@dataclass(frozen=True)
class _Served:
    """What a URL table points at: kept, so that the table stays true when the demo is run again."""

    corpus: Path
    port: int


def _read_served(out: Path) -> _Served | None:
    path = out / SERVED_FILE
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return _Served(Path(record["corpus"]), record["port"])


@contextmanager
def _serve(steps: _Steps, corpus: Path, served: _Served | None, out: Path) -> Iterator[None]:
    """Serve the corpus over HTTP on loopback, with a URL table that points there, bad rows included."""
    table_of_corpus = read_corpus(corpus)
    with ExitStack() as stack:
        try:
            base_url = stack.enter_context(start_server(corpus, served.port if served else 0))
        except RuntimeError as error:
            raise UserError(
                "the image server does not start",
                why=str(error),
                next_step="free the port, or run the demo with another --out",
                exit_code=EXIT_ENVIRONMENT,
            ) from error
        if not served:
            with steps.timed("serve the images on loopback, and write the table of their URLs"):
                summary = write_url_table(table_of_corpus, base_url, out / "urls.parquet", seed=0)
                record = {"corpus": str(corpus), "port": int(base_url.rsplit(":", 1)[1])}
                (out / SERVED_FILE).write_text(json.dumps(record), encoding="utf-8")
                say(f"{summary.num_rows:,} rows in {summary.path}: {_counts(summary.num_expected)}")
        yield


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _say_end(steps: _Steps, run_dir: Path) -> None:
    rows = [[title, duration(seconds)] for title, seconds in steps.done]
    rows.append(["together", duration(sum(seconds for _, seconds in steps.done))])
    say("\n" + table(rows))
    say(f"\nthe model's captions: {run_dir / 'captions.png'}")
    say(f"the report:           {run_dir / 'report.html'}")
