"""Small pictures inside the page."""

import base64
import io
from html import escape

from PIL import Image

from pipeline.annotate.evaluation import read_evaluation_image
from pipeline.curate.samples import Sample
from pipeline.raw import read_members
from pipeline.shards import parse_sample
from pipeline.store import Store

THUMBNAIL_PX = 112
MAX_PICTURES = 150
_QUALITY = 62


def sample_picture(store: Store, sample: Sample, is_hidden: bool = False) -> str:
    """A stored sample's image as an <img>, or words where it cannot be read."""
    try:
        (members,) = read_members(store, sample["raw"], [(sample["offset"], sample["size"])])
        source = data_url(parse_sample(members).image)
    except (OSError, ValueError, Image.DecompressionBombError):
        return _GONE
    return _element(source, f"stored image {sample['key']}", is_hidden)


def evaluation_picture(set_url: str, name: str) -> str:
    """An image of an evaluation set likewise."""
    try:
        source = data_url(read_evaluation_image(set_url, name))
    except (OSError, ValueError, Image.DecompressionBombError):
        return _GONE
    return _element(source, f"evaluation image {name}", False)


_GONE = '<span class="gone">picture not readable</span>'


def _element(source: str, text: str, is_hidden: bool) -> str:
    image = f'<img alt="{escape(text)}" src="{source}">'
    if not is_hidden:
        return image
    return f'<label class="veil"><input type="checkbox" aria-label="show {escape(text)}">{image}</label>'


def data_url(body: bytes) -> str:
    """An image file, made small, as the source of an <img>."""
    with Image.open(io.BytesIO(body)) as image:
        image.draft("RGB", (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
