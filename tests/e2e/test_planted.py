"""What is planted among the shipped fixtures is caught, by `genlip ingest` alone."""

from pathlib import Path

import pytest

from jobs.demo.corpus import FIXTURES
from tests.e2e.planted import LANGUAGES, run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_planted_cases_are_caught(tmp_path: Path) -> None:
    table, rest, printed = run(FIXTURES, tmp_path)
    certain = ["exact", "blocklisted", "file name", "nsfw", *(f"language {language}" for language in LANGUAGES)]
    assert {case: table[case] for case in certain} == {case: (table[case][0],) * 2 for case in certain}
    for case in ("reencoded", "resized", "evaluation"):
        planted, caught = table[case]
        assert caught >= 0.8 * planted, (case, table, printed)  # the pictures are tiny: 72 px, then 50
    # The fixtures are emoji, of which some are alike; no rule may touch the others.
    assert rest["train"] >= 0.9 * (rest.total() - rest["near_duplicate"])
    assert (tmp_path / "store/reports/curation-planted.html").stat().st_size > 10_000
