"""The index of a tar or table that others wrote: where its samples are, so that training reads them where they lie.

Only headers, texts and the beginnings of JPEGs are read. Texts go through the reader that training uses, so what is
in the index is what training can parse. An image that is damaged further on is met in training only.
"""

import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pipeline.pixels.containers import Header, read_jpeg, read_png, read_webp
from pipeline.pixels.errors import ImageError
from pipeline.row_groups import TableColumns, read_row_group, split_group_path
from pipeline.shards import IMAGE_EXTENSIONS, NoCaption, ShardError, assemble
from pipeline.store import Store
from pipeline.tar import Group, Member, Read, TarError, iter_groups

NOT_A_TAR = "not_a_tar"
CUT_SHORT = "tar_cut_short"

_LOCAL_WINDOW_BYTES = 4 << 10
"""What one read brings from a local file: a header and the beginning of the image behind it."""
_REMOTE_WINDOW_BYTES = 8 << 20
"""From elsewhere. Reading over small images costs less than a request for each."""
_JPEG_START_BYTES = (2 << 10, 256 << 10)
"""Read of a JPEG until its size is found: nearly always, and where a thumbnail or a colour profile comes first. Other
formats are read whole, as what turns them may stand at their end."""
_MAX_SIDE_PX = 65_535
_TURNED_BY_XMP = re.compile(rb'tiff:Orientation(?:="|>)[5-8]')
_JPEG = b"\xff\xd8\xff"
_READERS: dict[bytes, Callable[[bytes], Header]] = {
    _JPEG: read_jpeg,
    b"\x89PNG\r\n\x1a\n": read_png,
    b"RIFF": read_webp,
}
"""By signature: the formats that training decodes."""


@dataclass(frozen=True)
class LeftOut:
    """What is there and not in the index; a tar that ends too early is one more, without a key."""

    key: str
    offset: int
    """In bytes; of a table the row in its group."""
    reason: str


@dataclass
class ForeignIndex:
    """The samples of a tar, or of a table's row group, in its order: one entry of each list per sample."""

    keys: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, key: str, offset: int, num_bytes: int, size: tuple[int, int]) -> None:
        """Append a sample whose image has this width and height."""
        self.keys.append(key)
        self.offsets.append(offset)
        self.sizes.append(num_bytes)
        self.widths.append(size[0])
        self.heights.append(size[1])

    def columns(self) -> dict[str, list[Any]]:
        """As `SHARD_SCHEMA` names them."""
        return {name: getattr(self, name) for name in ("keys", "offsets", "sizes", "widths", "heights")}


class _Refused(Exception):
    """A sample that cannot be trained on; the message is the reason."""


def index_tar(path: str, num_bytes: int, caption: str) -> ForeignIndex:
    """Index a tar.

    Args:
        path: absolute path or URL.
        num_bytes: its size.
        caption: where captions stand: `txt`, or `json:FIELD`.

    Returns:
        Its whole samples. A tar that ends too early has `tar_cut_short` in `left_out`, at the byte up to which it was
        read; a file that is no tar has `not_a_tar`.

    Raises:
        OSError: It cannot be read.
    """
    index = ForeignIndex()
    with _reading(path, num_bytes) as read:
        try:
            for group in iter_groups(read):
                _add(index, read, group, num_bytes, caption)
        except TarError as error:
            index.left_out.append(LeftOut("", min(error.at, num_bytes), CUT_SHORT if error.at else NOT_A_TAR))
    return index


def _add(index: ForeignIndex, read: Read, group: Group, num_bytes: int, caption: str) -> None:
    try:
        if group.end > num_bytes:
            raise _Refused("sample_cut_short")
        index.add(group.key, group.start, group.end - group.start, _check(read, group, caption))
    except _Refused as refused:
        index.left_out.append(LeftOut(group.key, group.start, str(refused)))


