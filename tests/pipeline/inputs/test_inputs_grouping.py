"""Grouping by host is a permutation, the same every time, that keeps domains together and spreads the largest."""

import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import rows_of, units_of, write_pairs, write_parquet

from pipeline.inputs import grouping, staging, survey
from pipeline.inputs.grouping import CHUNKS_PER_UNIT, group_by_host
from pipeline.inputs.hosts import Grouper, host_of
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.units import read_rows
from pipeline.store import Store


def _units(urls: Sequence[str], unit_samples: int, block_rows: int = 1000) -> list[list[str]]:
    table = pa.table({"url": pa.array([url.encode() for url in urls], pa.binary()), "n": range(len(urls))})
    blocks = (table.slice(first, block_rows) for first in range(0, len(urls), block_rows))
    return [
        [url.decode() for url in unit.column("url").to_pylist()] for unit in group_by_host(blocks, "url", unit_samples)
    ]


def _domains(units: list[list[str]]) -> list[Counter[str]]:
    return [Counter(url.split("/")[2] for url in unit) for unit in units]


urls = st.builds(
    lambda host, path: f"{host}/{path}",
    st.sampled_from(
        ["http://a.test", "https://b.a.test", "http://c.co.uk", "http://10.0.0.1:80", "nonsense", "http://[::1]"]
    ),
    st.integers(0, 9),
)


@settings(max_examples=25)
@given(st.lists(urls, max_size=200), st.integers(1, 60), st.integers(1, 70))
def test_grouping_is_a_permutation_whatever_the_blocks(table: list[str], unit_samples: int, block_rows: int) -> None:
    units = _units(table, unit_samples, block_rows)
    assert Counter(url for unit in units for url in unit) == Counter(table)
    assert all(1 <= len(unit) <= unit_samples for unit in units)
    assert units == _units(table, unit_samples)


def test_rows_of_one_domain_keep_their_order() -> None:
    (unit,) = _units([f"http://www{n % 3}.site{n % 5}.com/{n}" for n in range(90)], 400)
    for site in range(5):
        numbers = [int(url.rsplit("/", 1)[1]) for url in unit if f"site{site}." in url]
        assert numbers == sorted(numbers)
        assert len(numbers) == 18


def _web(num_rows: int) -> list[str]:
    """2,000 light domains of some 5 rows, and three large ones with 10 %, 4 % and 1 % of all rows."""
    chosen = random.Random(0)
    shares = {"large.org": 0.10, "medium.org": 0.04, "small.org": 0.01}
    hosts = chosen.choices(
        [*shares, *(f"light{n}.com" for n in range(2000))],
        [*shares.values(), *(0.85 / 2000 for _ in range(2000))],
        k=num_rows,
    )
    return [f"https://{host}/{n}" for n, host in enumerate(hosts)]


def test_a_light_domain_lies_in_one_unit_and_units_are_nearly_full() -> None:
    units = _units(_web(12_000), 400)
    units_of_domain = Counter(domain for unit in _domains(units) for domain in unit)
    light = {domain: count for domain, count in units_of_domain.items() if domain.startswith("light")}
    assert len(light) > 1900
    assert set(light.values()) == {1}
    assert all(len(unit) >= 400 * (1 - 1 / CHUNKS_PER_UNIT) for unit in units[:-1])


def test_a_large_domain_is_spread_over_all_units_by_its_share() -> None:
    """At most 2 chunks, each a 20th of a unit, beyond the domain's share of all rows."""
    units = _units(_web(12_000), 400)
    chunk_rows = 400 // CHUNKS_PER_UNIT
    for domain, share in (("large.org", 0.10), ("medium.org", 0.04), ("small.org", 0.01)):
        in_unit = [unit[domain] for unit in _domains(units)]
        assert max(in_unit) <= share * 400 + 2 * chunk_rows
        assert sum(count > 0 for count in in_unit) >= min(len(units) - 2, 0.7 * sum(in_unit) / chunk_rows)


def test_a_table_of_one_host_fills_its_units() -> None:
    units = _units([f"https://only.test/{n}" for n in range(1000)], 100)
    assert [len(unit) for unit in units] == [100] * 10


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"Example.COM", "example.com"),
        (b"user:pw@example.com:8080", "example.com"),
        (b"example.com.", "example.com"),
        (b"[2001:DB8::1]:80", "[2001:db8::1]"),
        (b"10.0.0.1", "10.0.0.1"),
        (b"\xff.com", "\ufffd.com"),
        (b"", ""),
    ],
)
def test_the_host_is_found_in_any_authority(authority: bytes, host: str) -> None:
    assert host_of(authority) == host


