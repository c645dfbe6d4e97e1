"""Ingests a URL table with genlip in one process: `python -m tests.bench.ingest_ours URLS OUT`."""

import sys

from pipeline.recipe import FetchSpec, ImageSpec, IngestSpec, SourceSpec
from pipeline.sources import plan_units, record_plan
from pipeline.store import open_store
from pipeline.work import run_unit
from tests.bench.ingest_settings import IN_FLIGHT, JPEG_QUALITY, LONGEST_SIDE_PX


def main(urls: str, out: str) -> None:
    """Runs the units of the plan one after the other."""
    spec = IngestSpec(
        source=SourceSpec(urls=urls),
        fetch=FetchSpec(in_flight=IN_FLIGHT),
        image=ImageSpec(longest_side_px=LONGEST_SIDE_PX, jpeg_quality=JPEG_QUALITY),
    )
    units = plan_units(spec.source, spec.unit_samples)
    store = open_store(out, spec.content())
    record_plan(store, units)
    for unit in units:
        run_unit(unit, spec, store)


if __name__ == "__main__":
    main(*sys.argv[1:])
