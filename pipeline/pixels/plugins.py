"""The Pillow decoders that are used, by name. Pillow knows more, some of which start other programs."""

from collections.abc import Callable
from typing import IO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

AvifImagePlugin.DEFAULT_MAX_THREADS = 1

PLUGINS: dict[str, Callable[[IO[bytes]], ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}

try:
    from pi_heif.as_plugin import HeifImageFile
except ImportError:  # the optional package: without it, HEIC is `undecodable`
    pass
else:
    PLUGINS["heic"] = HeifImageFile
