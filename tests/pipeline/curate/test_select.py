"""Fates against a plain model of all samples in memory; re-runs; empty results."""

import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import pipeline.curate.rows
from pipeline.curate.near import group_near
from pipeline.curate.rows import Rows
from pipeline.curate.select import SelectionSummary, is_current, read_summary, select
from pipeline.curate.spec import BalanceSpec, DedupSpec, MixSpec, SelectSpec
from pipeline.each import in_turn
from pipeline.errors import UserError
from pipeline.store import Store
from tests.selections import annotate_by_hand
from tests.stores import Stored, commit_unit, make_store, noise

_IMAGES = [noise(seed) for seed in range(40)]


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.curate.rows, "UNITS_PER_PART", 2)


def _make(seed: int, root: str = "") -> Rows:
    """5 units of samples that repeat each other in key, image, URL and hash."""
    draw = random.Random(seed)
    units = [
        [
            Stored(
                f"k{draw.randrange(400):03d}",
                image=draw.choice(_IMAGES),
                url=draw.choice(["http://A.org:80/", "http://a.org/"]) + f"{draw.randrange(120)}#{draw.random()}",
                phash=f"{draw.randrange(60) * 0x0101010101:016x}",
                width=draw.randrange(1, 5),
                caption=draw.choice(["a dog", "A cat and a dog", "the sea", "hot dog"]),
            )
            for _ in range(draw.randrange(30, 60))
        ]
        for _ in range(5)
    ]
    number = sum(map(len, units))
    scores = [draw.choice([None, float("nan"), -0.0, *map(float, range(9))]) for _ in range(number)]
    evaluated = [draw.random() < 0.05 for _ in range(number)]
    columns = {
        "score": pa.array(scores, pa.float64()),
        "source": pa.array([draw.choice(["a", "b", "c", None]) for _ in range(number)]),
        "eval_set": pa.array(["imagenet" if hit else None for hit in evaluated], pa.string()),
        "eval_image": pa.array(["x/1.png" if hit else None for hit in evaluated], pa.string()),
        "eval_bits": pa.array([3 if hit else None for hit in evaluated], pa.int32()),
    }
    return annotate_by_hand(make_store(units, root), columns)


def _samples(rows: Rows) -> list[dict[str, Any]]:
    return [row for part in rows.parts() for row in rows.read(part, list(rows.types)).to_pylist()]


def _fates(store: Store, name: str = "s") -> list[dict[str, Any]]:
    files = store.names(f"selection/{name}", ".parquet")
    return [row for file in files for row in store.read_table(f"selection/{name}/{file}").to_pylist()]


def _select(rows: Rows, spec: SelectSpec, holdout: float = 0.2, seed: int = 7) -> SelectionSummary:
    return select(rows, spec, holdout, "s", seed, in_turn)


