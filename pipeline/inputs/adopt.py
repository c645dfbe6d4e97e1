"""Datasets that already hold images, read as rows that bring their image along.

img2dataset's shards and parquet files are cut into units by rows, tars of webdataset by samples. A tar with no more
samples than a unit is one unit; a longer one is read from its beginning by the headers of its members, without their
content.
"""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.inputs.files import READ_ERRORS, InputFile, unreadable
from pipeline.inputs.messages import reason_of_message
from pipeline.inputs.rows import Row, Unit, hash_key, row_of
from pipeline.inputs.spec import Columns, SourceSpec
from pipeline.inputs.tables import check_columns, inspect_parquet, read_schema, read_slice
from pipeline.store import open_fs

NO_IMAGE = "adopted_no_image"
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image.bytes", "image_bytes", "bytes")
_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff", "heic")
_RENAMED = ("key", "sha256", "original_width", "original_height")
"""What the dataset says of the images that it was made of; our own columns of these names say it of its images."""
_DROPPED = ("status", "error_message", "width", "height", "txt")

Members = dict[str, tarfile.TarInfo]
"""The members of a sample by their extension."""


def count_images(file: InputFile, spec: SourceSpec) -> int:
    """Rows of a dataset's file.

    Raises:
        UserError: It cannot be read, or is not what the recipe says.
    """
    try:
        if spec.format == "webdataset":
            with _open_tar(file.url) as tar:
                return sum(1 for _ in _samples(tar))
        info = inspect_parquet(file)
        check_columns(info.schema, file.url, _columns(spec, info.schema))
        if spec.format == "img2dataset" and not {"key", "status", "error_message"} <= set(info.schema.names):
            raise _not_the_format(info.schema, file, "it lacks key, status or error_message")
        if spec.format == "images_parquet" or not _has_tar(file.url):
            _image_column(file)
        return info.num_rows or 0
    except (*READ_ERRORS, tarfile.TarError) as error:
        raise unreadable(file, error) from error


def read_images(unit: Unit, spec: SourceSpec) -> list[Row]:
    """The rows of a unit with their images in memory.

    Raises:
        UserError: The file cannot be read.
    """
    file = InputFile(unit.file, spec.format, "", 0)
    try:
        if spec.format == "webdataset":
            return _read_webdataset(unit, spec.columns)
        table = read_slice(unit.file, unit.first_row, unit.num_rows)
        columns = _columns(spec, table.schema)
        if spec.format == "img2dataset":
            return _read_img2dataset(file, table, columns)
        name = _image_column(file)
        return [_with_image(record, _bytes_of(record.pop(name)), columns) for record in table.to_pylist()]
    except (*READ_ERRORS, tarfile.TarError) as error:
        raise unreadable(file, error) from error


def _read_img2dataset(file: InputFile, table: pa.Table, columns: Columns) -> list[Row]:
    """Each row of a shard's table with the image from the tar beside it, or from a column of the table."""
    records = table.to_pylist()
    if _has_tar(file.url):
        keys = {record["key"].decode() for record in records}
        bodies = _bodies(_tar_of(file.url), keys)
    else:
        name = _image_column(file)
        bodies = {record["key"].decode(): record.pop(name) for record in records}
    rows = []
    for record in records:
        message, is_success = record.get("error_message") or b"", record.get("status") == b"success"
        row = _with_image(record, bodies.get(record["key"].decode()) if is_success else None, columns)
        rows.append(row if is_success else replace(row, earlier_reason=reason_of_message(message.decode())))
    return rows


def _read_webdataset(unit: Unit, columns: Columns) -> list[Row]:
    with _open_tar(unit.file) as tar:
        samples = islice(_samples(tar), unit.first_row, unit.first_row + unit.num_rows)
        return [_row_of_sample(tar, key, members, columns) for key, members in samples]


def _row_of_sample(tar: tarfile.TarFile, key: str, members: Members, columns: Columns) -> Row:
    content = {name: _read_member(tar, members[name]) for name in ("json", "txt") if name in members}
    image_member = _image_of(members)
    image = _read_member(tar, image_member) if image_member else None
    try:
        record = json.loads(content.get("json", b"{}"))
        is_readable = isinstance(record, dict)
    except ValueError:
        is_readable = False
    record = {"key": key} | (record if is_readable else {})
    if record.get(columns.caption) is None:
        record[columns.caption] = content.get("txt")
    row = _with_image(record, image, columns)
    return row if is_readable else replace(row, body=None, earlier_reason="adopted_json_unreadable")


def _with_image(record: dict[str, Any], image: bytes | None, columns: Columns) -> Row:
    row = row_of(record, columns)
    meta = {
        f"adopted_{name}" if name in _RENAMED else name: value
        for name, value in row.meta.items()
        if name not in _DROPPED
    }
    # Captions repeat. Where no URL tells two rows apart, their images do.
    is_nameless = not row.url and not row.uid
    uid = hash_key(image + b"\0" + (row.caption or "").encode()) if image and is_nameless else row.uid
    return replace(row, uid=uid, meta=meta, body=image, earlier_reason="" if image is not None else NO_IMAGE)


def _columns(spec: SourceSpec, schema: pa.Schema) -> Columns:
    """The column names; a dataset with images need not have URLs, unless the recipe names their column."""
    columns = spec.columns
    return columns if spec.url or columns.url in schema.names else replace(columns, url="")


def _image_column(file: InputFile) -> str:
    schema = read_schema(file)
    for name in _IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
            if is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
    raise _not_the_format(schema, file, f"none is called {', '.join(_IMAGE_COLUMNS)} and holds bytes")


def _not_the_format(schema: pa.Schema, file: InputFile, why: str) -> UserError:
    return UserError(
        f"the file is not a dataset of the format {file.format}",
        where=file.url,
        why=f"of its columns {', '.join(schema.names)}: {why}",
        next_step="name the dataset's format with --set ingest.source.format=FORMAT, or rename its columns",
    )


def _bytes_of(value: Any) -> bytes | None:
    return value.get("bytes") if isinstance(value, dict) else value


def _tar_of(table_url: str) -> str:
    return table_url.removesuffix(".parquet") + ".tar"


def _has_tar(table_url: str) -> bool:
    fs, path = open_fs(_tar_of(table_url))
    return bool(fs.exists(path))


@contextmanager
def _open_tar(url: str) -> Iterator[tarfile.TarFile]:
    fs, path = open_fs(url)
    with fs.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        yield tar


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, Members]]:
    """Consecutive members with one key, as webdataset has it: the name up to the first dot after the last slash."""
    key, members = "", Members()
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if not member.isfile() or not stem or not extension:
            continue
        if (found := f"{folder}/{stem}" if folder else stem) != key:
            if members:
                yield key, members
            key, members = found, Members()
        members[extension.lower()] = member
    if members:
        yield key, members


def _bodies(url: str, keys: set[str]) -> dict[str, bytes]:
    """The images of these samples by key."""
    bodies = {}
    with _open_tar(url) as tar:
        for key, members in _samples(tar):
            image = _image_of(members)
            if key in keys and image:
                bodies[key] = _read_member(tar, image)
    return bodies


def _image_of(members: Members) -> tarfile.TarInfo | None:
    return next((members[extension] for extension in _IMAGE_EXTENSIONS if extension in members), None)


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return cast(Any, stream).read() if stream is not None else b""
