"""The stream benchmark's own parts: its data sets say what they hold, and its arithmetic and its errors are right."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import Store
from tests.bench import stream_ours
from tests.bench.harness import BenchError
from tests.bench.stream import extrapolate, run, run_module
from tests.bench.stream_peers.floor import tar_samples
from tests.bench.stream_store import PHOTOS, LongIndex, make_long_index, make_run, repeated
from train.data.dataset import first_samples, open_dataset
from train.recipe import TrainJob
from train.setup import set_up

NUM_IMAGES = 12
SHARES = (0.0, 0.5, 0.99)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("bench"), NUM_IMAGES)


def _store(run_dir: Path) -> Store:
    return Store(TrainJob.read(run_dir).store)


def test_the_floor_and_the_peers_read_the_samples_that_ours_reads(run_dir: Path) -> None:
    store = _store(run_dir)
    ours = [(sample.image, sample.caption) for sample in first_samples(open_dataset(store, PHOTOS))]
    assert len(ours) == NUM_IMAGES
    assert list(tar_samples([Path(store.path(f"shards/{PHOTOS}"), "shard-000000.tar")])) == ours


def test_a_repeated_dataset_has_the_photos_many_times(run_dir: Path) -> None:
    setup = set_up(run_dir, repeated(run_dir, num_shards=3, times=5))
    dataset = setup.sources[0].dataset
    assert (dataset.num_shards, dataset.num_samples) == (3, 3 * 5 * NUM_IMAGES)
    samples = list(first_samples(dataset))
    assert samples == samples[:NUM_IMAGES] * 15


def test_the_long_index_can_be_planned_where_it_was_asked_for(run_dir: Path, tmp_path: Path) -> None:
    size = LongIndex(num_shards=60, shard_samples=5_000)
    job = make_long_index(run_dir, tmp_path, size, SHARES)
    found = stream_ours.seek(run_dir, job)
    assert set_up(run_dir, job).sources[0].dataset.num_samples == size.num_samples
    assert 0 < found["opened_s"] < found["plan_s"]
    assert 0 < found["state_bytes"] < 1_000


def test_our_side_reads_from_the_middle_of_a_pass(run_dir: Path, tmp_path: Path) -> None:
    job = repeated(run_dir, num_shards=40, times=200)
    assert stream_ours.first(run_dir, job, tmp_path, share=0.99)["first_s"] > 0


@given(
    start=st.floats(0, 1e3),
    slope=st.floats(0, 1e-3),
    sizes=st.lists(st.integers(1, 10**7), min_size=2, max_size=4, unique=True).map(sorted),
)
def test_extrapolation_follows_a_line(start: float, slope: float, sizes: list[int]) -> None:
    values = [start + slope * size for size in sizes]
    assert extrapolate(sizes, values, 8 * 10**9) == pytest.approx(start + slope * 8e9, rel=1e-3, abs=1e-2)


def test_a_side_that_fails_is_named_with_its_reason() -> None:
    with pytest.raises(BenchError, match=r"stream_peers\.nosuch .*No module named"):
        run_module(sys.executable, "tests.bench.stream_peers.nosuch", "read")


def test_a_pass_that_is_too_short_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--images", "100"])
    assert "--images 100" in capsys.readouterr().err
