"""RUN/bench.json: what was measured of each stage, where, when and with which settings of the recipe."""

import json
import os
import platform
import socket
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.recipe import Recipe
from jobs.runs import environment
from pipeline.store import refuse_changes

FILE = "bench.json"
STAGES = ("ingest", "annotate", "select", "shards", "store", "train")


@dataclass(frozen=True)
class Machine:
    """Where something was measured."""

    host: str
    processor: str
    cores: int
    gpu: str
    """Empty where there is none."""

    def describe(self) -> str:
        return f"{self.host} ({self.cores} cores, {self.gpu or 'no GPU'})"


@dataclass(frozen=True)
class Measured:
    """What was measured of one stage."""

    numbers: dict[str, float]
    settings: dict[str, Any]
    """The recipe's values that it depends on."""
    machine: Machine
    measured_utc: str
    versions: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    """What it was measured with, in words."""

    def describe(self) -> str:
        return f"{self.measured_utc[:16].replace('T', ' ')} UTC on {self.machine.describe()}"

    def outdated(self, recipe: Recipe, stage: str) -> list[str]:
        """The settings that the recipe has changed since, in words."""
        return refuse_changes(self.settings, settings_of(recipe, stage), FILE, "", allowed=[*self.settings])


def settings_of(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The values that a stage's speed depends on."""
    content = recipe.model_dump(mode="json")
    ingest, curate, shards, train = (content[name] for name in ("ingest", "curate", "shards", "train"))
    of_train = ("row_tokens", "micro_rows", "max_caption_tokens", "precision", "zero", "gradient_checkpointing")
    return {
        "ingest": {
            "ingest": {name: ingest[name] for name in ("image", "filters", "plugins", "write")}
            | {"fetch": {"engine": ingest["fetch"]["engine"]}}
        },
        "annotate": {"curate": {name: curate[name] for name in ("annotate", "decontaminate", "plugins")}},
        "select": {"curate": {"select": curate["select"]}},
        "shards": {"shards": {"check": shards["check"]}},
        "store": {"store": content["store"]},
        "train": {
            "model": content["model"],
            "objective": content["objective"],
            "train": {name: train[name] for name in of_train},
        },
    }[stage]


def measured_here(recipe: Recipe, stage: str, numbers: dict[str, float], about: str, gpu: str = "") -> Measured:
    """A measurement of now, on this machine."""
    machine = Machine(socket.gethostname(), _processor(), len(os.sched_getaffinity(0)), gpu)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Measured(numbers, settings_of(recipe, stage), machine, now, environment(), about)


def read_bench(run_dir: Path) -> dict[str, Measured]:
    """What was measured so far, by stage; empty where nothing was."""
    path = run_dir / FILE
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: Measured(**(one | {"machine": Machine(**one["machine"])})) for name, one in content.items()}


def write_bench(run_dir: Path, found: dict[str, Measured]) -> Path:
    """Add measurements to those of other stages, or of other machines."""
    run_dir.mkdir(parents=True, exist_ok=True)
    content = {name: asdict(one) for name, one in (read_bench(run_dir) | found).items()}
    path = run_dir / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
