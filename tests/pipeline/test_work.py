"""Units against a real server with the web's faults: each row's outcome is the expected one, and bytes repeat."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.demo.server import start_server
from pipeline import Candidate, Filter, register
from pipeline.funnel import read_funnel
from pipeline.inputs.plan import extend_plan
from pipeline.inputs.units import Row, Unit
from pipeline.ledger import LEDGER_SCHEMA, read_commit
from pipeline.processes import forget
from pipeline.recipe import FetchSpec, IngestSpec
from pipeline.shards import Sample, iter_samples, parse_sample
from pipeline.store import Store
from pipeline.work import UnitReport, run_unit

MakeTable = Callable[[str, Path], Path]
MakeSpec = Callable[..., IngestSpec]

OUTCOME_OF = {
    "ok": ("success", ""),
    "noai": ("rejected", "opt_out_noai"),
    "dead": ("failed", "http_404"),
    "refused": ("failed", "connect"),
    "error": ("failed", "http_503"),
    "slow": ("failed", "timeout"),
    "truncated": ("failed", "truncated"),
    "html": ("failed", "not_image"),
    "duplicate_row": ("success", ""),  # unless its twin stands before it in the same unit
    "duplicate_image": ("success", ""),
    "empty_caption": ("rejected", "caption_empty"),
}


@dataclass(frozen=True)
class Ingested:
    """The fixture corpus's URL table, ingested unit by unit in a plain loop."""

    rows: list[dict[str, Any]]
    spec: IngestSpec
    units: list[Unit]
    store: Store
    reports: list[UnitReport]

    def ledger(self, unit: Unit) -> list[dict[str, Any]]:
        return list(self.store.read_table(f"ledger/{unit.name}.parquet").to_pylist())

    def samples(self, unit: Unit) -> list[Sample]:
        tar = read_commit(self.store, unit.name).raw
        return list(iter_samples(io.BytesIO(self.store.read(tar))))


@pytest.fixture(scope="module")
def ingested(
    server_url: str, url_table: MakeTable, ingest_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory
) -> Ingested:
    folder = tmp_path_factory.mktemp("ingested")
    path = url_table(server_url, folder)
    spec = ingest_spec(path)
    store = Store(str(folder / "store"))
    units = list(extend_plan(store, spec.source, spec.unit_samples).iter_units())
    reports = [run_unit(unit, spec, store) for unit in units]
    return Ingested(pq.read_table(path).to_pylist(), spec, units, store, reports)


