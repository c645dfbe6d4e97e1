"""`genlip bench`: how fast this machine does each stage with the recipe's settings, for `genlip plan --scale`."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.capacity.measure_curate import SELECTED_ROWS, annotate_corpus, select_corpus, shard_corpus
from jobs.capacity.measure_ingest import Workbench, ingest_corpus
from jobs.capacity.measure_store import probe_store
from jobs.capacity.measure_train import train_steps
from jobs.capacity.photos import make_corpus
from jobs.capacity.record import STAGES, Measured, measured_here, write_bench
from jobs.capacity.terms import digits
from jobs.console import say
from jobs.recipe import Recipe
from pipeline.errors import EXIT_FAILED_UNITS, UserError

SECONDS = 15.0
"""That the ingestion is measured for; the other stages follow from what it has stored."""

_SHOWN = {
    "ingest": {"rows_per_s_core": "rows/s per core", "cpu_ms_per_row": "CPU ms per row", "mb_per_s_core": "MB/s in"},
    "annotate": {"samples_per_s_core": "samples/s per core"},
    "select": {"samples_per_s_core": "samples/s per core"},
    "shards": {"samples_per_s_core": "samples/s per core", "mb_per_s_core": "MB/s per core"},
    "store": {
        "write_mb_per_s": "MB/s write",
        "read_mb_per_s": "MB/s read",
        "put_ms": "ms per PUT",
        "get_ms": "ms per GET",
    },
    "train": {"samples_per_s_device": "samples/s per device"},
}
"""What of the numbers stands in the table."""

Measure = Callable[[], tuple[dict[str, float], str]]


def bench(recipe: Recipe, only: Sequence[str] = (), corpus: Path | None = None, seconds: float = SECONDS) -> int:
    """Measure, print a table, and write RUN/bench.json. Returns the exit code: failure if nothing could be measured.

    Args:
        recipe: whose settings are measured.
        only: stages; all by default.
        corpus: folder with images/ and metadata.parquet; synthetic photographs by default.
        seconds: that the ingestion is measured for.

    Raises:
        UserError: There is no such stage.
    """
    for name in only:
        if name not in STAGES:
            raise UserError(f"there is no stage called {name!r} to measure", next_step=f"one of: {', '.join(STAGES)}")
    wanted = [name for name in STAGES if not only or name in only]
    bencher = _Bencher(recipe)
    if {*wanted} & {"ingest", "annotate", "select", "shards"}:
        bencher.measure_data(wanted, corpus, seconds)
    if "store" in wanted:
        bencher.measure("store", lambda: probe_store(recipe.store))
    if "train" in wanted:
        bencher.measure_training()
    for line in bencher.lines():
        say(line)
    if not bencher.found:
        return EXIT_FAILED_UNITS
    say(f"written to {write_bench(recipe.run_dir, bencher.found)}; next: genlip plan RECIPE --scale 8B")
    return 0


class _Bencher:
    """Measures stage by stage; one that cannot be measured does not stop the others."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.found: dict[str, Measured] = {}
        self.not_measured: dict[str, str] = {}

    def measure_data(self, wanted: Sequence[str], corpus: Path | None, seconds: float) -> None:
        """The stages that need images; all but the first work on what that one has stored."""
        recipe = self._recipe
        try:
            with (
                tempfile.TemporaryDirectory(prefix="genlip-bench-") as scratch,
                ingest_corpus(
                    recipe.ingest, corpus or make_corpus(Path(scratch, "synthetic photographs")), Path(scratch), seconds
                ) as (numbers, about, workbench),
            ):
                stages = self._data_stages(workbench, f"{scratch}/rows", seconds)
                stages["ingest"] = lambda: (numbers, about)
                for name in ("ingest", "annotate", "select", "shards"):
                    # The selection reads the annotators' columns.
                    if name in wanted or (name == "annotate" and "select" in wanted):
                        self.measure(name, stages[name])
        except (UserError, RuntimeError, ValueError) as error:
            for name in wanted:
                if name not in ("store", "train"):
                    self.not_measured.setdefault(name, _words(error))

    def _data_stages(self, workbench: Workbench, scratch: str, seconds: float) -> dict[str, Measure]:
        recipe = self._recipe
        num_rows = round(SELECTED_ROWS * min(1.0, seconds / SECONDS))
        return {
            "annotate": lambda: annotate_corpus(recipe.curate, workbench),
            "select": lambda: select_corpus(recipe.curate, recipe.seed, workbench, scratch, num_rows),
            "shards": lambda: shard_corpus(recipe.shards, recipe.seed, workbench),
        }

    def measure(self, name: str, measure: Measure) -> None:
        """Measure a stage, or remember why that is not possible."""
        say(f"measuring {name} …")
        try:
            numbers, about = measure()
        except (UserError, OSError) as error:
            self.not_measured[name] = _words(error)
        else:
            self.found[name] = measured_here(self._recipe, name, numbers, about)

    def measure_training(self) -> None:
        """The same for training, which says on which device it was."""
        say("measuring train …")
        try:
            numbers, about, gpu = train_steps(self._recipe, self._recipe.run_dir)
        except UserError as error:
            self.not_measured["train"] = _words(error)
        else:
            self.found["train"] = measured_here(self._recipe, "train", numbers, about, gpu)

    def lines(self) -> list[str]:
        """What was found, for the terminal."""
        rows = []
        for name in STAGES:
            if name in self.found:
                one = self.found[name]
                shown = [f"{digits(one.numbers[key])} {unit}" for key, unit in _SHOWN[name].items()]
                rows.append([name, " · ".join(shown), one.about])
            elif name in self.not_measured:
                rows.append([name, "not measured", self.not_measured[name]])
        width = max(len(row[1]) for row in rows)
        lines = [f"{name:<9} {numbers:<{width}}  {about}" for name, numbers, about in rows]
        if self.found:
            machine = next(iter(self.found.values()))
            lines.append(f"measured {machine.describe()}, {machine.machine.processor}; other load on it counts")
        return lines


def _words(error: Exception) -> str:
    """An error's message in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(" ".join(line.split()) for line in lines if line)
