"""`boilerplate`: captions that name a file, or speak of the web page instead of the picture."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import ClassVar

import pyarrow as pa

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator

_EXTENSION = r"(?:jpe?g|jfif|png|gif|webp|avif|heic|bmp|tiff?|svg|psd|mp4|mov|pdf)"
_UNIT = r"(?:mm|cm|m|km|in|inch|inches|ft|px|pixels|kg|g|lb|lbs|oz|ml|l|mb|kb|mp|dpi|pt|\"|')"
_MONEY = r"(?:[$€£¥₹₽₩₺]|usd|eur|gbp|chf|rs|inr|cad|aud|kr|zł|руб|円|元)"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec)[a-z]*\.?"
_NUMBER = r"\d+(?:[.,' ]\d+)*"

FILE_NAMES = {
    "has an image's extension": rf"[^\s/]+(?: [^\s/]+)?(?: ?\(\d+\))?\.{_EXTENSION}",
    "path": rf"(?:[a-z]:)?[\\/]?(?:[^\s\\/]+[\\/])+[^\\/]*\.{_EXTENSION}",
    "camera": r"_?(?:img|image|dsc[nf]?|pict|pic|pxl|mvi|vid|gopr|sam|dscf|dji|photo|foto|imgp|cimg|hpim|p|wp|fb_img)"
    r"[-_ ]*(?:e\d+[-_ ])?\d{3,}[-_.~\w]*(?: ?\(\d+\))?",
    "numbers of a camera": r"_?(?:[a-z]{0,4}[-_])?\d{3,}(?:[-_]\d+)+(?:[-_][a-z]{1,3})?",
    "messenger": r"(?:img|vid|signal|whatsapp (?:image|video|bild))[- ](?:\d{8}-wa\d+|\d{4}-\d\d-\d\d.*)",
    "screenshot": r"(?:screen ?shots?|screen capture|bildschirmfoto|capture d.écran|captura de pantalla|schermata"
    r"|снимок экрана|スクリーンショット)[-_ ]*(?:from |at |vom |le |de )?\(?\d[-\d :._/()a-zà]*",
    "uuid": r"\{?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\}?",
    "hexadecimal": r"(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{12,}(?:[-_]\w{1,4})?",
    "size at the end": r"[^\s]*[-_]\d{2,4}x\d{2,4}",
    "untitled": r"(?:untitled|unnamed|unbenannt|sans titre|sin título|без названия|copy of \S+)[-_ ]*\d*",
    "words joined by underscores": r"(?=.*\d)[^\W_]+(?:_[^\W_]+){2,}",
}
"""What a caption that is the name of a file looks like, in whole and in lower case."""

SHAPES = {
    "number": rf"[#№]?{_NUMBER}(?:%| ?(?:st|nd|rd|th))?(?: ?(?:/|of|von|de|sur) ?\d+)?",
    "price": rf"(?:(?:from|only|now|was|ab|nur|desde) )?(?:{_MONEY} ?{_NUMBER}|{_NUMBER}(?:,-)? ?{_MONEY})",
    "size": rf"{_NUMBER} ?{_UNIT}?(?: ?[x×*] ?{_NUMBER} ?{_UNIT}?)+|{_NUMBER} ?{_UNIT}",
    "date": rf"(?:\w+, )?(?:\d{{1,4}}[-./]\d{{1,2}}[-./]\d{{1,4}}|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}"
    rf"|\d{{1,2}}\.? {_MONTH},? \d{{4}}|{_MONTH} \d{{4}}"
    rf"|\d{{4}}年\d{{1,2}}月(?:\d{{1,2}}日)?)(?:[t ]+\d\d?[:.]\d\d.*)?",
}
"""Captions that hold a number, price, size or date and nothing else; in lower case."""

_FILE_NAME = re.compile("|".join(f"(?:{pattern})" for pattern in FILE_NAMES.values()))
_SHAPE = re.compile("|".join(f"(?:{pattern})" for pattern in SHAPES.values()))
_URL = re.compile(
    r"https?:/|\bwww\.\w|\b[a-z0-9-]{2,}\.(?:com|net|org|info|biz|co\.uk|com\.\w\w|ru|de|fr|jp|cn|io|ly)\b"
)
_BETWEEN_WORDS = re.compile(r"[^\w]+|_+")


@annotator("boilerplate")
class Boilerplate(Annotator):
    """Captions without a description, by the rules above and the phrases in `data/boilerplate.txt`."""

    needs_sample: ClassVar[bool] = False
    batch_samples: ClassVar[int] = 1024

    def columns(self) -> dict[str, pa.DataType]:
        """`is_filename`: nothing but the name of a file. `is_boilerplate`: a phrase of web pages, or only a number,
        price, size or date. `url_in_caption`: a web address or host name somewhere in it."""
        return {name: pa.bool_() for name in ("is_filename", "is_boilerplate", "url_in_caption")}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        captions = [caption.strip().lower() for caption in batch.captions]
        phrases = _phrases()
        return {
            "is_filename": [_FILE_NAME.fullmatch(caption) is not None for caption in captions],
            "is_boilerplate": [
                _SHAPE.fullmatch(caption) is not None or phrases.match(_plain(caption)) for caption in captions
            ],
            # A dot comes with every address but one with a protocol, and looking for it is far quicker.
            "url_in_caption": [
                ("." in caption or "://" in caption) and _URL.search(caption) is not None for caption in captions
            ],
        }


def _plain(text: str) -> str:
    return _BETWEEN_WORDS.sub(" ", text).strip()


@dataclass(frozen=True)
class _Phrases:
    whole: frozenset[str]
    starts: tuple[str, ...]
    ends: tuple[str, ...]

    def match(self, plain: str) -> bool:
        return plain in self.whole or plain.startswith(self.starts) or plain.endswith(self.ends)


@lru_cache(maxsize=1)
def _phrases() -> _Phrases:
    text = resources.files("pipeline.annotate").joinpath("data/boilerplate.txt").read_text(encoding="utf-8")
    lines = [line.strip().lower() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    whole = frozenset(_plain(line) for line in lines if "*" not in line)
    # `photo by *` asks for a word after it, `copyright*` does not.
    starts = tuple(_plain(line) + " " * line.endswith(" *") for line in lines if line.endswith("*"))
    ends = tuple(_plain(line) for line in lines if line.startswith("*"))
    return _Phrases(whole, starts, ends)
