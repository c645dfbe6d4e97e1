"""Failed rows get new units: by class, once per retry, with all they had, and again where they fail again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import units_of, write_pairs, write_parquet

from pipeline.errors import UserError
from pipeline.inputs.plan import extend_plan, stage_retry
from pipeline.inputs.retry import matches
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.units import Row, Unit, read_rows
from pipeline.outcomes import find_reason
from pipeline.store import Store

UNIT_SAMPLES = 4


def _commit(store: Store, unit: Unit, spec: SourceSpec, reasons: Mapping[str, str]) -> None:
    """A ledger in which rows fail by their URL, and all others succeed."""
    rows = read_rows(unit, spec)
    messages = [reasons.get(row.url, "") for row in rows]
    statuses = [find_reason(message).status if message else "success" for message in messages]
    labels = [f"{status}:{message}" if message else status for status, message in zip(statuses, messages, strict=True)]
    table = pa.table({"key": [row.key for row in rows], "status": statuses, "error_message": messages})
    content = {"reasons": {label: labels.count(label) for label in labels}}
    store.write_table(f"ledger/{unit.name}.parquet", table.replace_schema_metadata({"genlip": json.dumps(content)}))


def _retried(store: Store, spec: SourceSpec, units: Sequence[Unit]) -> list[tuple[str, str]]:
    return [(row.url, row.from_reason) for unit in units for row in read_rows(unit, spec)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def spec(tmp_path: Path) -> SourceSpec:
    """Ten rows u0 … u9, three units of them."""
    columns = {
        "url": [f"u{n}" for n in range(10)],
        "caption": ["c"] * 10,
        "id": [f"id-{n}" for n in range(10)],
        "size": [0.5] * 10,
        "faces": [[[0.0, 0.0, 0.5, 1.0]]] * 10,
    }
    return SourceSpec(urls=write_parquet(tmp_path / "t.parquet", columns), uid="id", boxes="faces")


def test_rows_of_the_classes_get_units_of_their_own_with_all_they_had(store: Store, spec: SourceSpec) -> None:
    units = units_of(store, spec, UNIT_SAMPLES)
    for unit in units:
        _commit(
            store,
            unit,
            spec,
            {"u1": "timeout", "u2": "http_404", "u5": "http_503", "u6": "robots_txt", "u9": "timeout"},
        )
    assert stage_retry(store, spec, UNIT_SAMPLES, ["timeout", "http_5xx"]) == 3
    plan = extend_plan(store, spec, UNIT_SAMPLES)
    (retry,) = plan.iter_units(len(units))
    assert (retry.kind, retry.number, retry.num_rows, plan.num_rows) == ("retry", 3, 3, 10)
    assert _retried(store, spec, [retry]) == [("u1", "timeout"), ("u5", "http_503"), ("u9", "timeout")]
    sources = {row.url: row for unit in units for row in read_rows(unit, spec)}
    for row in read_rows(retry, spec):
        source = sources[row.url]
        assert row == Row(
            source.url, source.caption, source.uid, source.meta, "", source.boxes, from_reason=row.from_reason
        )
        assert row.key == source.key
        assert (row.uid, row.meta["size"], row.boxes) == (f"id-{row.url[1:]}", 0.5, ((0.0, 0.0, 0.5, 1.0),))


def test_what_a_retry_holds_is_not_taken_again_and_other_classes_are(store: Store, spec: SourceSpec) -> None:
    units = units_of(store, spec, UNIT_SAMPLES)
    for unit in units:
        _commit(store, unit, spec, {"u1": "timeout", "u2": "http_404", "u5": "dns_fail"})
    assert stage_retry(store, spec, UNIT_SAMPLES, ["timeout"]) == 1
    assert stage_retry(store, spec, UNIT_SAMPLES, ["timeout"]) == 0
    assert stage_retry(store, spec, UNIT_SAMPLES, ["transient"]) == 1
    assert stage_retry(store, spec, UNIT_SAMPLES, ["all"]) == 1
    assert stage_retry(store, spec, UNIT_SAMPLES, ["all"]) == 0
    plan = extend_plan(store, spec, UNIT_SAMPLES)
    assert _retried(store, spec, list(plan.iter_units(3))) == [
        ("u1", "timeout"),
        ("u5", "dns_fail"),
        ("u2", "http_404"),
    ]
    assert len(plan.batches) == 4


def test_a_row_that_fails_in_its_retry_can_be_retried_again(store: Store, spec: SourceSpec) -> None:
    for unit in units_of(store, spec, UNIT_SAMPLES):
        _commit(store, unit, spec, {"u1": "timeout", "u2": "timeout"})
    for _ in range(3):
        assert stage_retry(store, spec, UNIT_SAMPLES, ["timeout"]) in (1, 2)
        *_, last = extend_plan(store, spec, UNIT_SAMPLES).iter_units()
        assert stage_retry(store, spec, UNIT_SAMPLES, ["timeout"]) == 0  # the retry is still pending
        _commit(store, last, spec, {"u2": "timeout"})
    assert _retried(store, spec, [last]) == [("u2", "timeout")]
    assert read_rows(last, spec)[0].key == "id-2"


def test_a_unit_that_was_pending_at_the_first_retry_is_not_forgotten(store: Store, spec: SourceSpec) -> None:
    first, second, third = units_of(store, spec, UNIT_SAMPLES)
    _commit(store, first, spec, {"u1": "timeout"})
    _commit(store, third, spec, {"u9": "timeout"})
    assert stage_retry(store, spec, UNIT_SAMPLES, ["timeout"]) == 2
    _commit(store, second, spec, {"u5": "timeout"})
    assert stage_retry(store, spec, UNIT_SAMPLES, ["timeout"]) == 1
    *_, last = extend_plan(store, spec, UNIT_SAMPLES).iter_units()
    assert _retried(store, spec, [last]) == [("u5", "timeout")]


def test_nothing_to_retry_writes_nothing(store: Store, spec: SourceSpec) -> None:
    for unit in units_of(store, spec, UNIT_SAMPLES):
        _commit(store, unit, spec, {"u6": "robots_txt"})
    assert stage_retry(store, spec, UNIT_SAMPLES, ["all"]) == 0
    assert store.names("plan", "") == ["batch-00000.parquet"]


def test_a_repeated_row_is_retried_once_and_a_row_without_url_never(tmp_path: Path, store: Store) -> None:
    columns = {"url": ["u", "u", "", "v"], "caption": ["c"] * 4}
    spec = SourceSpec(urls=write_parquet(tmp_path / "t.parquet", columns))
    (unit,) = units_of(store, spec)
    table = pa.table(
        {
            "key": [row.key for row in read_rows(unit, spec)],
            "status": ["failed", "rejected", "failed", "success"],
            "error_message": ["timeout", "duplicate_row", "url_invalid", ""],
        }
    )
    content = json.dumps({"reasons": {"failed:timeout": 1, "failed:url_invalid": 1}})
    store.write_table(f"ledger/{unit.name}.parquet", table.replace_schema_metadata({"genlip": content}))
    assert stage_retry(store, spec, 1000, ["all"]) == 1
    *_, retry = extend_plan(store, spec, 1000).iter_units()
    assert _retried(store, spec, [retry]) == [("u", "timeout")]


@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_rows_of_copied_tables_are_retried_and_new_files_still_extend(
    tmp_path: Path, store: Store, kind: str, is_grouped: bool
) -> None:
    pairs = [{"url": f"http://h{n % 3}.test/{n}", "caption": "ä", "more": str(n)} for n in range(10)]
    write_pairs(tmp_path / f"a.{kind}", pairs)
    spec = SourceSpec(urls=f"{tmp_path}/*.{kind}", group_by_host=is_grouped)
    failed = {pair["url"]: "connect_timeout" for pair in pairs[3:8]}
    for unit in units_of(store, spec, UNIT_SAMPLES):
        _commit(store, unit, spec, failed)
    assert stage_retry(store, spec, UNIT_SAMPLES, ["connect"]) == 5
    write_pairs(tmp_path / f"b.{kind}", pairs[:1])
    plan = extend_plan(store, spec, UNIT_SAMPLES)
    *units, new = plan.iter_units(plan.batches[1].first_unit)
    assert [unit.num_rows for unit in units] == [4, 1]
    rows = [row for unit in units for row in read_rows(unit, spec)]
    assert {row.url: row.meta["more"] for row in rows} == {pair["url"]: pair["more"] for pair in pairs[3:8]}
    assert (new.kind, new.num_rows, plan.num_rows) == ("urls", 1, 11)


def test_a_class_that_is_no_failure_is_refused(store: Store, spec: SourceSpec) -> None:
    extend_plan(store, spec, UNIT_SAMPLES)
    for name in ("timeuot", "robots_txt", "http_9", "success", ""):
        with pytest.raises(UserError, match=f"no failure is called '{name}'") as caught:
            stage_retry(store, spec, UNIT_SAMPLES, [name])
        assert "timeout" in caught.value.message


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("http", {"http_404", "http_503"}, {"timeout"}),
        ("http_5xx", {"http_500", "http_599"}, {"http_404", "http"}),
        ("http_404", {"http_404"}, {"http_403"}),
        ("dns", {"dns_nx", "dns_fail", "dns_timeout"}, {"connect"}),
        ("connect", {"connect", "connect_timeout"}, {"timeout"}),
        ("timeout", {"timeout"}, {"connect_timeout", "dns_timeout"}),
        ("transient", {"timeout", "http_503", "http_429", "spilled"}, {"http_404", "not_image", "dns_nx"}),
        ("all", {"timeout", "http_404", "not_image", "adopted_x"}, set()),
    ],
)
def test_a_class_stands_for_its_failures(name: str, yes: set[str], no: set[str]) -> None:
    assert {reason for reason in yes | no if matches(reason, name)} == yes


@given(st.sampled_from(["timeout", "http_404", "dns_nx", "filter_TypeError", "adopted_gone"]))
def test_every_failure_is_of_its_own_class(reason: str) -> None:
    assert matches(reason, reason)
    assert matches(reason, reason.split("_")[0])