def _check(read: Read, group: Group, caption: str) -> tuple[int, int]:
    """Width and height of a sample that training can read."""
    image = next((group.members[name] for name in IMAGE_EXTENSIONS if name in group.members), None)
    if image is None:
        raise _Refused("no_image")
    size = _image_size(read, image)
    texts = [(name, group.members[name]) for name in ("txt", "json") if name in group.members]
    parts = {name: read(member.offset, member.size) for name, member in texts}
    try:
        text = assemble(group.key, parts | {IMAGE_EXTENSIONS[0]: b""}, caption).caption
    except NoCaption as error:
        raise _Refused("no_caption") from error
    except ShardError as error:
        raise _Refused("unreadable_text") from error
    if not text.strip():
        raise _Refused("no_caption")
    return size


def _image_size(read: Read, image: Member) -> tuple[int, int]:
    """Width and height as the image is seen, from as few of its first bytes as say so."""
    for num_bytes in _JPEG_START_BYTES:
        if num_bytes < image.size and (body := read(image.offset, num_bytes)).startswith(_JPEG):
            try:
                return _trusted(body, *read_jpeg(body).upright_size)
            except ImageError as error:  # most often as the end is not there
                if error.original_width and error.original_height:
                    return _trusted(body, error.original_width, error.original_height)
    body = read(image.offset, image.size)
    reader = next((reader for signature, reader in _READERS.items() if body.startswith(signature)), None)
    if reader is None:
        raise _Refused("not_image")
    try:
        header = reader(body)
    except ImageError as error:
        raise _Refused(error.reason) from error
    except struct.error as error:
        raise _Refused("undecodable") from error
    return _trusted(body, *header.upright_size)


def _trusted(body: bytes, width: int, height: int) -> tuple[int, int]:
    """The size, where the decoder will come to the same one."""
    if not (0 < width <= _MAX_SIDE_PX and 0 < height <= _MAX_SIDE_PX):
        raise _Refused("undecodable")
    if _TURNED_BY_XMP.search(body) and width != height:
        raise _Refused("orientation_in_xmp")  # which counts where EXIF has none
    return width, height


def index_row_group(path: str, columns: TableColumns) -> ForeignIndex:
    """Index a row group of a table. An offset is the row in the group, a size that of the image.

    Args:
        path: of `pipeline.row_groups.group_path`.
        columns: those of images and captions.

    Raises:
        OSError: It cannot be read.
        ShardError: It is not there.
    """
    file, number = split_group_path(path)
    with Store("/").reading(file) as stream:
        group = read_row_group(stream, number, columns)
    index, stem = ForeignIndex(), PurePosixPath(file).stem
    for row in range(len(group)):
        key = f"{stem}-{group.first_row + row}"
        try:
            image = group.images[row].as_py()
            if not image:
                raise _Refused("no_image")
            if not (group.captions[row].as_py() or "").strip():
                raise _Refused("no_caption")
            size = _image_size(partial(_slice, image), Member(key, 0, 0, len(image)))
            index.add(key, row, len(image), size)
        except _Refused as refused:
            index.left_out.append(LeftOut(key, row, str(refused)))
    return index


def _slice(body: bytes, offset: int, size: int) -> bytes:
    return body[offset : offset + size]


@contextmanager
def _reading(path: str, num_bytes: int) -> Iterator[Read]:
    """Read a file through a window: what one read brings answers the next ones."""
    store, name = Store("/").locate(path)
    if store.is_local:
        descriptor = os.open(store.path(name), os.O_RDONLY)
        try:
            yield _Window(lambda at, size: os.pread(descriptor, size, at), num_bytes, _LOCAL_WINDOW_BYTES)
        finally:
            os.close(descriptor)
    else:
        yield _Window(lambda at, size: store.read_range(name, at, size), num_bytes, _REMOTE_WINDOW_BYTES)


class _Window:
    """Bytes of a file, of which the latest are kept."""

    def __init__(self, read: Read, num_bytes: int, window_bytes: int) -> None:
        self._read, self._num_bytes, self._window_bytes = read, num_bytes, window_bytes
        self._start, self._bytes = 0, b""

    def __call__(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self._num_bytes - offset))
        begin = offset - self._start
        if size and not 0 <= begin <= len(self._bytes) - size:
            wanted = min(max(size, self._window_bytes), self._num_bytes - offset)
            self._start, self._bytes, begin = offset, self._read(offset, wanted), 0
        return self._bytes[begin : begin + size]
