"""`genlip index`: tars of others become a dataset where they lie, again and again, whatever is wrong with some."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import EXIT_ENVIRONMENT, EXIT_FAILED_UNITS, EXIT_USAGE, UserError
from pipeline.foreign_dataset import ForeignSummary, begin_index, finish_index, write_foreign_index
from pipeline.foreign_files import list_tars
from pipeline.shards import INDEX_SCHEMA, parse_sample
from pipeline.store import Store
from tests.stores import noise, shard_rows

JPEG = noise(0, 40, 24)


def _tar(number: int, num_samples: int = 3) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for n in range(num_samples):
            meta = json.dumps({"recaption": f"long {number}/{n}"}).encode()
            for extension, body in {"jpg": JPEG, "txt": f"caption {number}/{n}".encode(), "json": meta}.items():
                info = tarfile.TarInfo(f"{number:05d}{n:04d}.{extension}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def _write_tars(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:05d}.tar").write_bytes(_tar(number))
    return folder


def _run(source: str, store: Store, caption: str = "txt", name: str = "laion") -> tuple[list[int], ForeignSummary]:
    """What the verb does, without Ray. Returns the numbers of the tars that were read as well."""
    jobs = begin_index(store, name, source, caption, list_tars(source, store))
    for job in jobs:
        write_foreign_index(job, store)
    return [job.number for job in jobs], finish_index(store, name)


def _captions(store: Store, caption: str = "txt", name: str = "laion") -> list[str]:
    """Of all samples in the order of the index, each by one ranged read."""
    return [
        parse_sample(store.read_range(row["path"], offset, size), caption).caption
        for row in shard_rows(store, name)
        for offset, size in zip(row["offsets"], row["sizes"], strict=True)
    ]


def _visible(store: Store, name: str = "laion") -> dict[str, bytes]:
    return {file: store.read(f"shards/{name}/{file}") for file in store.names(f"shards/{name}", "")}


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}")


# ---------------------------------------------------------------- the dataset


def test_the_layout_is_that_of_our_own_shards(store: Store, tmp_path: Path) -> None:
    tars = _write_tars(tmp_path / "v1.0")
    before = {path: path.read_bytes() for path in tars.iterdir()}
    done, summary = _run(str(tars), store)
    assert done == [0, 1, 2]
    assert (summary.num_samples, summary.num_shards) == (9, 3)
    assert summary.num_bytes == sum(path.stat().st_size for path in tars.iterdir())
    index = store.read_table("shards/laion/index.parquet")
    assert index.schema == INDEX_SCHEMA
    assert index["path"].to_pylist() == [str(tars / f"{n:05d}.tar") for n in range(3)]
    assert all(value.startswith("stat:") for value in index["sha256"].to_pylist())
    shards = shard_rows(store, "laion")
    assert [shard["widths"] for shard in shards] == [[40] * 3] * 3
    assert [{name: shard[name] for name in INDEX_SCHEMA.names} for shard in shards] == index.to_pylist()
    assert _captions(store) == [f"caption {number}/{n}" for number in range(3) for n in range(3)]
    assert {path: path.read_bytes() for path in tars.iterdir()} == before


def test_tars_at_a_url(store: Store, tmp_path: Path) -> None:
    other = Store(f"memory://{tmp_path.name}-tars")
    for number in range(2):
        other.write(f"a/{number:05d}.tar", _tar(number))
    _, summary = _run(f"{other.root}/a", store)
    assert summary.num_samples == 6
    assert _captions(store) == [f"caption {number}/{n}" for number in range(2) for n in range(3)]


def test_captions_from_a_field(store: Store, tmp_path: Path) -> None:
    _run(str(_write_tars(tmp_path / "tars", 1)), store, "json:recaption")
    assert _captions(store, "json:recaption") == ["long 0/0", "long 0/1", "long 0/2"]
    assert store.read_json("shards/laion/dataset.json")["caption"] == "json:recaption"


def test_a_glob_takes_what_it_matches_and_a_folder_no_notes(store: Store, tmp_path: Path) -> None:
    tars = _write_tars(tmp_path / "tars", 12)
    (tars / "_tmp").mkdir()
    (tars / "_tmp" / "1.tar").write_bytes(_tar(1))
    (tars / ".hidden.tar").write_bytes(_tar(1))
    (tars / "00000_stats.json").write_text("{}")
    assert len(list_tars(str(tars), store)) == 12
    assert [Path(tar.path).name for tar in list_tars(f"{tars}/0001*.tar", store)] == ["00010.tar", "00011.tar"]
    assert [tar.path for tar in list_tars(str(tars / "00003.tar"), store)] == [str(tars / "00003.tar")]


def test_a_store_inside_the_folder_is_none_of_the_tars(tmp_path: Path) -> None:
    tars, store = _write_tars(tmp_path / "tars"), Store(str(tmp_path / "tars" / "store"))
    store.write("raw/u0.tar", _tar(7))
    assert len(list_tars(str(tars), store)) == 3


# ---------------------------------------------------------------- again


def test_again_reads_only_what_is_new_or_changed_and_numbers_stay(store: Store, tmp_path: Path) -> None:
    tars = _write_tars(tmp_path / "tars")
    assert _run(str(tars), store)[0] == [0, 1, 2]
    before = _visible(store)
    assert _run(str(tars), store)[0] == []
    assert _visible(store) == before
    (tars / "00000a.tar").write_bytes(_tar(9))
    assert _run(str(tars), store)[0] == [3]
    (tars / "00001.tar").write_bytes(_tar(1, num_samples=5))
    done, summary = _run(str(tars), store)
    assert (done, summary.num_samples) == ([1], 14)
    names = [Path(path).name for path in store.read_table("shards/laion/index.parquet")["path"].to_pylist()]
    assert names == ["00000.tar", "00001.tar", "00002.tar", "00000a.tar"]
    assert len(_captions(store)) == 14


def test_a_kill_at_any_moment_is_made_good(store: Store, tmp_path: Path) -> None:
    tars = str(_write_tars(tmp_path / "tars"))
    undisturbed = Store(f"memory://{tmp_path.name}-undisturbed")
    _run(tars, undisturbed)
    jobs = begin_index(store, "laion", tars, "txt", list_tars(tars, store))
    write_foreign_index(jobs[1], store)
    assert not store.exists("shards/laion/index.parquet")
    assert _run(tars, store)[0] == [0, 2]
    assert _visible(store) == _visible(undisturbed)


def test_a_tar_that_is_gone_is_an_error_and_nothing_is_touched(store: Store, tmp_path: Path) -> None:
    tars = _write_tars(tmp_path / "tars")
    _run(str(tars), store)
    before = _visible(store)
    (tars / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"1 shards of the dataset are gone\n.*00001.tar"):
        _run(str(tars), store)
    assert _visible(store) == before


def test_other_values_under_the_same_name_are_refused(store: Store, tmp_path: Path) -> None:
    tars = str(_write_tars(tmp_path / "tars"))
    _run(tars, store)
    with pytest.raises(UserError, match="caption was 'txt', is 'json:recaption'"):
        _run(tars, store, "json:recaption")
    with pytest.raises(UserError, match="tars was"):
        _run(str(_write_tars(tmp_path / "others")), store)


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(("name", "caption"), [("../x", "txt"), ("", "txt"), ("x", "caption"), ("x", "json:")])
def test_values_that_are_none(store: Store, tmp_path: Path, name: str, caption: str) -> None:
    with pytest.raises(UserError, match="--name" if caption == "txt" else "--caption"):
        _run(str(_write_tars(tmp_path / "tars")), store, caption, name)


def test_no_tars(store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [JPEG]}), tmp_path / "a.parquet")
    for source in (tmp_path / "absent", tmp_path, tmp_path / "*.parquet"):
        with pytest.raises(UserError, match=r"no tars here(.|\n)*of tables \*\.parquet"):
            list_tars(str(source), store)


def test_no_sample_with_a_caption_is_an_error_and_no_dataset(store: Store, tmp_path: Path) -> None:
    tars = str(_write_tars(tmp_path / "tars"))
    with pytest.raises(UserError, match="no_caption 9"):
        _run(tars, store, "json:absent")
    assert not store.exists("shards/laion/index.parquet")


def test_what_is_left_out_is_counted_and_listed(store: Store, tmp_path: Path) -> None:
    tars = _write_tars(tmp_path / "tars", 2)
    end = (tars / "00001.tar").read_bytes().index(b"000010002.jpg")
    damaged = (tars / "00001.tar").read_bytes().replace(JPEG, b"GIF89a" + JPEG[6:], 1)
    (tars / "00001.tar").write_bytes(damaged[: end + 100])
    (tars / "notes.tar").write_bytes(b"these are my notes")
    _, summary = _run(str(tars), store)
    assert summary.left_out == {"not_image": 1}
    assert summary.cut_short == {str(tars / "00001.tar"): end}
    assert summary.not_tars == [str(tars / "notes.tar")]
    listed = store.read_table("shards/laion/refused.parquet").to_pylist()
    assert {"key": "000010000", "reason": "not_image", "shard": str(tars / "00001.tar")}.items() <= listed[0].items()
    assert len(_captions(store)) == summary.num_samples


# ---------------------------------------------------------------- the verb


def _index(files: str, store: str, name: str, *options: str) -> tuple[int, str]:
    options = ("--store", store, "--name", name, *options)
    command = [sys.executable, "-m", "jobs.cli", "index", files, *options]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return process.returncode, process.stdout + process.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_verb_goes_on_past_bad_files_and_ends_with_their_names(tmp_path: Path) -> None:
    tars, store = _write_tars(tmp_path / "tars"), Store(str(tmp_path / "store"))
    (tars / "00001.tar").write_bytes(b"no tar at all")
    for num_missing in (3, 0):  # the second time from what is committed
        code, output = _index(str(tars), store.root, "laion")
        assert code == EXIT_FAILED_UNITS
        assert f"3 tars, {num_missing} still to index" in output
        assert "error: 1 files are no tars" in output
        assert str(tars / "00001.tar") in output
        assert len(_captions(store)) == 6
    (tars / "00001.tar").write_bytes(_tar(1))
    code, output = _index(str(tars), store.root, "laion")
    assert (code, len(_captions(store))) == (0, 9)
    assert "9 samples in 3 tars" in output


@pytest.mark.ray
@pytest.mark.slow
def test_a_tar_that_cannot_be_read_is_named_and_the_dataset_waits_for_it(tmp_path: Path) -> None:
    tars, store = _write_tars(tmp_path / "tars"), Store(str(tmp_path / "store"))
    (tars / "00001.tar").unlink()
    (tars / "00001.tar").symlink_to(tars / "absent")
    code, output = _index(f"{tars}/*.tar", store.root, "laion")
    assert code == EXIT_ENVIRONMENT, output
    assert "1 tars cannot be read; the others are indexed" in output
    assert not store.exists("shards/laion/index.parquet")
    (tars / "absent").write_bytes(_tar(1))
    code, output = _index(f"{tars}/*.tar", store.root, "laion")
    assert (code, len(_captions(store))) == (0, 9)


@pytest.mark.ray
@pytest.mark.slow
def test_the_verb_indexes_tables_and_says_what_it_can_read_of_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    table = pa.table({"jpg": [JPEG] * 7, "text": ["a picture"] * 6 + [None]})
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=3)
    source, options = str(tmp_path / "*.parquet"), ("--image", "jpg", "--caption", "text")
    code, output = _index(source, store.root, "photos")
    assert code == EXIT_USAGE
    assert "those with images are: jpg" in output
    code, output = _index(source, store.root, "photos", *options)
    assert code == 0, output
    assert "6 samples in 3 row groups" in output
    assert "no_caption 1" in output
    assert [len(shard["keys"]) for shard in shard_rows(store, "photos")] == [3, 3, 0]
    code, output = _index(source, store.root, "photos", *options)
    assert (code, "3 row groups, 0 still to index" in output) == (0, True)
