"""What the numbers of the driver's benchmark rest on: each step sees all that it should, and a slope is one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import driver_scale_side
from tests.bench.driver_scale import STEPS, Side, growth, write_annotations, write_index, write_ledgers, write_tables


@given(st.floats(0, 1e3), st.floats(-1e3, 1e3))
def test_growth_is_the_slope_of_a_line(per_unit: float, at_zero: float) -> None:
    sizes = [8, 80, 800]
    assert growth(sizes, [at_zero + per_unit * size for size in sizes]) == pytest.approx(per_unit, abs=1e-6)


def test_each_step_sees_all_that_it_should(tmp_path: Path) -> None:
    side = Side(tmp_path, 250)
    write_tables(side)
    for step in STEPS:
        if step == "pending":
            write_ledgers(side, range(0, 250, 2))
        if step == "sums":
            write_ledgers(side, range(1, 250, 2))
            write_annotations(side, range(0, 250, 2))
            write_index(side)
        run: Callable[[Side], tuple[int, int]] = getattr(driver_scale_side, step)
        seen, wanted = run(side)
        assert seen == wanted > 0, step
