"""JPEG, PNG, WebP and GIF without their pixels: size, frames, orientation, colour profile, and whether all is there.

These are read here and not by a library because nearly all images of the web are of these types, because a library may
allocate the picture before its size can be judged, and because decoders accept files whose end is missing.
"""

import re
import struct
import zlib
from dataclasses import dataclass

from pipeline.pixels.errors import ImageError
from pipeline.pixels.exif import read_orientation

MAX_PROFILE_BYTES = 4 << 20
"""Of a decompressed colour profile; printers' are 0.5 to 2 MB."""


@dataclass(frozen=True)
class Header:
    """What a file says about its image."""

    format: str
    width: int
    """As the pixels are stored, before the orientation is applied."""
    height: int
    num_frames: int = 1
    orientation: int = 1
    """EXIF's, 1 to 8, that is still to be applied to decoded pixels."""
    icc_profile: bytes = b""
    num_bits: int = 8
    """Of a channel; fewer than eight are said to be eight."""
    is_plain: bool = False
    """One frame, grey, RGB or palette, perhaps with alpha: what OpenCV decodes as a viewer would."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as it is seen."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def truncated(header: Header) -> ImageError:
    """The error for a file whose end is missing."""
    return ImageError("image_truncated", *header.upright_size)


# Within scan data, 0xFF is followed by 0x00 (an escaped byte) or a restart marker (0xD0 to 0xD7).
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_END = 0xD9
_JPEG_WITHOUT_LENGTH = (0x01, 0xD8)
_APP1, _APP2 = 0xE1, 0xE2


def read_jpeg(body: bytes) -> Header:
    """Segments are stepped over by their lengths, so that a thumbnail's own markers do not count.

    What follows the end marker (phones append videos) does not matter.
    """
    frame = b""
    orientation = 1
    profile: dict[int, bytes] = {}
    has_end = False
    at = 2
    while found := _JPEG_MARKER.search(body, at):
        at = found.end()
        marker = body[at - 1]
        if marker == _JPEG_END:
            has_end = True
            break
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        length = int.from_bytes(body[at : at + 2])
        segment = body[at + 2 : at + length] if marker in _JPEG_FRAME or marker in (_APP1, _APP2) else b""
        at += length
        if marker in _JPEG_FRAME and not frame:
            frame = segment
        elif segment.startswith(b"Exif\0\0"):
            orientation = read_orientation(segment)
        elif segment.startswith(b"ICC_PROFILE\0") and len(segment) > 14:
            profile[segment[12]] = segment[14:]
    if len(frame) < 6:
        raise ImageError("undecodable" if has_end else "image_truncated")
    _bits, height, width, num_components = struct.unpack_from(">BHHB", frame)
    icc_profile = b"".join(profile[number] for number in sorted(profile))
    header = Header("jpeg", width, height, 1, orientation, icc_profile, is_plain=num_components in (1, 3))
    if not has_end:
        raise truncated(header)
    return header


_PNG_PALETTE = 3


def read_png(body: bytes) -> Header:
    """Chunks up to `IEND`; an animated PNG (`acTL`) is not plain."""
    width = height = 0
    num_bits, colour_type = 8, 2
    num_frames, orientation, is_plain = 1, 1, True
    icc_profile = b""
    is_srgb = False
    at = 8
    while at + 12 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        start, at = at + 8, at + 12 + length
        if kind == b"IHDR" and length == 13:
            width, height, num_bits, colour_type = struct.unpack_from(">IIBB", body, start)
        elif kind == b"acTL" and length >= 4:
            is_plain, num_frames = False, int.from_bytes(body[start : start + 4])
        elif kind == b"tRNS" and colour_type != _PNG_PALETTE:
            is_plain = False  # one colour or level is transparent, which OpenCV overlooks
        elif kind == b"eXIf":
            orientation = read_orientation(body[start : start + length])
        elif kind == b"sRGB":
            is_srgb = True
        elif kind == b"iCCP":
            icc_profile = _inflate_profile(body[start : start + length])
        elif kind == b"IEND":
            break
    icc_profile = b"" if is_srgb else icc_profile
    header = Header("png", width, height, num_frames, orientation, icc_profile, max(8, num_bits), is_plain)
    if at > len(body) or body[at - 8 : at - 4] != b"IEND":
        raise truncated(header)
    return header


def _inflate_profile(chunk: bytes) -> bytes:
    """The profile of an iCCP chunk (name, 0, method, zlib data); none where it does not decompress."""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(chunk[chunk.find(b"\0") + 2 :], MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return b"" if inflate.unconsumed_tail else profile


def read_webp(body: bytes) -> Header:
    """RIFF chunks; an animated WebP is not plain."""
    width = height = num_frames = 0
    orientation = 1
    icc_profile = b""
    end = 8 + int.from_bytes(body[4:8], "little")
    at = 12
    while at + 8 <= min(end, len(body)):
        kind, length = struct.unpack_from("<4sI", body, at)
        start, at = at + 8, at + 8 + length + length % 2
        if kind in (b"VP8X", b"VP8 ", b"VP8L") and not width:
            width, height = _webp_size(kind, body[start : start + 10])
        elif kind == b"ANMF":
            num_frames += 1
        elif kind == b"EXIF":
            orientation = read_orientation(body[start : start + length])
        elif kind == b"ICCP":
            icc_profile = body[start : start + length]
    header = Header("webp", width, height, max(1, num_frames), orientation, icc_profile, is_plain=num_frames == 0)
    if end > len(body):
        raise truncated(header)
    return header


def _webp_size(kind: bytes, start: bytes) -> tuple[int, int]:
    """Width and height from the first ten bytes of a chunk: the canvas's, a key frame's or a lossless image's."""
    if len(start) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[4:7], "little"), 1 + int.from_bytes(start[7:10], "little")
    if kind == b"VP8 ":
        return int.from_bytes(start[6:8], "little") & 0x3FFF, int.from_bytes(start[8:10], "little") & 0x3FFF
    bits = int.from_bytes(start[1:5], "little")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B


def count_gif_frames(body: bytes, most: int) -> int:
    """Images of a GIF; no more than `most` + 1 are looked for.

    Raises:
        ImageError: `image_truncated`: it ends inside a block. A missing end marker alone is common and does no harm.
    """
    num_frames = 0
    at = 13 + _colour_table_bytes(body[10])
    try:
        while at < len(body) and num_frames <= most:
            kind = body[at]
            if kind == _GIF_IMAGE:
                num_frames += 1
                at = _skip_sub_blocks(body, at + 11 + _colour_table_bytes(body[at + 9]))
            elif kind == _GIF_EXTENSION:
                at = _skip_sub_blocks(body, at + 2)
            else:
                break
    except IndexError as error:
        raise ImageError("image_truncated") from error
    return num_frames


def _colour_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_sub_blocks(body: bytes, at: int) -> int:
    while length := body[at]:
        at += 1 + length
    return at + 1
