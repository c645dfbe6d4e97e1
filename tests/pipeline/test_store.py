"""The store: a file is there whole or not at all, other recipes are refused, and a full disk is said in plain words."""

import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.store import Store, open_store
from tests.s3_server import s3_root

CONTENT = {"unit_samples": 100, "image": {"size_px": 384}, "filters": [{"caption_words": {"min": 2}}]}


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "s3":
        with s3_root() as root:
            yield Store(root)
    else:
        yield Store(str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}")


def _all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _write_half(store: Store, error: type[BaseException]) -> None:
    with store.writing("raw/a.tar") as stream:
        stream.write(b"half" * 100_000)
        raise error


# ---------------------------------------------------------------- files


def test_what_is_written_is_read(store: Store) -> None:
    store.write("raw/a.tar", b"0123456789")
    assert store.exists("raw/a.tar")
    assert store.read("raw/a.tar") == b"0123456789"
    assert store.read_range("raw/a.tar", 3, 4) == b"3456"
    assert store.read_range("raw/a.tar", 8, 100) == b"89"
    assert store.read_ranges("raw/a.tar", [(8, 2), (0, 1), (9, 5)]) == [b"89", b"0", b"9"]
    store.write("raw/a.tar", b"new")
    assert store.read("raw/a.tar") == b"new"


def test_a_file_is_created_once(store: Store) -> None:
    assert store.create("ledger/a", b"first")
    assert not store.create("ledger/a", b"second")
    assert store.read("ledger/a") == b"first"


@pytest.mark.parametrize("elsewhere", ["folder", "memory"])
def test_a_path_or_url_of_another_place_is_read_there(store: Store, tmp_path: Path, elsewhere: str) -> None:
    other = Store(str(tmp_path / "other.1") if elsewhere == "folder" else f"memory://{tmp_path.name}-other")
    other.write("x/a.tar", b"0123456789")
    name = f"{other.root}/x/a.tar"
    assert store.path(name) == other.path("x/a.tar")
    assert store.exists(name)
    assert store.read(name) == b"0123456789"
    assert store.read_range(name, 3, 4) == b"3456"
    assert store.read_ranges(name, [(8, 2), (0, 1)]) == [b"89", b"0"]
    found, name_there = store.locate(name)
    assert (found.is_local, found.read(name_there)) == (other.is_local, b"0123456789")
    assert store.locate("x/a.tar") == (store, "x/a.tar")
    assert not store.exists("x/a.tar")


def test_a_file_of_another_place_is_neither_written_nor_deleted(store: Store, tmp_path: Path) -> None:
    theirs = tmp_path / "a.tar"
    theirs.write_bytes(b"theirs")
    with pytest.raises(ValueError, match="not a file of this store"):
        store.write(str(theirs), b"ours")
    with pytest.raises(ValueError, match="not a file of this store"):
        store.remove(str(theirs))
    assert theirs.read_bytes() == b"theirs"


def test_tables_and_json_come_back(store: Store) -> None:
    table = pa.table({"n": [1, 2], "text": ["a", None]})
    store.write_table("ledger/u.parquet", table)
    assert store.read_table("ledger/u.parquet").equals(table)
    assert store.read_table("ledger/u.parquet", ["text"]).column_names == ["text"]
    store.write_json("store.json", {"ä": [1, None]})
    assert store.read_json("store.json") == {"ä": [1, None]}


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_what_was_there(store: Store, old: bytes | None, error: type[BaseException]) -> None:
    if old is not None:
        store.write("raw/a.tar", old)
    with pytest.raises(error):
        _write_half(store, error)
    assert store.names("raw", "") == ([] if old is None else ["a.tar"])
    if old is not None:
        assert store.read("raw/a.tar") == old


