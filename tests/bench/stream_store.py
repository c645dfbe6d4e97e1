"""Makes the small store that the stream benchmark reads, with the code of the commands but in a plain loop."""

from collections.abc import Sequence
from pathlib import Path

from jobs.demo.server import start_server
from jobs.recipe import Recipe, check_recipe
from pipeline.inputs.plan import extend_plan
from pipeline.store import open_store
from pipeline.work import run_unit
from tests.bench.photos import make_photos, write_urls
from tests.stores import curate_in_turn
from tests.train.train_runs import begin_run

PHOTO_SIDE_PX = (256, 384)
STORED_SIDE_PX = 256
SHARD_SAMPLES = 250
ROW_TOKENS = 16_384
"""The recipe's default. One lane, so that a step is one row, which is close to the peer's batch of 64 samples."""


def make_run(folder: Path, num_images: int, captions: Sequence[str] = ()) -> Path:
    """Ingests photos, shards them and counts their captions.

    Args:
        folder: of store and run.
        num_images: how many photos.
        captions: of each; those that `make_photos` writes where there are none.

    Returns:
        The run folder, ready for `train.setup.set_up`.
    """
    shipped = make_photos(folder / "corpus", num_images, PHOTO_SIDE_PX)
    recipe = _recipe(folder)
    store = open_store(recipe.store, recipe.ingest.content())
    with start_server(folder / "corpus") as base_url:
        write_urls(folder / "urls.parquet", base_url, list(captions) or shipped)
        for unit in extend_plan(store, recipe.ingest.source, recipe.ingest.unit_samples).iter_units():
            run_unit(unit, recipe.ingest, store)
    curate_in_turn(store, recipe.curate, recipe.shards, recipe.seed)
    return begin_run(recipe)


def _recipe(folder: Path) -> Recipe:
    content = {
        "name": "stream",
        "store": str(folder / "store"),
        "runs": str(folder / "runs"),
        "ingest": {
            "source": {"urls": str(folder / "urls.parquet")},
            "fetch": {"allow_addresses": ["127.0.0.0/8"], "per_host": 64},
            "image": {"size_px": STORED_SIDE_PX},
        },
        "shards": {"name": "bench", "shard_samples": SHARD_SAMPLES},
        "train": {"length": 1, "lanes": 1, "row_tokens": ROW_TOKENS},
    }
    return check_recipe(content, "the stream benchmark's recipe")
