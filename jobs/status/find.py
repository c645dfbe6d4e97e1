"""Which run is meant: a run folder or a recipe."""

import json
from dataclasses import dataclass
from pathlib import Path

from jobs.recipe import Recipe, RunSpec, check_recipe, load_recipe
from jobs.stages import LAST_RECIPE, STAGES
from pipeline.errors import UserError
from train.recipe import RECIPE_FILE


@dataclass(frozen=True)
class Found:
    """A run, which need not have begun."""

    recipe: Recipe
    run_dir: Path
    recipe_path: Path
    """Of a file that says the same as the run's own recipe."""


def find_run(run: Path) -> Found:
    """The run of a folder or a recipe.

    Raises:
        UserError: It is neither.
    """
    if run.is_file():
        recipe = load_recipe(run)
        own = _own_recipe(recipe.run_dir)
        # With --set the run may be of another recipe than the file says: commands that go on need that one.
        if own and _what(_read(own)) != _what(recipe):
            return Found(_read(own), recipe.run_dir, own)
        return Found(recipe, recipe.run_dir, run)
    if own := _own_recipe(run):
        return Found(_read(own), run, own)
    raise UserError(
        "neither a run folder nor a recipe",
        where=str(run),
        next_step="name RUNS/NAME, which the recipe's keys runs and name say, or the recipe itself",
    )


def _own_recipe(run_dir: Path) -> Path | None:
    """The recipe in a run folder; before training has put one there, that of the last command."""
    paths = (run_dir / RECIPE_FILE, run_dir / STAGES / LAST_RECIPE)
    return next((path for path in paths if path.exists()), None)


def _read(path: Path) -> Recipe:
    return check_recipe(json.loads(path.read_text(encoding="utf-8")), str(path))


def _what(recipe: Recipe) -> Recipe:
    """Less where it runs, which a job on a cluster replaces."""
    return recipe.model_copy(update={"run": RunSpec()})
