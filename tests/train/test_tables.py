"""Tables of images as a source: each row group is a shard, and what is read is what stands in the rows."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from range_server import serve_ranges

from pipeline.errors import UserError
from pipeline.foreign_dataset import ForeignSummary, begin_index, finish_index, write_foreign_index
from pipeline.foreign_files import list_row_groups
from pipeline.row_groups import RowGroup, TableColumns
from pipeline.shards import Sample, ShardError
from pipeline.store import Store
from tests.stores import noise
from train.audit import audit_run
from train.data.dataset import Dataset, first_samples, open_dataset, read_samples
from train.data.loader import Loader
from train.data.reading import ReadingSpec, ShardReader
from train.data.row_groups import RowGroupCache
from train.setup import set_up

COLUMNS = TableColumns("image", "text")
GROUP_ROWS = 5
KINDS: dict[str, Callable[[list[bytes | None]], pa.Array]] = {
    "struct": lambda images: pa.array([one and {"bytes": one, "path": "a.jpg"} for one in images]),
    "struct_of_nulls": lambda images: pa.array([{"bytes": one, "path": "a.jpg"} for one in images]),
    "binary": lambda images: pa.array(images, pa.binary()),
    "large_binary": lambda images: pa.array(images, pa.large_binary()),
}


def write_table(path: Path, numbers: range, kind: str = "struct", **options: Any) -> list[Sample]:
    """Write a table of pictures; every seventh row has no image, every eleventh no caption. Returns the samples."""
    images = [None if number % 7 == 3 else noise(number, 32 + number, 24) for number in numbers]
    texts = [[f"thing {number}", None, " "][0 if number % 11 else 1 + number % 2] for number in numbers]
    table = pa.table({"id": list(numbers), "image": KINDS[kind](images), "text": texts})
    pq.write_table(table, path, row_group_size=GROUP_ROWS, **options)
    pairs = enumerate(zip(images, texts, strict=True))
    whole = ((row, image, text) for row, (image, text) in pairs if image and text and text.strip())
    return [Sample(f"{path.stem}-{row}", image, text, {}) for row, image, text in whole]


def index(source: str, store: Store, columns: TableColumns = COLUMNS) -> tuple[list[int], ForeignSummary]:
    """What the verb does, without Ray. Returns the numbers of the row groups that were read as well."""
    groups = list_row_groups(source, store, columns)
    jobs = begin_index(store, "photos", source, columns.caption, groups, columns.image)
    for job in jobs:
        write_foreign_index(job, store)
    return [job.number for job in jobs], finish_index(store, "photos")


def read_all(dataset: Dataset, reader: ShardReader) -> list[Sample]:
    shards = [dataset.shard(number) for number in range(dataset.num_shards)]
    return [dataset.read_sample(reader, shard, row) for shard in shards for row in range(len(shard.keys))]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "tables").mkdir()
    return tmp_path / "tables"


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_with_image_and_caption_is_a_sample(store: Store, tables: Path, kind: str, compression: str) -> None:
    samples = write_table(tables / "a.parquet", range(12), kind, compression=compression)
    samples += write_table(tables / "b.parquet", range(12, 35), kind, compression=compression)
    _, summary = index(f"{tables}/*.parquet", store)
    assert (summary.num_samples, summary.num_shards) == (len(samples), 3 + 5)
    assert summary.left_out == {"no_image": 5, "no_caption": 4}
    dataset = open_dataset(store, "photos")
    assert read_all(dataset, ShardReader(ReadingSpec())) == samples
    assert list(first_samples(dataset)) == samples
    widths = [int(width) for number in range(dataset.num_shards) for width in dataset.shard(number).width_n]
    assert widths == [32 + int(sample.caption.removeprefix("thing ")) for sample in samples]


def test_a_table_at_a_url_is_read_by_a_few_ranges(store: Store, tables: Path) -> None:
    samples = write_table(tables / "a.parquet", range(12))
    with serve_ranges({"/a.parquet": (tables / "a.parquet").read_bytes()}) as (_, url):
        index(f"{url}/a.parquet", store)
        dataset, reader = open_dataset(store, "photos", max_shards_kept=3), ShardReader(ReadingSpec())
        assert read_all(dataset, reader) == samples
        once = reader.counters()
        assert read_all(dataset, reader) == samples
        assert reader.counters() == once
    assert dataset.num_shards < once["requests"] <= 4 * dataset.num_shards  # footer, images, captions


def test_a_run_reads_a_table_beside_its_own_shards(
    make_run: Callable[..., Path], small_store: Path, store: Store, tables: Path
) -> None:
    write_table(tables / "a.parquet", range(40))
    index(f"{tables}/a.parquet", store)
    own, photos = f"{{store: {small_store}/store, dataset: demo, weight: 1}}", "{dataset: photos, weight: 1}"
    run_dir = make_run(f"store={store.root}", f"train.sources={{own: {own}, photos: {photos}}}")
    setup = set_up(run_dir)
    with closing(iter(loader := Loader(setup, run_dir))) as steps:
        keys = [key for batch in islice(steps, 12) for key in batch.keys]
        assert loader.num_bad_samples == 0
    assert any(key.startswith("a-") for key in keys)
    assert audit_run(run_dir).problems == []


# ---------------------------------------------------------------- what is wrong


def test_a_table_that_has_changed_is_not_read_and_indexed_again(store: Store, tables: Path) -> None:
    write_table(tables / "a.parquet", range(12))
    kept = write_table(tables / "b.parquet", range(12, 20))
    index(f"{tables}/*.parquet", store)
    changed = write_table(tables / "a.parquet", range(100, 112))
    os.utime(tables / "a.parquet", ns=(1, 1))
    dataset = open_dataset(store, "photos")
    with pytest.raises(ShardError, match=r"changed since it was indexed: .*a\.parquet"):
        dataset.read_sample(ShardReader(ReadingSpec()), dataset.shard(0), 0)
    with pytest.raises(UserError, match=r"cannot be read\n.*a\.parquet#0\n.*changed since"):
        next(read_samples(dataset, 0))
    assert index(f"{tables}/*.parquet", store)[0] == [0, 1, 2]
    assert list(first_samples(open_dataset(store, "photos"))) == changed + kept


def test_a_table_that_is_gone(store: Store, tables: Path) -> None:
    write_table(tables / "a.parquet", range(12))
    index(f"{tables}/a.parquet", store)
    (tables / "a.parquet").unlink()
    dataset = open_dataset(store, "photos")
    with pytest.raises(FileNotFoundError):
        dataset.read_sample(ShardReader(ReadingSpec()), dataset.shard(0), 0)
    with pytest.raises(UserError, match="no tables here"):
        index(f"{tables}/a.parquet", store)


def test_a_row_group_that_would_fill_the_memory_is_refused_with_what_helps(store: Store, tables: Path) -> None:
    image = pa.array([bytes(2**20 + row) for row in range(80)])
    pq.write_table(pa.table({"image": image, "text": ["a"] * 80}), tables / "a.parquet", use_dictionary=False)
    with pytest.raises(UserError, match=r"a row group of 80 MiB; at most 64(.|\n)*row_group_size=31"):
        index(f"{tables}/a.parquet", store)
    pq.write_table(pq.read_table(tables / "a.parquet"), tables / "a.parquet", row_group_size=31, use_dictionary=False)
    assert len(list_row_groups(f"{tables}/a.parquet", store, COLUMNS)) == 3


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (TableColumns("image", "txt"), r"no column with text is called 'txt'(.|\n)*--caption(.|\n)*: text"),
        (TableColumns("photo", "text"), r"no column with images is called 'photo'(.|\n)*--image(.|\n)*: image"),
        (TableColumns("image", "id"), "no column with text is called 'id'"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_those_there_are(
    store: Store, tables: Path, columns: TableColumns, words: str
) -> None:
    write_table(tables / "a.parquet", range(5))
    with pytest.raises(UserError, match=words):
        index(f"{tables}/a.parquet", store, columns)


def test_what_is_no_table(store: Store, tables: Path) -> None:
    (tables / "a.parquet").write_bytes(b"these are my notes")
    with pytest.raises(UserError, match=r"not a parquet file\n.*a\.parquet"):
        index(f"{tables}/a.parquet", store)


# ---------------------------------------------------------------- row groups in memory


def group_of(num_bytes: int) -> RowGroup:
    return RowGroup(0, pa.array([b"image"]), pa.array(["text"]), num_bytes)


@given(st.lists(st.integers(0, 9), max_size=40), st.lists(st.integers(1, 50), min_size=10, max_size=10))
def test_row_groups_in_memory_keep_their_limit(asked: list[int], sizes: list[int]) -> None:
    cache, groups = RowGroupCache(100), [group_of(size) for size in sizes]
    for number in asked:
        assert cache.get(str(number), lambda number=number: groups[number]) is groups[number]  # type: ignore[misc]
        assert cache.num_bytes <= 100
    for number in asked[-2:]:  # two of at most 50 bytes are always there

        def fail() -> RowGroup:
            raise AssertionError

        assert cache.get(str(number), fail) is groups[number]


def test_threads_that_want_a_row_group_read_it_once_and_what_fails_is_tried_again() -> None:
    cache, reads, all_wait = RowGroupCache(100), [], threading.Barrier(8)

    def read() -> RowGroup:
        reads.append(1)
        if len(reads) == 1:
            raise OSError("no answer")
        return group_of(1)

    with pytest.raises(OSError, match="no answer"):
        cache.get("a", read)

    def get(_: int) -> RowGroup:
        all_wait.wait()
        return cache.get("a", read)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(get, range(8)))
    assert all(one is found[0] for one in found)
    assert len(reads) == 2
