"""Run folders: begun once with a resolved recipe, and refused to a recipe that would train something else."""

import json
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs.recipe import Recipe, check_recipe, save_recipe
from pipeline.errors import UserError
from pipeline.store import refuse_changes
from train.allowed import record_allowed
from train.recipe import RECIPE_FILE

_VERSIONS_OF = ("ray", "torch", "deepspeed", "pyarrow", "sentencepiece", "numpy", "opencv-python-headless", "pillow")


def open_run(recipe: Recipe, allowed: Sequence[str] = ()) -> Path:
    """The recipe's run folder, made if need be.

    Args:
        recipe: Of the run.
        allowed: Keys in which it may differ from the recipe that the folder belongs to; what differs is written down.

    Raises:
        UserError: It belongs to another recipe; the differing keys are named.
    """
    run_dir = recipe.run_dir
    path = run_dir / RECIPE_FILE
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        other_name = "give this run another name with --set name=NAME, or let a key differ: genlip train --allow KEY"
        known = check_recipe(known, str(path)).model_dump(mode="json")  # with defaults for keys that are newer
        wanted = recipe.model_dump(mode="json")
        waived = refuse_changes(_identity(known), _identity(wanted), str(path), other_name, allowed)
        record_allowed(run_dir, str(path), waived)
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n", encoding="utf-8")
    save_recipe(recipe, path)
    return run_dir


def read_run(run_dir: Path) -> Recipe:
    """The recipe of a run folder.

    Raises:
        UserError: The folder is not a run folder.
    """
    path = run_dir / RECIPE_FILE
    if not path.exists():
        raise UserError("not a run folder", where=str(run_dir), next_step="name the folder that genlip train printed")
    return check_recipe(json.loads(path.read_text(encoding="utf-8")), str(path))


def environment() -> dict[str, Any]:
    """What the run was made with."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _VERSIONS_OF},
        "commit": commit.stdout.strip() or None,
    }


def _identity(recipe: dict[str, Any]) -> dict[str, Any]:
    """The keys that decide what is trained; the others may change between a run and its resumption."""
    identity = {key: recipe[key] for key in ("name", "seed", "store", "shards", "tokenizer", "objective", "model")}
    operation = ("checkpoint", "faults", "log_every", "log", "profile", "threads", "reading", "max_bad_samples")
    memory = ("micro_rows", "zero", "gradient_checkpointing", "compile", "deepspeed")  # other machines need others
    free = (*operation, *memory, "devices")
    identity["train"] = {key: value for key, value in recipe["train"].items() if key not in free}
    return identity