@pytest.mark.parametrize(
    ("one", "other", "are_together"),
    [
        ("http://a.example.com/1", "https://b.Example.com:444/2", True),
        ("http://a.example.co.uk/", "http://b.example.co.uk/", True),
        ("http://a.co.uk/", "http://b.co.uk/", False),
        ("http://10.0.0.1/", "http://10.0.0.2/", False),
        ("http://x.s3.amazonaws.com/", "http://y.s3.amazonaws.com/", True),
        ("//a.example.com/", "http://example.com", True),
        ("http://bücher.de/", "http://img.bücher.de/", True),
    ],
)
def test_hosts_of_one_registered_domain_are_together(one: str, other: str, are_together: bool) -> None:
    first, second = Grouper(100).number(pa.array([one.encode(), other.encode()]))
    assert bool(first == second) is are_together


def test_buckets_too_large_for_memory_are_dealt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _units(_web(2000), 100)
    monkeypatch.setattr(grouping, "_MAX_BUCKET_BYTES", 500)
    monkeypatch.setattr(grouping, "_MIN_BLOCK_BYTES", 1)
    assert _units(_web(2000), 100) == wanted


def test_domains_beyond_the_cache_are_grouped_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.array([url.encode() for url in _web(2000)])
    wanted = Grouper(10).number(table)
    monkeypatch.setattr("pipeline.inputs.hosts._MAX_CACHED", 3)
    assert np.array_equal(Grouper(10).number(table), wanted)


# ---------------------------------------------------------------- as a part of the plan


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl.gz"])
def test_a_grouped_plan_carries_all_columns_and_is_the_same_bytes_every_time(tmp_path: Path, kind: str) -> None:
    pairs = [{"url": url, "caption": f"c{n}", "more": str(n)} for n, url in enumerate(_web(500))]
    spec = SourceSpec(urls=write_pairs(tmp_path / f"t.{kind}", pairs), group_by_host=True)
    one, other = Store(str(tmp_path / "one")), Store(str(tmp_path / "other"))
    rows = rows_of(one, spec, 40)
    assert sorted((row.url, row.caption, row.meta["more"]) for row in rows) == sorted(
        (pair["url"], pair["caption"], pair["more"]) for pair in pairs
    )
    rows_of(other, spec, 40)
    names = one.names("plan/rows-00000", ".parquet")
    assert names
    assert all(one.read(f"plan/rows-00000/{name}") == other.read(f"plan/rows-00000/{name}") for name in names)


def test_the_units_of_many_parts_hold_their_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_UNITS_PER_PART", 3)
    spec = SourceSpec(
        urls=write_parquet(tmp_path / "t.parquet", {"url": _web(700), "caption": ["c"] * 700}), group_by_host=True
    )
    units = units_of(Store(str(tmp_path / "store")), spec, 50)
    assert len({unit.file for unit in units}) == -(-len(units) // 3)
    assert [len(read_rows(unit, spec)) for unit in units] == [unit.num_rows for unit in units]
    assert sorted(row.url for unit in units for row in read_rows(unit, spec)) == sorted(_web(700))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_large_tables_are_grouped_and_small_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(survey, "GROUP_FROM_ROWS", 100)
    monkeypatch.setattr("pipeline.inputs.plan.GROUP_FROM_ROWS", 100)
    for num_rows, is_grouped in ((99, False), (100, True)):
        table = [{"url": url, "caption": "c"} for url in _web(num_rows)]
        spec = SourceSpec(urls=write_pairs(tmp_path / f"t{num_rows}.{kind}", table))
        rows = [row.url for row in rows_of(Store(str(tmp_path / f"store-{num_rows}")), spec, 10)]
        assert sorted(rows) == sorted(_web(num_rows))
        assert (rows == _web(num_rows)) is not is_grouped


def test_nothing_is_left_on_the_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _units(_web(300), 10)
    units = group_by_host(iter([pa.table({"url": [b"http://a.test/"] * 50})]), "url", 10)
    next(units)
    del units  # as after an error of the one who takes the units
    assert list(tmp_path.iterdir()) == []
