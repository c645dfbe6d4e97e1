"""The runs of a comparison: their recipes, their folders, and how far each of them is."""

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.evaluation import EVAL_FILE
from jobs.recipe import Recipe, check_recipe
from jobs.runs import open_run
from jobs.tokenizer import make_tokenizer
from pipeline.section import lay_over
from train.checkpoints import committed_checkpoints, read_state
from train.recipe import TOKENIZER_FOLDER, Objective

LOG_FILE = "compare.log"
CONTRASTIVE = ("clip", "siglip")
"""Their loss compares every image of the batch with every caption: one process takes all lanes at once."""
_DURING_TRAINING = ("every", "every_images")
"""Keys of the eval section that do not change what `genlip eval` measures."""


@dataclass(frozen=True)
class Run:
    """One of the runs."""

    objective: Objective
    seed: int
    recipe: Recipe

    @property
    def run_dir(self) -> Path:
        return self.recipe.run_dir

    @property
    def title(self) -> str:
        """In lines of the log."""
        return f"{self.objective} s{self.seed}"

    @property
    def log(self) -> Path:
        """What its commands said."""
        return self.run_dir / LOG_FILE

    def samples_seen(self) -> int:
        """By its newest checkpoint."""
        found = committed_checkpoints(self.run_dir)
        return read_state(found[-1]).samples_seen if found else 0

    def is_trained(self) -> bool:
        return self.samples_seen() >= self.recipe.train.length

    def evaluation(self) -> dict[str, Any] | None:
        """What was measured of its newest checkpoint, as the recipe says now; None where that is not done."""
        path, found = self.run_dir / EVAL_FILE, committed_checkpoints(self.run_dir)
        if not path.exists() or not found:
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_newest = Path(result["checkpoint"]).name == found[-1].name
        is_same = _measured_by(result.get("eval", {})) == _measured_by(self.recipe.eval.model_dump(mode="json"))
        return result if is_newest and is_same else None

    def is_done(self) -> bool:
        """Trained and measured."""
        return self.is_trained() and self.evaluation() is not None


def plan_runs(recipe: Recipe) -> list[Run]:
    """The runs that a recipe's compare section asks for, seed by seed, so that a part of them compares all objectives.

    Raises:
        UserError: What differs for an objective makes no recipe.
    """
    spec = recipe.compare
    return [
        Run(objective, seed, _recipe_of(recipe, objective, seed))
        for seed in spec.seeds
        for objective in spec.objectives
    ]


def prepare(recipe: Recipe, runs: list[Run]) -> None:
    """Make the one tokenizer, count the captions with it, and begin the folders of the runs.

    Raises:
        UserError: The shards are missing, or a folder belongs to another recipe.
    """
    make_tokenizer(recipe)
    for run in runs:
        folder = open_run(run.recipe) / TOKENIZER_FOLDER
        if not folder.exists():
            _copy(recipe.run_dir / TOKENIZER_FOLDER, folder)


def _recipe_of(recipe: Recipe, objective: Objective, seed: int) -> Recipe:
    content = recipe.model_dump(mode="json", exclude={"compare"})
    if objective in CONTRASTIVE:
        content = lay_over(content, {"train": {"micro_rows": recipe.train.lanes}})
    content = lay_over(content, recipe.compare.overrides.get(objective, {}))
    own: dict[str, Any] = {"name": f"{recipe.name}-{objective}-s{seed}", "seed": seed, "objective": {"kind": objective}}
    if recipe.tokenizer.kind == "sentencepiece":
        own["tokenizer"] = {"path": str(recipe.run_dir / TOKENIZER_FOLDER)}
    return check_recipe(lay_over(content, own), f"compare.overrides.{objective}")


def _measured_by(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in _DURING_TRAINING}


def _copy(source: Path, folder: Path) -> None:
    """Copy a folder so that it is there complete or not at all."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    shutil.copytree(source, temporary)
    temporary.replace(folder)
