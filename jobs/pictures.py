"""Contact sheets: images in a grid with lines of text below each."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL_PX = 220
IMAGE_PX = 180
LINE_PX = 15
MARGIN_PX = 12
FONT_PX = 12
CHARACTERS = 32
MAX_LINES = 4


@dataclass(frozen=True)
class Entry:
    """One picture of the sheet; each text has its colour."""

    image: Image.Image
    texts: Sequence[tuple[str, str]]


def contact_sheet(entries: Sequence[Entry], columns: int, path: Path) -> None:
    """Draw the entries row by row and write a PNG."""
    font = ImageFont.load_default(size=FONT_PX)
    lines = [[(line, colour) for text, colour in entry.texts for line in _wrapped(text)] for entry in entries]
    num_rows = -(-len(entries) // columns)
    row_px = IMAGE_PX + LINE_PX * max(len(of_entry) for of_entry in lines) + 2 * MARGIN_PX
    sheet = Image.new("RGB", (columns * CELL_PX + MARGIN_PX, num_rows * row_px + MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (entry, of_entry) in enumerate(zip(entries, lines, strict=True)):
        left = MARGIN_PX + number % columns * CELL_PX
        top = MARGIN_PX + number // columns * row_px
        sheet.paste(_fitted(entry.image), (left, top))
        for place, (line, colour) in enumerate(of_entry):
            draw.text((left, top + IMAGE_PX + 4 + place * LINE_PX), line, fill=colour, font=font)
    sheet.save(path)


def _fitted(image: Image.Image) -> Image.Image:
    """The image as large as fits, centred on light grey."""
    scale = IMAGE_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (IMAGE_PX, IMAGE_PX), "#f2f2f2")
    square.paste(image.resize(size, Image.Resampling.LANCZOS), ((IMAGE_PX - size[0]) // 2, (IMAGE_PX - size[1]) // 2))
    return square


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(text, CHARACTERS) or [""]
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1][: CHARACTERS - 1] + "…"]
