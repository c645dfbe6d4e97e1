"""The least that the job costs with the fastest parts known: `python -m tests.bench.ingest_floor URLS OUT CA_FILE`.

One thread: curl fetches, OpenCV decodes at a reduced scale, fast_image_resize scales, OpenCV encodes, the members of a
tar are written. It trusts every byte and every address, obeys nobody, and stops at the first error: that is the point.
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pycurl
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from numpy.typing import NDArray

from tests.bench.ingest_settings import FLOOR_IN_FLIGHT, JPEG_QUALITY, SHORTEST_SIDE_PX, TIMEOUT_S

REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
HEAD_ROOM = 2
"""The reduced image is at least so many times larger than the stored one."""
PIXEL_TYPES = {3: PixelType.U8x3, 4: PixelType.U8x4}
WAIT_S = 1.0


def fetch_all(urls: list[str], ca_file: str) -> Iterator[tuple[int, bytes]]:
    """Bodies with the positions of their URLs, as they arrive.

    Raises:
        RuntimeError: one of the URLs has no body.
    """
    multi = pycurl.CurlMulti()
    positions = iter(range(len(urls)))
    bodies: dict[pycurl.Curl, tuple[int, io.BytesIO]] = {}

    def start(curl: pycurl.Curl) -> None:
        position = next(positions, None)
        if position is None:
            return
        body = io.BytesIO()
        curl.setopt(pycurl.URL, urls[position])
        curl.setopt(pycurl.WRITEDATA, body)
        bodies[curl] = position, body
        multi.add_handle(curl)

    for _ in range(FLOOR_IN_FLIGHT):
        curl = pycurl.Curl()
        curl.setopt(pycurl.CAINFO, ca_file)
        curl.setopt(pycurl.FAILONERROR, True)
        curl.setopt(pycurl.TIMEOUT, TIMEOUT_S)
        start(curl)
    while bodies:
        multi.perform()
        _, done, failed = multi.info_read()
        if failed:
            raise RuntimeError(f"{urls[bodies[failed[0][0]][0]]}: {failed[0][2]}")
        for curl in done:
            multi.remove_handle(curl)
            position, body = bodies.pop(curl)
            start(curl)
            yield position, body.getvalue()
        if not done:
            multi.select(WAIT_S)


def jpeg_size(body: bytes) -> tuple[int, int]:
    """Height and width from the header; zeros where the body is no JPEG file."""
    place = 2 if body[:2] == b"\xff\xd8" else len(body)
    while place + 9 < len(body):
        marker = body[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(body[place + 5 : place + 7]), int.from_bytes(body[place + 7 : place + 9])
        place += 2 + int.from_bytes(body[place + 2 : place + 4])
    return 0, 0


def decode(body: bytes) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """BGR or BGRA pixels, a JPEG file at the smallest scale that leaves the head-room; and the original's size."""
    size = jpeg_size(body)
    room = min(size) // (HEAD_ROOM * SHORTEST_SIDE_PX)
    flags = next((REDUCED[scale] for scale in REDUCED if room >= scale), cv2.IMREAD_COLOR)
    pixels = cv2.imdecode(np.frombuffer(body, np.uint8), flags if size[0] else cv2.IMREAD_UNCHANGED)
    return pixels, size if size[0] else pixels.shape[:2]


def shrink(
    pixels: NDArray[np.uint8], original_size: tuple[int, int], resizer: Resizer, options: ResizeOptions
) -> NDArray[np.uint8]:
    """Scales the shortest side down, then lays what is transparent on white."""
    height, width, channels = pixels.shape
    scale = SHORTEST_SIDE_PX / min(original_size)
    if scale < 1:
        new_height, new_width = (round(side * scale) for side in original_size)
        small = ImageData(new_width, new_height, PIXEL_TYPES[channels])
        resizer.resize(ImageData(width, height, PIXEL_TYPES[channels], pixels.tobytes()), small, options)
        pixels = np.frombuffer(small.get_buffer(), np.uint8).reshape(new_height, new_width, channels)
    if channels == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha)) // 255).astype(np.uint8)
    return pixels


def main(urls_file: str, out: str, ca_file: str) -> None:
    """Writes OUT/all.tar."""
    cv2.setNumThreads(1)
    table = pq.read_table(urls_file)
    urls, captions = table["url"].to_pylist(), table["caption"].to_pylist()
    resizer, options = Resizer(), ResizeOptions(ResizeAlg.convolution(FilterType.lanczos3))
    Path(out).mkdir(parents=True)
    with tarfile.open(Path(out) / "all.tar", "w") as tar:

        def add(name: str, body: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))

        for position, body in fetch_all(urls, ca_file):
            pixels = shrink(*decode(body), resizer, options)
            jpeg = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes()
            meta = {"url": urls[position], "sha256": hashlib.sha256(body).hexdigest()}
            add(f"{position:06d}.jpg", jpeg)
            add(f"{position:06d}.txt", captions[position].encode())
            add(f"{position:06d}.json", json.dumps(meta).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
