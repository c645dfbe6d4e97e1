"""What a comparison says: means, intervals and differences of made-up evaluations whose truth is known; the page."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.compare.aggregate import Measured, make_rows
from jobs.compare.announcement import own_sentences
from jobs.compare.report import HTML_FILE, JSON_FILE, write_report
from jobs.compare.results import Comparison, Missing, Row
from jobs.compare.summary import headline_sentences, tally_sentences
from tests.jobs.comparisons import OBJECTIVES, SEEDS, all_measured, comparison, measured
from tests.stores import noise

NAME = "zero_shot/names_top1"


def rows_of(found: dict[str, list[Measured]], keys: list[str]) -> dict[str, Row]:
    return {row.name: row for row in make_rows(OBJECTIVES, found, keys)}


def pair(genlip: float, clip: float, num_images: int = 400) -> Comparison:
    """Two objectives whose images are right with these probabilities."""
    shares = {"genlip": genlip, "clip": clip}
    return comparison(
        {name: [measured(name, seed, {NAME: share}, num_images) for seed in SEEDS] for name, share in shares.items()}
    )


# ---------------------------------------------------------------- numbers


def test_values_are_means_over_seeds_with_their_spread() -> None:
    row = pair(0.5, 0.2).row(NAME)
    assert row
    value = row.values["genlip"]
    seeds = [measured("genlip", seed, {NAME: 0.5}, 400).per_image[NAME].mean() for seed in SEEDS]
    assert value.mean == pytest.approx(np.mean(seeds))
    assert value.seed_std == pytest.approx(np.std(seeds, ddof=1))
    assert list(value.by_seed.values()) == pytest.approx(seeds)
    assert value.low is not None
    assert value.high is not None
    assert value.low < value.mean < value.high
    assert row.chance == pytest.approx(0.1)


def test_a_large_difference_excludes_zero_and_none_does_not() -> None:
    clear, none = pair(0.6, 0.2).row(NAME), pair(0.4, 0.4).row(NAME)
    assert clear
    assert none
    assert clear.differences["clip"].excludes_zero is True
    assert none.differences["clip"].excludes_zero is False
    assert clear.differences["clip"].mean == pytest.approx(clear.values["genlip"].mean - clear.values["clip"].mean)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(30)))
def test_images_are_paired_by_key_whatever_their_order(order: list[int]) -> None:
    found = {name: [measured(name, 1, {NAME: 0.4}, 30)] for name in ("genlip", "clip")}
    one = found["clip"][0]
    shuffled = Measured(1, one.result, [one.keys[at] for at in order], {NAME: one.per_image[NAME][order]})
    keys = found["genlip"][0].keys
    assert rows_of(found, keys)[NAME] == rows_of(found | {"clip": [shuffled]}, keys)[NAME]


def test_a_metric_of_the_whole_set_has_no_interval() -> None:
    row = comparison().row("captioning/bleu_4")
    assert row
    assert (row.values["genlip"].low, row.differences["cappa"].excludes_zero) == (None, None)
    assert row.values["genlip"].seed_std == pytest.approx(0.01)


def test_what_an_objective_cannot_have_is_said() -> None:
    made = comparison()
    zero_shot, bleu = made.row(NAME), made.row("captioning/bleu_4")
    assert zero_shot
    assert bleu
    assert zero_shot.reasons == {"mae": "learns from images alone"}
    assert set(bleu.reasons) == {"clip", "siglip", "mae"}


def test_a_number_that_is_not_finite_counts_as_not_measured() -> None:
    found = {name: [measured(name, seed, {NAME: 0.5}) for seed in SEEDS] for name in ("genlip", "clip")}
    found["clip"][0].result["metrics"][NAME]["value"] = float("nan")
    assert list(rows_of(found, found["clip"][0].keys)[NAME].values["clip"].by_seed) == [2, 3]


# ---------------------------------------------------------------- sentences


def test_the_sentences_follow_the_numbers() -> None:
    for genlip, clip, told, verdict in (
        (0.7, 0.2, "GenLIP is ahead of CLIP", "holds here"),
        (0.2, 0.7, "GenLIP is behind CLIP", "does not hold here"),
        (0.4, 0.4, "GenLIP is not distinguishable from CLIP", "can be neither confirmed nor refuted here"),
    ):
        made = pair(genlip, clip)
        assert told in headline_sentences(made)[0]
        assert verdict in own_sentences(made)[0]
        assert "headline metrics of both: 1;" in tally_sentences(made)[0]
    assert "no numbers" in own_sentences(pair(0.5, 0.5))[1]  # of retrieval


def test_a_smaller_loss_is_ahead() -> None:
    found = {
        name: [measured(name, seed, {NAME: share}) for seed in SEEDS]
        for name, share in (("genlip", 0.1), ("clip", 0.9))
    }
    for ones in found.values():
        for one in ones:
            one.result["metrics"][NAME]["better"] = "lower"
    made = comparison(found)
    assert "GenLIP is ahead of CLIP" in headline_sentences(made)[0]
    row = made.row(NAME)
    assert row
    assert [name for name in OBJECTIVES if row.is_best(name)] == ["genlip"]


# ---------------------------------------------------------------- the page


def page_of(made: Comparison, folder: Path) -> str:
    write_report(made, folder, {f"k{number}": noise(number) for number in range(3)})
    return (folder / HTML_FILE).read_text(encoding="utf-8")


def test_the_page_has_every_metric_beside_chance(tmp_path: Path) -> None:
    made = comparison(missing=(Missing("clip s3", "tail runs/clip-s3/compare.log"),))
    page = page_of(made, tmp_path)
    assert page.count("<th>chance</th>") == page.count("<th>metric</th>")
    for row in made.rows:
        assert row.name.partition("/")[2].replace("_", " ") in page
    assert "tail runs/clip-s3/compare.log" in page
    assert page.count("<svg") == 2 + len(OBJECTIVES)
    assert "<b>red</b>" not in page  # of a caption
    assert "&lt;b&gt;red&lt;/b&gt;" in page
    assert "<script" not in page
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))


def test_the_json_has_the_values_of_each_seed(tmp_path: Path) -> None:
    page_of(comparison(), tmp_path)
    content = json.loads((tmp_path / JSON_FILE).read_text(encoding="utf-8"))
    row = next(row for row in content["rows"] if row["name"] == NAME)
    assert set(row["values"]) == {"genlip", "clip", "siglip", "cappa"}
    assert set(row["values"]["clip"]["by_seed"]) == {"1", "2", "3"}
    assert set(row["differences"]) == {"clip", "siglip", "cappa"}
    assert content["systems"]["mae"]["flops_per_sample"] == 1.6e9
    assert content["summary"]
    assert content["announcement"]


def test_a_comparison_of_which_nothing_is_done_has_a_page(tmp_path: Path) -> None:
    assert "Missing runs" in page_of(comparison({}, (Missing("clip s3", "tail log"),)), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_a_browser_finds_nothing_wrong(tmp_path: Path) -> None:
    page_of(comparison(), tmp_path)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", (tmp_path / HTML_FILE).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert len(re.findall("<svg", done.stdout)) == 2 + len(all_measured())
    assert "CONSOLE" not in done.stderr
