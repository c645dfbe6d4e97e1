"""Tables of images in parquet: a row group is a shard, read as a whole, since none of its rows can be read alone.

The image column holds the bytes of image files, or structs whose `bytes` are that, as Hugging Face datasets write it.
"""

from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.shards import Sample, ShardError

MAX_GROUP_BYTES = 64 * 2**20
"""Of a row group's images and captions, uncompressed: training holds the row groups of some blocks in memory."""
_EXTENSIONS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table are read."""

    image: str
    caption: str


def group_path(path: str, group: int) -> str:
    """A row group's place in an index."""
    return f"{path}#{group}"


def split_group_path(path: str) -> tuple[str, int]:
    """The file of a row group, and its number there."""
    file, _, group = path.rpartition("#")
    return file, int(group)


def group_sizes(stream: BinaryIO, columns: TableColumns, where: str) -> list[int]:
    """Bytes of the images and captions of each row group of a file, uncompressed. Only the file's footer is read.

    Raises:
        UserError: It is no parquet file, lacks a column, or has a row group that is too large.
    """
    try:
        file = pq.ParquetFile(stream)
    except pa.ArrowInvalid as error:
        raise UserError("not a parquet file", where=where, why=str(error), next_step="repair or remove it") from error
    _check_columns(file.schema_arrow, columns, where)
    sizes = []
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        chunks = (about.column(number) for number in range(about.num_columns))
        wanted = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in (columns.image, columns.caption))
        sizes.append(sum(chunk.total_uncompressed_size for chunk in wanted))
        if sizes[-1] > MAX_GROUP_BYTES:
            raise _too_large(where, sizes[-1], about.num_rows)
    return sizes


def _check_columns(schema: pa.Schema, columns: TableColumns, where: str) -> None:
    images = [field.name for field in schema if _is_bytes(_image_type(field.type))]
    captions = [field.name for field in schema if field.type in (pa.string(), pa.large_string())]
    for option, name, known, what in (
        ("--image", columns.image, images, "images"),
        ("--caption", columns.caption, captions, "text"),
    ):
        if name not in known:
            raise UserError(
                f"no column with {what} is called {name!r}",
                where=f"{option}; {where}",
                why=f"those with {what} are: {', '.join(known) or 'none'}",
                next_step=f"name one of these with {option}",
            )


def _image_type(kind: pa.DataType) -> pa.DataType:
    return kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind


def _is_bytes(kind: pa.DataType) -> bool:
    return kind in (pa.binary(), pa.large_binary())


def _too_large(where: str, num_bytes: int, num_rows: int) -> UserError:
    fitting = max(1, num_rows * MAX_GROUP_BYTES // (2 * num_bytes))
    return UserError(
        f"a row group of {num_bytes / 2**20:,.0f} MiB; at most {MAX_GROUP_BYTES // 2**20} MiB are read where they lie",
        where=where,
        why="no row can be read without the whole group, and training holds many groups in memory",
        next_step=f"rewrite it with pyarrow.parquet.write_table(table, path, row_group_size={fitting}); or make shards"
        " of it with ingest.source.format: images_parquet in a recipe: genlip ingest RECIPE",
    )


@dataclass(frozen=True)
class RowGroup:
    """The images and captions of a row group. n rows."""

    first_row: int
    """In the file."""
    images: pa.Array
    captions: pa.Array
    num_bytes: int
    """In memory."""

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, row: int, key: str, num_bytes: int) -> Sample:
        """A row as a sample.

        Raises:
            ShardError: It has no caption, or no image of that many bytes.
        """
        in_group = row < len(self)
        image, caption = (column[row].as_py() if in_group else None for column in (self.images, self.captions))
        if image is None or len(image) != num_bytes or caption is None:
            raise ShardError(f"row {row} of the group is not what the index says")
        extension = next((name for signature, name in _EXTENSIONS.items() if image.startswith(signature)), "jpg")
        return Sample(key, image, caption, {}, extension)


def read_row_group(stream: BinaryIO, group: int, columns: TableColumns) -> RowGroup:
    """Read a row group.

    Raises:
        ShardError: It is not there.
        OSError: It cannot be read.
    """
    try:
        file = pq.ParquetFile(stream)
        is_struct = pa.types.is_struct(file.schema_arrow.field(columns.image).type)
        image = f"{columns.image}.bytes" if is_struct else columns.image
        table = file.read_row_group(group, [image, columns.caption], use_threads=False)
    except (pa.ArrowInvalid, LookupError) as error:
        raise ShardError(f"no row group {group} with these columns: {error}") from error
    images, captions = table[columns.image].combine_chunks(), table[columns.caption].combine_chunks()
    first_row = sum(file.metadata.row_group(number).num_rows for number in range(group))
    return RowGroup(first_row, pc.struct_field(images, "bytes") if is_struct else images, captions, table.nbytes)
