"""`genlip inspect STORE`: what is in a store, from its files alone."""

import json
from typing import Any

from jobs.console import say, table
from jobs.ingest_report import REPORT
from pipeline.annotate.columns import annotated_units, read_annotations, read_stored
from pipeline.dataset_files import index_file
from pipeline.errors import UserError
from pipeline.funnel import Funnel, read_funnel
from pipeline.inputs.committed import NumberSet, committed
from pipeline.inputs.rows import name_of
from pipeline.store import STORE_FILE, Store, open_fs

_MAX_CHARACTERS = 76


def inspect_store(url: str) -> int:
    """Say what a store holds. Returns the exit code.

    Raises:
        UserError: There is no store at the URL.
    """
    store = Store(url)
    if not store.exists(STORE_FILE):
        raise UserError("not a store", where=url, why=f"it has no {STORE_FILE}", next_step="run: genlip ingest RECIPE")
    units = committed(store)
    version = store.read_json(STORE_FILE)["format_version"]
    say(f"{url}: store, format {version}, {len(units):,} units, {_size(_raw_bytes(url))} of raw files")
    if not units:
        say("nothing is committed yet; run: genlip ingest RECIPE")
        return 0
    say()
    say(table(_status_rows(_funnel(store))))
    folders = _annotations(store, units)
    _selections(store)
    _datasets(store)
    _first_sample(store, units, folders)
    return 0


def _funnel(store: Store) -> Funnel:
    """As ingestion's report has it, which is one file; added up from every unit's ledger where there is none."""
    if not store.exists(REPORT):
        return read_funnel(store)
    known = store.read_json(REPORT)
    return Funnel(known["seen"], known["success"], known["rejected"], known["failed"])


def _status_rows(funnel: Funnel) -> list[list[str]]:
    counts = [("success", funnel.success), ("rejected", funnel.num_rejected), ("failed", funnel.num_failed)]
    rows = [[name, f"{count:,}", f"{count / max(funnel.seen, 1):.1%}"] for name, count in counts]
    return [["rows", "", ""], *rows, ["seen", f"{funnel.seen:,}", ""]]


def _annotations(store: Store, units: NumberSet) -> list[str]:
    """Say which columns there are. Returns their folders."""
    folders = [name for name in store.names("annotations", "") if store.exists(f"annotations/{name}/annotator.json")]
    if folders:
        rows = [["annotations", "units done", "of", "columns"]]
        for folder in folders:
            columns = store.read_json(f"annotations/{folder}/annotator.json")["columns"]
            annotated = annotated_units(store, folder)
            num_done = sum(number in annotated for number in units)
            rows.append([folder, f"{num_done:,}", f"{len(units):,}", ", ".join(columns)])
        width = max(len(row[-1]) for row in rows)
        _say_table([[*row[:-1], row[-1].ljust(width)] for row in rows])
    return folders


def _selections(store: Store) -> None:
    rows = [["selections", "stored", "train", "heldout", "left out"]]
    for name in store.names("selection", ""):
        if store.exists(f"selection/{name}/selection.json"):
            record = store.read_json(f"selection/{name}/selection.json")
            counts, total = record["counts"], record["num_samples"]
            train, heldout = counts.get("train", 0), counts.get("heldout", 0)
            rows.append([name, *(f"{count:,}" for count in (total, train, heldout, total - train - heldout))])
    if len(rows) > 1:
        _say_table(rows)


def _datasets(store: Store) -> None:
    rows = [["datasets", "shards", "samples", "size"]]
    for name in store.names("shards", ""):
        if store.exists(index_file(name)):
            index = store.read_table(index_file(name), ["num_samples", "num_bytes"])
            samples, num_bytes = (sum(index[column].to_pylist()) for column in ("num_samples", "num_bytes"))
            rows.append([name, f"{index.num_rows:,}", f"{samples:,}", _size(num_bytes)])
        else:
            rows.append([name, "unfinished", "", ""])
    if len(rows) > 1:
        _say_table(rows)


def _first_sample(store: Store, units: NumberSet, folders: list[str]) -> None:
    for unit_name in map(name_of, units):
        unit = read_stored(store, unit_name)
        if unit.num_rows:
            break
    else:
        return
    values: dict[str, Any] = {"raw": unit.raw} | unit.rows.slice(0, 1).to_pylist()[0]
    del values["error_message"]
    for folder in folders:
        if store.exists(f"annotations/{folder}/{unit.name}.parquet"):
            values |= read_annotations(store, folder, unit).columns.slice(0, 1).to_pylist()[0]
    say(f"\nfirst sample, of unit {unit.name}")
    width = max(map(len, values))
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        shortened = text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"
        say(f"  {name.ljust(width)}  {' '.join(shortened.split())}")


def _say_table(rows: list[list[str]]) -> None:
    say()
    say(table(rows))


def _raw_bytes(url: str) -> int:
    """From one listing, not from the files."""
    fs, base = open_fs(url)
    folder = f"{base.rstrip('/')}/raw"
    return sum(entry["size"] or 0 for entry in fs.ls(folder, detail=True)) if fs.exists(folder) else 0


def _size(num_bytes: int) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB"