def _model(rows: Rows, near_bits: int | None) -> list[tuple[str, str | None]]:
    """What rules, evaluation images and duplicates leave, by plain loops."""
    samples = _samples(rows)
    values = sorted(s["score"] for s in samples if s["score"] is not None and s["score"] == s["score"])
    threshold = values[len(values) - -(-len(values) * 3 // 4)]
    fates: list[tuple[str, str | None] | None] = [None] * len(samples)

    def duplicates(fate: str, label: Any, ranked: bool) -> None:
        groups: dict[Any, list[int]] = {}
        for i, sample in enumerate(samples):
            if fates[i] is None:
                groups.setdefault(label(sample), []).append(i)
        for group in groups.values():
            best = max(group, key=lambda i: (samples[i]["width"] if ranked else 0, -i))
            for i in group:
                if i != best:
                    fates[i] = (fate, samples[best]["key"])

    duplicates("duplicate_key", lambda s: s["key"], False)
    for i, sample in enumerate(samples):
        score = sample["score"]
        if fates[i] is not None:
            continue
        if score is None:
            fates[i] = ("good", "null")
        elif not score >= threshold:
            fates[i] = ("good", None)
        elif sample["eval_set"]:
            fates[i] = ("evaluation_image", "imagenet/x/1.png, 3 bits")
    duplicates("duplicate_image", lambda s: s["sha256"], True)
    duplicates("duplicate_url", lambda s: s["url"].replace("A.org:80", "a.org").partition("#")[0], True)
    if near_bits is not None:
        labels = _near_labels(rows, near_bits)
        duplicates("near_duplicate", lambda s: labels.get(int(s["phash"], 16), int(s["phash"], 16)), True)
    for i, sample in enumerate(samples):
        held = hashlib.sha256(f"holdout {sample['sha256']}".encode()).digest()[:8]
        fates[i] = fates[i] or ("heldout" if int.from_bytes(held) / 2**64 < 0.2 else "train", None)
    return [fate for fate in fates if fate]


def _near_labels(rows: Rows, bits: int) -> dict[int, int]:
    near = group_near(rows, bits, in_turn)
    found = [near.labels(part) for part in range(near.num_parts)]
    return {
        hash_: label for hashes, labels in found for hash_, label in zip(hashes.tolist(), labels.tolist(), strict=True)
    }


@pytest.mark.parametrize(("seed", "near_bits"), [(1, None), (2, 0), (3, 5), (4, 2)])
def test_fates_are_those_of_the_model(seed: int, near_bits: int | None) -> None:
    rows = _make(seed)
    dedup = DedupSpec(exact=("sha256", "url"), near_bits=near_bits, keep="width")
    summary = _select(rows, SelectSpec(where={"good": "score in top 75%"}, dedup=dedup))
    found = _fates(rows.store)
    assert [(row["fate"], row["detail"]) for row in found] == _model(rows, near_bits)
    assert [(s["unit"], s["row"], s["key"]) for s in _samples(rows)] == [(f["unit"], f["row"], f["key"]) for f in found]
    assert summary.counts == Counter(row["fate"] for row in found)
    assert summary == read_summary(rows.store, "s")


def test_a_mix_has_its_shares_exactly_and_as_many_as_there_are() -> None:
    rows = _make(5)
    _select(rows, SelectSpec(dedup=DedupSpec(exact=())))
    before = _fates(rows.store)
    sources = [sample["source"] for sample in _samples(rows)]
    left = Counter(s for s, row in zip(sources, before, strict=True) if row["fate"] in ("train", "heldout"))
    shares = {"a": 1.0, "b": 3.0}
    _select(rows, SelectSpec(dedup=DedupSpec(exact=()), mix=MixSpec(by="source", shares=shares)))
    after = _fates(rows.store)
    kept = Counter(s for s, row in zip(sources, after, strict=True) if row["fate"] in ("train", "heldout"))
    unit = min(left[source] / share for source, share in shares.items())
    assert kept == {source: int(unit * share) for source, share in shares.items()}
    assert all(row["fate"] != "over_share" or row["detail"] == s for s, row in zip(sources, after, strict=True))


def test_a_source_that_has_nothing_is_named() -> None:
    with pytest.raises(UserError, match="'z'"):
        _select(_make(1), SelectSpec(mix=MixSpec(by="source", shares={"a": 1, "z": 1})))


def test_max_samples_is_exact_and_a_smaller_one_keeps_a_part_of_it() -> None:
    rows = _make(6)
    kept = []
    for number in (30, 20):
        summary = _select(rows, SelectSpec(max_samples=number))
        kept.append({row["key"] for row in _fates(rows.store) if row["fate"] in ("train", "heldout")})
        assert summary.counts["train"] + summary.counts["heldout"] == number
    assert kept[1] < kept[0]


def test_balance_caps_what_is_frequent(tmp_path: Path) -> None:
    rows = _make(7)
    (tmp_path / "entries.txt").write_text("dog\nhot dog\ncat\n\n")
    balance = BalanceSpec(entries=str(tmp_path / "entries.txt"), max_per_entry=25)
    _select(rows, SelectSpec(dedup=DedupSpec(exact=()), balance=balance))
    kept: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for sample, row in zip(_samples(rows), _fates(rows.store), strict=True):
        if row["fate"] == "duplicate_key":
            continue
        total[sample["caption"]] += 1
        kept[sample["caption"]] += row["fate"] != "over_cap"
        assert (row["detail"] == "no entry") == (sample["caption"] == "the sea")
    assert kept["the sea"] == 0
    assert 0 < kept["a dog"] < total["a dog"]
    assert kept["hot dog"] > kept["a dog"] * total["hot dog"] / total["a dog"]


def test_the_same_again_is_the_same_bytes_and_is_known() -> None:
    rows = _make(8)
    spec = SelectSpec(where={"good": "score in top 50%"}, max_samples=60)
    written = []
    for _ in range(2):
        _select(rows, spec)
        names = rows.store.names("selection/s", "")
        written.append({name: rows.store.read(f"selection/s/{name}") for name in names})
    assert written[0] == written[1]
    assert set(written[0]) == {"part-000000.parquet", "part-000001.parquet", "part-000002.parquet", "selection.json"}
    assert is_current(rows, spec, 0.2, "s", 7)
    assert not is_current(rows, spec, 0.2, "s", 8)
    assert not is_current(rows, SelectSpec(), 0.2, "s", 7)
    assert not is_current(rows, spec, 0.2, "another", 7)
    commit_unit(rows.store, 9, [Stored("new")])
    assert not is_current(rows, spec, 0.2, "s", 7)


def test_an_empty_result_shows_the_funnel_and_touches_nothing() -> None:
    rows = _make(9)
    _select(rows, SelectSpec())
    before = _fates(rows.store)
    with pytest.raises(UserError, match="no sample is left") as caught:
        _select(rows, SelectSpec(where={"small": "width < 2", "large": "width > 3"}))
    assert "small" in str(caught.value)
    assert "curate.select.where." in str(caught.value)
    assert _fates(rows.store) == before


def test_a_mistake_is_found_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="did you mean 'width'"):
        _select(_make(1), SelectSpec(dedup=DedupSpec(keep="wdith")))


def test_the_funnel_in_words() -> None:
    rows = _make(3)
    lines = "\n".join(_select(rows, SelectSpec(where={"good": "score in top 50%"})).lines())
    assert "(score in top 50%)" in lines
    assert "the threshold of score is" in lines
    assert "duplicate_image" in lines
