"""How long a comparison takes: from what its runs have logged, and for objectives that have logged nothing by FLOPs."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from jobs.compare.runs import Run
from train.metrics import read_metrics


class Pace:
    """Measured speeds of training and evaluation."""

    def __init__(self, flops_by_objective: Mapping[str, float], runs: Sequence[Run], flops_per_s: float) -> None:
        """Args:
        flops_by_objective: To train on one sample.
        runs: What those on disk have logged counts already.
        flops_per_s: Of one process, taken for granted until a run has logged something.
        """
        self._flops, self._flops_per_s = flops_by_objective, flops_per_s
        self._samples_per_s: dict[str, float] = {}
        self._samples: dict[str, int] = {}
        self._eval_s: list[float] = []
        for run in runs:
            if lines := read_metrics(run.run_dir):
                self.saw(run, lines[-1])

    def saw(self, run: Run, line: Mapping[str, Any]) -> None:
        """Take over speed and samples of a line of the training log."""
        self._samples[run.title] = line["samples"]
        self._samples_per_s[run.objective] = line["samples_per_s"]

    def measured(self, seconds: float) -> None:
        """Take over how long an evaluation took."""
        self._eval_s.append(seconds)

    def train_s(self, objective: str, num_samples: int) -> float:
        """Seconds that one process needs."""
        rate = self._samples_per_s.get(objective)
        if rate is None:
            known = [rate * self._flops[name] for name, rate in self._samples_per_s.items()]
            rate = (mean(known) if known else self._flops_per_s) / self._flops[objective]
        return num_samples / rate

    def left_s(self, runs: Sequence[Run], parallel: int) -> float:
        """Seconds until all is done; evaluations count once one was measured."""
        eval_s = mean(self._eval_s) if self._eval_s else 0.0
        total_s = 0.0
        for run in runs:
            left = max(0, run.recipe.train.length - self._samples.get(run.title, 0))
            total_s += self.train_s(run.objective, left) + (0.0 if run.is_done() else eval_s)
        return total_s / parallel
