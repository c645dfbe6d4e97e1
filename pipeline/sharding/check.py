"""Whether a stored sample's bytes are whole: its tar headers, texts, and the image as far as a decoder notices.

A wrong bit inside a JPEG's coefficients is a wrong picture, not an error: no decoder can tell.
"""

import json
from typing import Any

from pipeline.pixels.decode import decode
from pipeline.pixels.errors import ImageError
from pipeline.pixels.header import read_header
from pipeline.shards import IMAGE_EXTENSIONS, Sample

_BLOCK_BYTES = 512
_REDUCTION = 8
"""Of both sides: it spares most of a JPEG's transform, and all of the file is read just the same."""


class Refused(Exception):
    """A sample that cannot go into a shard; the message is the reason."""


def read_sample(members: bytes, key: str) -> Sample:
    """A sample from its tar members, faster than a general reader of tars.

    Raises:
        Refused: `damaged_members` or `other_key`.
    """
    bodies: dict[str, bytes] = {}
    at = 0
    while at < len(members):
        header = members[at : at + _BLOCK_BYTES]
        name, size = _read_header(header)
        stem, _, extension = name.partition(".")
        if stem != key:
            raise Refused("other_key")
        at += _BLOCK_BYTES
        bodies[extension] = members[at : at + size]
        at += -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
    image = next((extension for extension in IMAGE_EXTENSIONS if extension in bodies), "")
    if at != len(members) or bodies.keys() != {image, "txt", "json"}:
        raise Refused("damaged_members")
    try:
        return Sample(key, bodies[image], bodies["txt"].decode(), _read_meta(bodies["json"]), image)
    except ValueError as error:
        raise Refused("damaged_members") from error


def _read_header(header: bytes) -> tuple[str, int]:
    """Name and size of a member. POSIX.1-1988 (ustar): the checksum field counts as eight spaces in its own sum."""
    try:
        checksum = int(header[148:156].strip(b"\0 "), 8)
        if checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise Refused("damaged_members")
        return header[:100].rstrip(b"\0").decode(), int(header[124:136].strip(b"\0 "), 8)
    except ValueError as error:
        raise Refused("damaged_members") from error


def _read_meta(body: bytes) -> dict[str, Any]:
    meta = json.loads(body)
    if not isinstance(meta, dict):
        raise ValueError("not a JSON object")
    return meta


def check_image(image: bytes, width: int, height: int) -> None:
    """Decode a stored image at low resolution.

    Args:
        image: the file.
        width: in pixels, as the ledger says.
        height: likewise.

    Raises:
        Refused: Its size is `other_size`, or as ingestion says: `not_image`, `image_truncated`, `undecodable`.
    """
    try:
        header = read_header(image, 1)
        # Before decoding: a damaged header may announce any number of pixels.
        if header.upright_size != (width, height):
            raise Refused("other_size")
        decode(image, header, _REDUCTION if header.format == "jpeg" else 1)
    except (Refused, MemoryError):
        raise
    except ImageError as error:
        raise Refused(error.reason) from error
    except Exception as error:  # decoders raise anything
        raise Refused("undecodable") from error
