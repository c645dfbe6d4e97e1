"""Ingests a URL table with genlip in one process: `python -m tests.bench.ingest_ours URLS OUT CA_FILE [RESOLVER]`."""

import sys

from jobs.leaving import leave
from pipeline.inputs.plan import extend_plan
from pipeline.recipe import FetchSpec, ImageSpec, IngestSpec, SourceSpec
from pipeline.store import open_store
from pipeline.work import run_unit
from tests.bench.ingest_settings import JPEG_QUALITY, SHARD_SAMPLES, SHORTEST_SIDE_PX, TIMEOUT_S


def main(urls: str, out: str, ca_file: str, resolver: str = "") -> None:
    """Runs the units of the plan one after the other, with the defaults for all that is not said here."""
    spec = IngestSpec(
        source=SourceSpec(urls=urls),
        unit_samples=SHARD_SAMPLES,
        fetch=FetchSpec(
            timeout_s=TIMEOUT_S,
            allow_addresses=("127.0.0.0/8",),
            ca_file=ca_file,
            resolvers=(resolver,) if resolver else (),
        ),
        image=ImageSpec(resize="keep_ratio", size_px=SHORTEST_SIDE_PX, quality=JPEG_QUALITY),
    )
    store = open_store(out, spec.content())
    for unit in extend_plan(store, spec.source, spec.unit_samples).iter_units():
        report = run_unit(unit, spec, store)
        print(unit.name, report.reasons, report.message)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
