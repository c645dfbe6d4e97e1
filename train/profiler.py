"""A few steps traced by PyTorch's profiler, for the question where the time of a step goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from train.engine import Ranks
from train.recipe import ProfileSpec

PROFILE_FOLDER = "profile"
_TABLE_ROWS = 40


class ProfileWindow:
    """`with window.step(number): …` around every step; traces those of the recipe on the first process."""

    def __init__(self, run_dir: Path, spec: ProfileSpec | None, ranks: Ranks) -> None:
        self._folder = run_dir / PROFILE_FOLDER
        self._spec = spec if ranks.is_first else None
        self._profile: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """One step, counted from 1; a run that is resumed inside the window traces no part of it."""
        if self._spec is None:
            yield
            return
        last = self._spec.from_step + self._spec.num_steps - 1
        if number == self._spec.from_step:
            self._profile = _profile()
            self._profile.start()
        yield
        if number == last and self._profile is not None:
            self._profile.stop()
            self._write(self._profile, f"steps-{self._spec.from_step}-{last}")
            self._profile = None

    def _write(self, traced: profile, name: str) -> None:
        """A trace for Perfetto or chrome://tracing, and a table of the operations that took longest."""
        self._folder.mkdir(exist_ok=True)
        traced.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        slowest = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = traced.key_averages().table(sort_by=slowest, row_limit=_TABLE_ROWS)
        (self._folder / f"{name}.txt").write_text(table + "\n", encoding="utf-8")


def _profile() -> profile:
    on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return profile(activities=[ProfilerActivity.CPU, *on_gpu])
