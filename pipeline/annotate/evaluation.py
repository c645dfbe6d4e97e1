"""Which stored samples show an image of an evaluation set: the same file, or nearly the same perceptual hash."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator
from pipeline.annotate.columns import read_stored
from pipeline.curate.hamming import HashIndex, parse_hashes
from pipeline.errors import UserError
from pipeline.ledger import committed_units, read_commit
from pipeline.pixels.errors import ImageError
from pipeline.pixels.images import transcode
from pipeline.pixels.spec import ImageSpec
from pipeline.raw import read_members
from pipeline.shards import parse_sample
from pipeline.store import STORE_FILE, Store, open_fs

SAME_FILE = -1
"""`eval_bits` where not only the picture but the file is the same, byte for byte."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_MAX_NAMED = 3

_log = logging.getLogger(__name__)


@annotator("evaluation_overlap")
class EvaluationOverlap(Annotator):
    """The nearest image of the evaluation sets, by the hashes that the ledger has.

    The sets are read once in a process.
    """

    needs_sample: ClassVar[bool] = False
    batch_samples: ClassVar[int] = 16_384

    sets: dict[str, str]
    """Evaluation sets by name: a store, or a folder or URL of images."""
    near_bits: Annotated[int, Field(ge=0, le=16)] = 6
    """Perceptual hashes that differ in at most so many bits are the same picture."""

    def columns(self) -> dict[str, pa.DataType]:
        """`eval_set` and `eval_image` name the nearest image, and are null where none is near: in a folder it is named
        by its path, in a store by UNIT/KEY. `eval_bits` is the distance, 0 for an equal perceptual hash, and -1 where
        the original file is the same byte for byte."""
        return {"eval_set": pa.string(), "eval_image": pa.string(), "eval_bits": pa.int32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        known = _known(tuple(self.sets.items()), self.near_bits)
        index_N = np.full(len(batch), -1, np.int64)
        bits_N = np.full(len(batch), SAME_FILE, np.int64)
        has_hash_N = pc.is_valid(batch.rows["phash"]).to_numpy()
        index_N[has_hash_N], bits_N[has_hash_N] = known.index.nearest(parse_hashes(batch.rows["phash"]))
        for row, sha256 in enumerate(batch.rows["sha256"].to_pylist()):
            if sha256 in known.by_sha256:
                index_N[row], bits_N[row] = known.by_sha256[sha256], SAME_FILE
        hit_N = index_N >= 0
        place = pa.array(index_N, mask=~hit_N)
        return {
            "eval_set": known.set_names.take(place),
            "eval_image": known.images.take(place),
            "eval_bits": pa.array(bits_N.astype(np.int32), mask=~hit_N),
        }

    def state(self) -> str:
        """Of the names, sizes and times of the sets' files, or of the stores' units."""
        return sets_fingerprint(self.sets)


def sets_fingerprint(sets: Mapping[str, str]) -> str:
    """Of what the sets hold, by the names, sizes and times of files, or by the units of stores."""
    return hashlib.sha256(repr([_fingerprint(url) for url in sets.values()]).encode()).hexdigest()


def evaluation_images(set_name: str, url: str) -> Iterator[tuple[str, bytes]]:
    """Name and encoded image of each readable image of a set, the names being those of `eval_image`.

    Raises:
        UserError: There is none.
    """
    is_empty = True
    for name in _store_names(Store(url)) if _is_store(url) else _files(url):
        try:
            body = transcode(read_evaluation_image(url, name), ImageSpec()).body
        except ImageError:
            continue  # `evaluation_overlap` warns of them
        is_empty = False
        yield name, body
    if is_empty:
        raise _no_image(set_name, url)


def _store_names(store: Store) -> Iterator[str]:
    for unit_name in committed_units(store):
        for key in read_stored(store, unit_name, ["key"]).rows["key"].to_pylist():
            yield f"{unit_name}/{key}"


def read_evaluation_image(set_url: str, eval_image: str) -> bytes:
    """The image that `eval_image` names, as it is stored.

    Args:
        set_url: the store, folder or URL of its set.
        eval_image: value of the column.

    Raises:
        UserError: It is not there any more.
    """
    store = Store(set_url)
    if not store.exists(STORE_FILE):
        fs, base = open_fs(set_url)
        try:
            return bytes(fs.cat_file(f"{base.rstrip('/')}/{eval_image}"))
        except OSError as error:
            raise _gone(set_url, eval_image) from error
    unit_name, _, key = eval_image.partition("/")
    if not store.exists(f"ledger/{unit_name}.parquet"):
        raise _gone(set_url, eval_image)
    unit = read_stored(store, unit_name, ["key", "offset", "size"])
    found = unit.rows.filter(pc.equal(unit.rows["key"], key)).to_pylist()
    if not found:
        raise _gone(set_url, eval_image)
    (members,) = read_members(store, unit.raw, [(found[0]["offset"], found[0]["size"])])
    return parse_sample(members).image


def _no_image(set_name: str, url: str) -> UserError:
    return UserError(
        f"the evaluation set {set_name!r} has no readable image",
        where=url,
        why=f"it is neither a store with committed units nor holds files {', '.join(IMAGE_SUFFIXES)}",
        next_step=f"correct the path of {set_name} in curate, or leave it out",
    )


def _gone(set_url: str, eval_image: str) -> UserError:
    return UserError(
        f"the evaluation set has no image {eval_image!r} any more",
        where=set_url,
        next_step="run: genlip annotate RECIPE",
    )


@dataclass(frozen=True)
class _Known:
    """All images of the evaluation sets."""

    set_names: pa.Array
    images: pa.Array
    by_sha256: dict[str, int]
    """The first of equal files."""
    index: HashIndex


@lru_cache(maxsize=2)
def _known(sets: tuple[tuple[str, str], ...], near_bits: int) -> _Known:
    tables = []
    for name, url in sets:
        table = pa.concat_tables(_store_images(Store(url)) if _is_store(url) else [_folder_images(url)])
        if not table.num_rows:
            raise _no_image(name, url)
        tables.append(table.append_column("set", pa.array([name] * table.num_rows, pa.string())))
    images = pa.concat_tables(tables).combine_chunks()
    by_sha256: dict[str, int] = {}
    for row, sha256 in enumerate(images["sha256"].to_pylist()):
        by_sha256.setdefault(sha256, row)
    index = HashIndex(parse_hashes(images["phash"]), near_bits)
    return _Known(images["set"].combine_chunks(), images["image"].combine_chunks(), by_sha256, index)


def _is_store(url: str) -> bool:
    return Store(url).exists(STORE_FILE)


def _store_images(store: Store) -> Iterator[pa.Table]:
    """Tables of image, sha256, phash; samples without a hash are left out."""
    yield _table([], [], [])
    for unit_name in committed_units(store):
        rows = read_stored(store, unit_name, ["key", "sha256", "phash"]).rows
        rows = rows.filter(pc.is_valid(rows["phash"]))
        names = [f"{unit_name}/{key}" for key in rows["key"].to_pylist()]
        yield _table(names, rows["sha256"].to_pylist(), rows["phash"].to_pylist())


def _folder_images(url: str) -> pa.Table:
    """The readable images, hashed as they would be when they are ingested."""
    fs, base = open_fs(url)
    names, sha256s, phashes, unreadable = [], [], [], []
    for name in _files(url):
        try:
            image = transcode(fs.cat_file(f"{base.rstrip('/')}/{name}"), ImageSpec())
        except ImageError as error:
            unreadable.append(f"{name} ({error.reason})")
            continue
        names.append(name)
        sha256s.append(image.sha256)
        phashes.append(image.phash)
    if unreadable:
        _log.warning("%s: %d unreadable images, as %s", url, len(unreadable), ", ".join(unreadable[:_MAX_NAMED]))
    return _table(names, sha256s, phashes)


def _table(names: list[str], sha256s: list[str], phashes: list[str]) -> pa.Table:
    columns = {"image": names, "sha256": sha256s, "phash": phashes}
    return pa.table({column: pa.array(values, pa.string()) for column, values in columns.items()})


@lru_cache(maxsize=64)
def _files(url: str) -> dict[str, str]:
    """The images of a folder by their path in it, sorted, each with what changes when the file does."""
    fs, base = open_fs(url)
    try:
        found = fs.find(base, detail=True)
    except OSError as error:
        raise UserError("the evaluation set cannot be listed", where=url, why=str(error)) from error
    stamps = {}
    for path in sorted(found):
        about = found[path]
        name = str(path).removeprefix(base).lstrip("/")
        if name.lower().endswith(IMAGE_SUFFIXES):
            changes = next((about[field] for field in ("ETag", "etag", "mtime", "created") if about.get(field)), "")
            stamps[name] = f"{about['size']} {changes}"
    return stamps


@lru_cache(maxsize=64)
def _fingerprint(url: str) -> str:
    if _is_store(url):
        store = Store(url)
        stamps = {unit: read_commit(store, unit).sha256 for unit in committed_units(store)}
    else:
        stamps = _files(url)
    digest = hashlib.sha256()
    for name, stamp in stamps.items():
        digest.update(f"{name}\t{stamp}\n".encode())
    return digest.hexdigest()
