"""Image files for the tests: every type, mode and orientation, photo-like content, and headers that lie."""

import base64
import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
ORIENTATION_TAG = 0x0112


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """What no encoder can make small."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Octaves of noise with falling amplitude, as photographs have them."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.float32)
    num_cells = 2
    while num_cells < max(width, height) // 2:
        cells = rng.normal(0, 70 / num_cells**0.5, (num_cells, num_cells, 1)) + rng.normal(0, 8, (1, 1, 3))
        pixels += cv2.resize(cells.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        num_cells *= 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def quarters(width: int = 64, height: int = 32) -> Image.Image:
    """Red, green, blue and white corners (reading order), so that every turn and mirror shows."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def oriented(image: Image.Image, image_format: str, orientation: int, **options: Any) -> bytes:
    """A file with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return encode(image, image_format, exif=exif, **options)


def decoded(body: bytes) -> np.ndarray:
    """RGB pixels of a stored image, by Pillow."""
    with Image.open(io.BytesIO(body)) as image:
        return np.asarray(image.convert("RGB"))


def near(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 6) -> bool:
    return bool(np.all(np.abs(pixel.astype(int) - colour) <= tolerance))


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit pixels."""
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(np.float64) - b) ** 2))))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(body: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks before its pixels."""
    at = body.index(b"IDAT") - 4
    return body[:at] + b"".join(chunks) + body[at:]


def png_of_one_colour(width: int, height: int, colour_type: int = 2) -> bytes:
    """A real PNG of any size at little cost: 8 bits, RGB (2) or grey (0)."""
    row = bytes(1 + width * (3 if colour_type == 2 else 1))
    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def gif_of_many_frames(num_frames: int) -> bytes:
    """One frame of one pixel, many times."""
    gif = encode(Image.new("P", (1, 1)), "GIF")
    start = gif.rindex(b"\x2c\0\0\0\0")
    return gif[:start] + gif[start:-1] * num_frames + b"\x3b"


def webp_lossless_header(width: int, height: int) -> bytes:
    """A WebP that claims a size and holds next to nothing."""
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + bytes(7)
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABoQABAAAAAAAAAJoAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAA"
    "AADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAA"
    "AAAoY2xhcAAAAEAAAAABAAAAIAAAAAEAAAAAAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAK"
    "JtZGF0AAAAligBrwngPfMi///yPzf//LDOy/vFxFezz9ow0P/ScL//vUD6YSgvsfe3rTUMMwcLGvTIHSGJW8x4gCCuWDWS3x+kB+FxpLL0wZrn"
    "6GjxnTRgMs2TMvNvITU4SyA1RTyL2+me877Vr07PYHn+5/gC0vfsl7PFqJH6EJZitt20j/Ym7y4aKWl7Rlsm+tdw/P49Wtb/mqBAcA=="
)
"""64 × 32 pixels, the left half red, the right half green."""