def _files(store: Store) -> dict[str, bytes]:
    folder = Path(store.root)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _run_rows(
    folder: Path, spec: IngestSpec, columns: dict[str, Any]
) -> tuple[UnitReport, list[dict[str, Any]], Store]:
    """One unit of the given rows under a recipe: its report, its ledger and the store."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    source = spec.source.model_copy(update={"urls": str(folder / "rows.parquet")})
    spec = spec.model_copy(update={"source": source})
    store = Store(str(folder / "rows-store"))
    (unit,) = extend_plan(store, source, 1000).iter_units()
    report = run_unit(unit, spec, store)
    name = f"ledger/{unit.name}.parquet"
    return report, store.read_table(name).to_pylist() if store.exists(name) else [], store


# ---------------------------------------------------------------- the whole table


def test_every_row_comes_to_its_expected_outcome(ingested: Ingested) -> None:
    rows = iter(ingested.rows)
    for unit in ingested.units:
        seen: set[str] = set()
        for entry in ingested.ledger(unit):
            row = next(rows)
            wanted = OUTCOME_OF[row["expected"]]
            key = Row(row["url"], row["caption"]).key
            if row["expected"] != "empty_caption":
                wanted = ("rejected", "duplicate_row") if key in seen else wanted
                seen.add(key)
            assert (entry["key"], entry["url"]) == (key, row["url"])
            assert (entry["status"], entry["error_message"]) == wanted, row
    assert next(rows, None) is None
    assert {row["expected"] for row in ingested.rows} == OUTCOME_OF.keys()


def test_seen_is_success_and_rejected_and_failed_in_every_unit(ingested: Ingested) -> None:
    totals: Counter[str] = Counter()
    for unit, report in zip(ingested.units, ingested.reports, strict=True):
        ledger = ingested.ledger(unit)
        counts = Counter(entry["status"] for entry in ledger)
        assert report.committed
        assert unit.num_rows == len(ledger) == report.num_rows
        assert counts.total() == counts["success"] + counts["rejected"] + counts["failed"]
        assert report.num_success == counts["success"] == len(ingested.samples(unit))
        totals.update(counts)
    funnel = read_funnel(ingested.store)
    assert funnel.seen == len(ingested.rows) == funnel.success + funnel.num_rejected + funnel.num_failed
    assert totals == {"success": funnel.success, "rejected": funnel.num_rejected, "failed": funnel.num_failed}


def test_the_ledger_finds_each_sample_and_the_sample_carries_its_row(ingested: Ingested, fixture_corpus: Path) -> None:
    rows = iter(ingested.rows)
    for unit in ingested.units:
        record = read_commit(ingested.store, unit.name)
        tar = ingested.store.read(record.raw)
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (record.num_bytes, record.sha256)
        for entry in ingested.ledger(unit):
            row = next(rows)
            if entry["status"] != "success":
                assert (entry["offset"], entry["size"]) == (None, None)
                continue
            sample = parse_sample(tar[entry["offset"] : entry["offset"] + entry["size"]])
            original = (fixture_corpus / row["file"]).read_bytes()
            assert (sample.key, sample.caption) == (entry["key"], row["caption"])
            assert sample.meta["sha256"] == entry["sha256"] == hashlib.sha256(original).hexdigest()
            carried = ("url", "file", "class_name", "source", "licence", "origin", "subject", "expected")
            assert {name: sample.meta[name] for name in carried} == {name: row[name] for name in carried}
            sizes = ("width", "height", "original_width", "original_height")
            assert [sample.meta[name] for name in sizes] == [entry[name] for name in sizes]
            assert (entry["original_width"], entry["original_height"]) == (row["width"], row["height"])


def test_the_ledger_has_its_schema(ingested: Ingested) -> None:
    assert ingested.store.read_table("ledger/u00000000.parquet").schema.equals(LEDGER_SCHEMA)


def test_the_order_of_units_and_running_one_twice_change_no_byte(ingested: Ingested, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    for unit in [*reversed(ingested.units), ingested.units[0]]:
        run_unit(unit, ingested.spec, store)
    again, before = _files(store), {n: b for n, b in _files(ingested.store).items() if not n.startswith("plan/")}
    assert again.keys() == before.keys()
    assert [name for name in before if again[name] != before[name]] == []


# ---------------------------------------------------------------- a server that is down


def test_a_server_that_is_down_leaves_the_unit_pending_and_later_it_is_done(
    fixture_corpus: Path, url_table: MakeTable, ingest_spec: MakeSpec, tmp_path: Path
) -> None:
    with start_server(fixture_corpus) as base_url:
        pass
    spec = ingest_spec(url_table(base_url, tmp_path), 20)
    store = Store(str(tmp_path / "store"))
    unit = next(extend_plan(store, spec.source, spec.unit_samples).iter_units())
    report = run_unit(unit, spec, store)
    assert not report.committed
    assert report.num_success == 0
    assert "most often " in report.message
    assert [name for name in _files(store) if not name.startswith("plan/")] == []
    forget()  # that the host is down
    with start_server(fixture_corpus, int(base_url.rsplit(":", 1)[1])):
        assert run_unit(unit, spec, store).committed
    assert store.names("ledger", "") == ["u00000000.parquet"]


@pytest.mark.parametrize(("fetched_at_least", "committed"), [(0.5, True), (0.51, False), (0.0, True)])
def test_a_unit_is_accepted_from_the_wanted_share_on(
    server_url: str, ingest_spec: MakeSpec, tmp_path: Path, fetched_at_least: float, committed: bool
) -> None:
    # Answered: image, opt-out, 404, page. Not answered: two 503, a cut body, a refusal. Not asked: an empty caption.
    routes = ["img", "noai", "dead", "html", "error", "truncated", "error"]
    urls = [f"{server_url}/{route}/{number:05d}.webp" for number, route in enumerate(routes)] + ["http://127.0.0.1:1/a"]
    columns = {"url": [*urls, urls[0]], "caption": ["c"] * len(urls) + [" "]}
    spec = ingest_spec(Path("-"), fetched_at_least=fetched_at_least)
    report, ledger, _ = _run_rows(tmp_path, spec, columns)
    assert report.committed is committed
    assert len(ledger) == (9 if committed else 0)


# ---------------------------------------------------------------- single rules


def test_captions_are_normalised_in_white_space_only(server_url: str, ingest_spec: MakeSpec, tmp_path: Path) -> None:
    columns = {"url": [f"{server_url}/img/00000.webp"], "caption": ["  A\u00a0Cat,\n\n\ton  a\rmat. "]}
    _, (entry,), store = _run_rows(tmp_path, ingest_spec(Path("-")), columns)
    assert entry["caption"] == "A Cat, on a mat."
    tar = read_commit(store, "u00000000").raw
    assert [sample.caption for sample in iter_samples(io.BytesIO(store.read(tar)))] == ["A Cat, on a mat."]


def test_no_url_however_odd_stops_its_unit(server_url: str, ingest_spec: MakeSpec, tmp_path: Path) -> None:
    reason_of = {
        "": "url_invalid",
        "ftp://127.0.0.1/a.jpg": "url_not_http",
        "images/a.jpg": "url_invalid",
        "http://": "url_invalid",
        "http://[::1/a.jpg": "url_invalid",
        "http://127.0.0.1:99999/a.jpg": "url_invalid",
        "http://a..b/a.jpg": "url_invalid",
        f"http://{'a' * 70}.example/a.jpg": "url_invalid",
        f"{server_url}/img/00000.webp": "",
    }
    columns = {"url": list(reason_of), "caption": ["c"] * len(reason_of)}
    _, ledger, _ = _run_rows(tmp_path, ingest_spec(Path("-"), fetched_at_least=0.0), columns)
    assert {entry["url"]: entry["error_message"] for entry in ledger} == reason_of


def test_a_caption_that_is_not_utf8_is_rejected(server_url: str, ingest_spec: MakeSpec, tmp_path: Path) -> None:
    columns = {"url": [f"{server_url}/img/00000.webp"] * 2, "caption": pa.array([b"\xff", b"ok"])}
    _, ledger, _ = _run_rows(tmp_path, ingest_spec(Path("-")), columns)
    assert [(e["status"], e["error_message"]) for e in ledger] == [("rejected", "caption_not_utf8"), ("success", "")]


def test_a_503_is_tried_again_as_often_as_the_recipe_says(
    fixture_corpus: Path, ingest_spec: MakeSpec, tmp_path: Path
) -> None:
    once = ingest_spec(Path("-"), fetched_at_least=0.0)
    never = once.model_copy(update={"fetch": once.fetch.model_copy(update={"retries": 0})})
    with start_server(fixture_corpus) as url:
        _, (first,), _ = _run_rows(tmp_path / "never", never, {"url": [f"{url}/flaky/00000.webp"], "caption": ["c"]})
        _, (second,), _ = _run_rows(tmp_path / "once", once, {"url": [f"{url}/flaky/00001.webp"], "caption": ["c"]})
    assert (first["status"], first["error_message"]) == ("failed", "http_503")
    assert second["status"] == "success"


@pytest.mark.parametrize(
    ("fetch", "route", "outcome"),
    [
        ({"obey": ()}, "noai", ("success", "")),
        ({"max_bytes": 100}, "img", ("failed", "too_big")),
        ({"timeout_s": 1.0}, "slow", ("failed", "timeout")),
    ],
)
def test_limits_of_the_recipe(
    server_url: str, ingest_spec: MakeSpec, tmp_path: Path, fetch: dict[str, Any], route: str, outcome: tuple[str, str]
) -> None:
    spec = ingest_spec(Path("-"), fetched_at_least=0.0).model_copy(
        update={"fetch": FetchSpec(allow_addresses=("127.0.0.0/8",), **fetch)}
    )
    columns = {"url": [f"{server_url}/{route}/00000.webp"], "caption": ["c"]}
    _, (entry,), _ = _run_rows(tmp_path, spec, columns)
    assert (entry["status"], entry["error_message"]) == outcome


@register("test_raises_on_dogs")
class RaisesOnDogs(Filter):
    def reject(self, candidate: Candidate) -> str | None:
        if "dog" in candidate.caption:
            raise ZeroDivisionError
        return "is_a_cat" if "cat" in candidate.caption else None


def test_a_filter_rejects_and_its_bug_fails_the_row_alone(
    server_url: str, ingest_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = ingest_spec(Path("-"), fetched_at_least=0.0).model_copy(update={"filters": ({"test_raises_on_dogs": None},)})
    columns = {"url": [f"{server_url}/img/00000.webp"] * 3, "caption": ["a dog", "a cat", "a cow"]}
    _, ledger, store = _run_rows(tmp_path, spec, columns)
    assert [(entry["status"], entry["error_message"]) for entry in ledger] == [
        ("failed", "filter_ZeroDivisionError"),
        ("rejected", "is_a_cat"),
        ("success", ""),
    ]
    assert [entry["original_width"] for entry in ledger] == [72, 72, 72]
    assert [entry["offset"] for entry in ledger] == [None, None, 0]
    tar = read_commit(store, "u00000000").raw
    assert [sample.key for sample in iter_samples(io.BytesIO(store.read(tar)))] == [ledger[2]["key"]]
