"""img2dataset inside our unit: its pixels, our ledger and commit; and what either wrote is read like the other's."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from pipeline.inputs.plan import extend_plan
from pipeline.ledger import read_commit
from pipeline.recipe import AcceptUnitSpec, FetchSpec, ImageSpec, IngestSpec, SourceSpec
from pipeline.store import Store
from pipeline.work import run_unit

ROUTES = ("img", "dead", "html", "noai")
NUMBERS = range(12)


def ingest(folder: Path, urls: Path, engine: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ledger, and samples as open_clip's loader reads them."""
    spec = IngestSpec(
        source=SourceSpec(urls=str(urls)),
        fetch=FetchSpec(engine=engine, in_flight=8, allow_addresses=("127.0.0.0/8",), spill=0),  # type: ignore[arg-type]
        image=ImageSpec(resize="keep_ratio", size_px=48),
        filters=({"caption_words": {"min": 2}}, {"image_size": {"min_side_px": 40}}),
        accept_unit_if=AcceptUnitSpec(fetched_at_least=0),
    )
    store = Store(str(folder / engine))
    (unit,) = extend_plan(store, spec.source, spec.unit_samples).iter_units()
    assert run_unit(unit, spec, store).committed
    ledger = store.read_table(f"ledger/{unit.name}.parquet").to_pylist()
    dataset = wds.WebDataset(store.path(read_commit(store, unit.name).raw), shardshuffle=False).decode("pil")
    samples = dataset.rename(image="jpg;png;jpeg;webp", text="txt", json="json")
    return ledger, list(samples)


@pytest.mark.slow
def test_both_engines_keep_the_same_rows_at_the_same_size(server_url: str, tmp_path: Path) -> None:
    urls = [f"{server_url}/{route}/{number:05d}.webp" for number in NUMBERS for route in ROUTES]
    captions = [f"{route} number {number}" for number in NUMBERS for route in ROUTES]
    captions[0] = "short"
    pq.write_table(pa.table({"url": urls, "caption": captions, "n": range(len(urls))}), tmp_path / "urls.parquet")
    (ours, our_samples), (theirs, their_samples) = (
        ingest(tmp_path, tmp_path / "urls.parquet", engine) for engine in ("genlip", "img2dataset")
    )
    assert ours[0]["error_message"] == theirs[0]["error_message"] == "caption_too_short"
    for one, other in zip(ours, theirs, strict=True):
        assert (one["key"], one["status"]) == (other["key"], other["status"]), one["url"]
        assert one["sha256"] == other["sha256"]
        for name in ("width", "height", "original_width", "original_height"):
            assert one[name] == other[name]
    reasons = {row["url"].split("/")[3]: (row["status"], row["error_message"]) for row in theirs}
    assert reasons["dead"] == ("failed", "http_404")
    assert reasons["html"] == ("failed", "undecodable")
    assert reasons["noai"][0] == "rejected"
    assert len(our_samples) == len(their_samples) == len(NUMBERS) - 1
    for one, other in zip(our_samples, their_samples, strict=True):
        assert (one["__key__"], one["text"]) == (other["__key__"], other["text"])
        assert one["image"].size == other["image"].size
        assert one["json"]["n"] == other["json"]["n"]