def test_a_block_that_raises_leaves_no_temporary(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        _write_half(Store(str(tmp_path)), RuntimeError)
    assert _all_files(tmp_path) == []


def test_while_the_block_runs_nothing_is_visible(store: Store) -> None:
    with store.writing("raw/a.tar") as stream:
        stream.write(b"half" * 100_000)
        stream.flush()
        assert store.names("raw", "") == []
        assert not store.exists("raw/a.tar")
    assert store.names("raw", "") == ["a.tar"]


def test_names_are_sorted_chosen_by_suffix_and_without_the_temporaries_of_a_kill(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name in ("b.parquet", "a.parquet", "c.tar", ".a.parquet.0123abcd.tmp", ".hidden.parquet"):
        (tmp_path / "ledger").mkdir(exist_ok=True)
        (tmp_path / "ledger" / name).write_bytes(b"x")
    assert store.names("ledger", ".parquet") == ["a.parquet", "b.parquet"]
    assert store.names("ledger", "") == ["a.parquet", "b.parquet", "c.tar"]
    assert store.names("absent", "") == []


def test_names_sees_what_another_process_wrote(store: Store) -> None:
    assert store.names("ledger", "") == []
    Store(store.root).write("ledger/a", b"")
    assert store.names("ledger", "") == ["a"]


def test_a_pickled_store_is_the_same_store(store: Store) -> None:
    store.write("a", b"x")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.read("a") == b"x"


def test_is_local(tmp_path: Path) -> None:
    assert Store(str(tmp_path)).is_local
    assert Store(f"file://{tmp_path}").is_local
    assert not Store("memory://x").is_local


# ---------------------------------------------------------------- recipes


def test_a_store_opens_again_for_its_own_recipe(store: Store) -> None:
    open_store(store.root, CONTENT)
    before = store.read("store.json")
    open_store(store.root, CONTENT)
    assert store.read("store.json") == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"unit_samples": 200}, "unit_samples was 100, is 200"),
        ({"image": {"size_px": 224}}, "image.size_px was 384, is 224"),
        ({"filters": []}, "filters was [{'caption_words': {'min': 2}}], is []"),
        ({"new": {"key": 1}}, "new was None, is {'key': 1}"),
    ],
)
def test_another_recipe_is_refused_by_the_differing_key(store: Store, changed: dict[str, object], named: str) -> None:
    open_store(store.root, CONTENT)
    before = store.read("store.json")
    with pytest.raises(UserError) as caught:
        open_store(store.root, CONTENT | changed)
    assert caught.value.exit_code == 2
    assert f"why:   {named}\n" in caught.value.message
    assert "--set store=PATH" in caught.value.message
    assert store.read("store.json") == before


def test_all_differing_keys_are_named_at_once(store: Store) -> None:
    open_store(store.root, CONTENT)
    with pytest.raises(UserError, match=r"image was .*; unit_samples was 100, is 1"):
        open_store(store.root, CONTENT | {"unit_samples": 1, "image": None})


def test_another_format_is_refused(store: Store) -> None:
    store.write_json("store.json", {"format_version": 999, "recipe": CONTENT})
    with pytest.raises(UserError, match="format 999"):
        open_store(store.root, CONTENT)


# ---------------------------------------------------------------- places that cannot be written


def test_below_a_regular_file_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    root = str(tmp_path / "file" / "store")
    with pytest.raises(UserError, match="the store cannot be written") as caught:
        open_store(root, CONTENT)
    assert caught.value.exit_code == 3
    assert root in caught.value.message
    assert Store(root).names("ledger", ".parquet") == []
    assert (tmp_path / "file").read_text() == "kept"


def test_an_unknown_protocol_is_a_users_error() -> None:
    with pytest.raises(UserError, match="nosuch://bucket/store"):
        Store("nosuch://bucket/store")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False) if mount else None
    if mounted is None or mounted.returncode:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {mounted.stderr.strip() if mounted else 'no mount'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_what_is_committed_is_kept(full_disk: Path) -> None:
    store = open_store(str(full_disk / "store"), CONTENT)
    store.write("raw/first.tar", b"1" * 300_000)
    with pytest.raises(UserError) as caught:
        store.write("raw/second.tar", b"2" * 2_000_000)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("no space left\n")
    assert "raw/second.tar" in caught.value.message
    assert _all_files(full_disk) == ["store/raw/first.tar", "store/store.json"]
    assert store.read("raw/first.tar") == b"1" * 300_000
    store.write("raw/third.tar", b"3" * 300_000)
