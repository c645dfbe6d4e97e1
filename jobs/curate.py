"""`genlip annotate`, `select`, `curate`: columns, a selection, shards and a report; each does what is missing."""

from pathlib import Path

from jobs.annotate import annotate_store
from jobs.console import say
from jobs.curation.card import write_card
from jobs.curation.page import write_curation_report
from jobs.ray_pool import Pool
from jobs.recipe import Recipe
from pipeline.curate.compare import compare
from pipeline.curate.explain import explain
from pipeline.curate.hamming import plan_tables
from pipeline.curate.rows import Rows, open_rows
from pipeline.curate.select import is_current, read_summary, select
from pipeline.curate.summary import read_summary as read_numbers
from pipeline.curate.summary import summarise
from pipeline.dataset_files import dataset_file
from pipeline.errors import EXIT_FAILED_UNITS, UserError
from pipeline.funnel import read_funnel
from pipeline.sharding.dataset import materialise
from pipeline.store import Store


def annotate(recipe: Recipe) -> int:
    """Compute the recipe's columns. Returns the exit code."""
    with Pool(recipe.run.ray_address) as pool:
        return 0 if annotate_store(recipe, pool) else EXIT_FAILED_UNITS


def select_samples(recipe: Recipe, key: str | None, other: str | None) -> int:
    """Make the selection and its report, then explain one sample or compare with another selection.

    Returns:
        The exit code.
    """
    with Pool(recipe.run.ray_address) as pool:
        rows = _open(recipe)
        _select(recipe, rows, pool)
        _write_report(recipe, rows, pool)
    name = recipe.shards.name
    if key:
        for line in explain(rows, recipe.curate.select, name, key):
            say(line)
    if other:
        for line in compare(rows.store, other, name).lines():
            say(line)
    return 0


def curate(recipe: Recipe) -> int:
    """From the raw store to training shards and the report. Returns the exit code."""
    with Pool(recipe.run.ray_address) as pool:
        return curate_store(recipe, pool)


def curate_store(recipe: Recipe, pool: Pool) -> int:
    """The same within a command that has a Ray already."""
    if not annotate_store(recipe, pool):
        return EXIT_FAILED_UNITS
    rows = _open(recipe)
    _select(recipe, rows, pool)
    for line in materialise(rows, recipe.shards.name, recipe.shards, recipe.seed, pool.each, say).lines():
        say(line)
    _write_report(recipe, rows, pool)
    if not rows.store.exists(f"shards/{recipe.shards.name}/README.md"):
        write_card(rows.store, recipe.shards.name)
    return 0


def _open(recipe: Recipe) -> Rows:
    return open_rows(Store(recipe.store), recipe.curate.build_annotators())


def _select(recipe: Recipe, rows: Rows, pool: Pool) -> None:
    """Make the recipe's selection where it is not there yet.

    Raises:
        UserError: Shards were made of another selection of this name, whose record would be lost.
    """
    shards, spec = recipe.shards, recipe.curate.select
    name, near_bits = shards.name, shards.holdout_near_bits
    if is_current(rows, spec, shards.holdout, name, recipe.seed, near_bits):
        summary = read_summary(rows.store, name)
    else:
        if rows.store.exists(dataset_file(name)):
            raise UserError(
                "shards are made of another selection of this name",
                where=rows.store.path(f"selection/{name}"),
                why="the rules, the held-out part, the columns or the store's units have changed since; the record of"
                " each sample's fate stays with its shards",
                next_step="choose another name with --set shards.name=NAME",
            )
        _warn_of_chance(recipe, rows.store)
        summary = select(rows, spec, shards.holdout, name, recipe.seed, pool.each, near_bits)
    for line in summary.lines():
        say(line)


def _warn_of_chance(recipe: Recipe, store: Store) -> None:
    near_bits = recipe.curate.select.dedup.near_bits
    if near_bits is not None and (warning := plan_tables(read_funnel(store).success, near_bits).warning()):
        say(warning)


def _write_report(recipe: Recipe, rows: Rows, pool: Pool) -> None:
    """The numbers beside the data, and the page where it can be opened; nothing where both are of this selection."""
    name = recipe.shards.name
    folder = Path(rows.store.path("reports")) if rows.store.is_local else Path(recipe.runs)
    page = folder / f"curation-{name}.html"
    if page.exists() and read_numbers(rows.store, name) is not None:
        say(f"curation report: {page}, as it was")
        return
    folder.mkdir(parents=True, exist_ok=True)
    summarise(rows, name, pool.each)
    write_curation_report(rows.store, rows, name, page, recipe.train.row_tokens)
