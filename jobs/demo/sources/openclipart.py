"""Open Clip Art (SVG drawings with title, description and keywords), from Debian. Public domain."""

import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.demo.sources.record import Record, Source, inverted, sentence_case, squash

PACKAGE = "debian:openclipart-svg"
MAX_SVG_BYTES = 1_500_000
MAX_KEYWORDS = 4
# A title that this many drawings share names their series, not what they show.
MIN_SERIES = 6

# Folder -> class. The longest folder that a drawing lies in counts; None leaves it out.
CLASS_OF_FOLDER = {
    "animals/amphibian": "reptile or amphibian",
    "animals/birds": "bird",
    "animals/bugs": "insect",
    "animals/dinosaurs": "dinosaur",
    "animals/fantasy": "fantasy creature",
    "animals/fish": "fish",
    "animals/mammals": "mammal",
    "buildings": "building",
    "buildings/furniture": "furniture",
    "computer/hardware": "electronics",
    "education": "office supply",
    "education/books": "book or paper",
    "electronics": "electronics",
    "food": "meal",
    "food/beverages": "drink",
    "food/breads_and_carbs": "bread",
    "food/dairy": "dairy or egg",
    "food/desserts": "dessert",
    "food/fruit": "fruit",
    "food/meats_and_eggs": "meat",
    "food/vegetables": "vegetable",
    "geography": "map",
    "geography/astronomy": "space",
    "office": "office supply",
    "office/telephone": "electronics",
    "people": "person",
    "people/bodypart": "body part",
    "people/clothing": "clothing",
    "people/clothing/hats": "hat",
    "people/clothing/pantyhose": None,
    "people/smilies": "face",
    "plants": "plant",
    "plants/flowers": "flower",
    "plants/trees": "tree",
    "recreation/games": "toy or game",
    "recreation/games/cards": None,
    "recreation/games/cards/ornamental": "playing card",
    "recreation/holiday": "holiday",
    "recreation/music": "musical instrument",
    "recreation/party": "holiday",
    "recreation/religion": "symbol",
    "recreation/sports": "sport",
    "recreation/toys": "toy or game",
    "science": "science or medicine",
    "science/astronomy": "space",
    "signs_and_symbols": "symbol",
    "signs_and_symbols/clocks": "clock",
    "signs_and_symbols/flags": "flag",
    "signs_and_symbols/hazard": "sign",
    "signs_and_symbols/led": None,
    "signs_and_symbols/map_symbols": None,
    "signs_and_symbols/money": "money",
    "signs_and_symbols/weather": "weather or sky",
    "tools": "tool",
    "tools/weapons": "weapon",
    "transportation/aiga-symbols": "sign",
    "transportation/boating": "boat",
    "transportation/roadsigns": "sign",
    "transportation/vehicles": "road vehicle",
}
# In these folders kinds are mixed: a keyword (or a word of the title) names the class before the folder does.
MIXED = {"animals", "food", "transportation", "transportation/vehicles", "tools", "people"}
CLASS_OF_WORD = inverted(
    {
        "mammal": "mammal cat dog horse cow sheep pig mouse rabbit lion tiger elephant bear monkey fox deer",
        "bird": "bird duck eagle owl penguin chicken parrot",
        "fish": "fish shark",
        "insect": "insect bug butterfly bee spider",
        "reptile or amphibian": "reptile snake frog turtle lizard crocodile",
        "sea creature": "crab lobster octopus squid shell starfish snail",
        "fantasy creature": "dragon unicorn monster alien elf",
        "mushroom": "mushroom",
        "fruit": "fruit apple banana lemon orange pear strawberry grapes",
        "vegetable": "vegetable carrot tomato potato pepper onion corn",
        "dessert": "dessert cake cookie icecream candy pie",
        "drink": "drink beverage coffee tea beer wine",
        "bread": "bread toast",
        "meat": "meat sausage ham steak",
        "aircraft": "airplane aeroplane plane helicopter airtravel jet balloon",
        "boat": "boat ship sailboat",
        "train": "train locomotive tram",
        "cycle": "bicycle bike motorcycle scooter",
        "road vehicle": "car truck bus van tractor vehicle",
        "sign": "roadsign sign",
        "weapon": "weapon gun sword knife pistol",
        "clothing": "clothing shirt shoe shoes dress",
        "face": "smiley",
    },
    " ",
)
# Creators who wrote Italian or French; every caption of this corpus is English.
FOREIGN = re.compile(
    r"architetto|rollandin|guillou|\b(della?|con|il|les?|des?|du|et|und|der|das|mit|una?|per)\b", re.IGNORECASE
)
SERIES = re.compile(
    r"clipart by|etiquette icons|svg road signs|aiga|submission|sibmission|untitled|iconset", re.IGNORECASE
)
# Keywords about the library instead of the drawing.
IDLE_KEYWORDS = {
    "clip art",
    "clipart",
    "hash",
    "image",
    "mapsym",
    "menu",
    "public domain",
    "signs_and_symbols",
    "unsorted",
}
CARD = re.compile(r"_([cdhs])_(10|[2-9akqj])$")
SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
RANKS = {"a": "ace", "k": "king", "q": "queen", "j": "jack"}


@dataclass(frozen=True)
class _Drawing:
    path: Path
    file: Path  # relative to the collection
    title: str
    description: str
    creator: str
    keywords: tuple[str, ...]


def records(folders: Sequence[Path]) -> Iterator[Record]:
    """Yields one record per drawing with an English text."""
    (folder,) = folders
    root = folder / "usr" / "share" / "openclipart" / "svg"
    paths = [path for path in sorted(root.rglob("*.svg")) if path.stat().st_size <= MAX_SVG_BYTES]
    drawings = [_read(path, path.relative_to(root)) for path in paths]
    num_by_title = Counter(drawing.title.lower() for drawing in drawings)
    for drawing in drawings:
        is_series = num_by_title[drawing.title.lower()] >= MIN_SERIES or bool(SERIES.search(drawing.title))
        subject = _subject(drawing, is_series)
        class_name = _class_name(drawing, subject)
        if class_name is None or not _is_english(f"{subject} {drawing.creator}") or sum(map(str.isalpha, subject)) < 3:
            continue
        yield Record(
            path=drawing.path,
            caption=_caption(drawing, subject, class_name),
            class_name=class_name,
            source="openclipart",
            licence="Public domain (Creative Commons dedication)",
            origin=f"{PACKAGE}:{drawing.file.as_posix()}",
            subject=subject.lower(),
        )


def _read(path: Path, file: Path) -> _Drawing:
    """Reads the metadata with patterns, because many of these files are not well-formed XML."""
    metadata = re.search(r"<metadata.*?</metadata>", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    block = metadata[0] if metadata else ""

    def texts(tag: str, within: str) -> list[str]:
        found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", within, re.DOTALL)
        return [
            text
            for text in (squash(html.unescape(html.unescape(re.sub("<[^>]+>", " ", raw)))) for raw in found)
            if text
        ]

    work = re.split("<dc:(?:publisher|creator|rights)", block)[0]  # before the titles of people
    return _Drawing(
        path=path,
        file=file,
        title=next(iter(texts("dc:title", work)), ""),
        description=next(iter(texts("dc:description", block)), ""),
        creator=" ".join(texts("dc:creator", block)),
        keywords=tuple(word.lower() for word in texts("rdf:li", block)),
    )


def _subject(drawing: _Drawing, is_series: bool) -> str:
    card = CARD.search(drawing.file.stem)
    if card and "cards" in drawing.file.parts:
        return f"{RANKS.get(card[2], card[2])} of {SUITS[card[1]]}"
    if drawing.title and not is_series:
        return re.sub(r"\(?\bB and W\)?|[\s#_]*\d+$", "", drawing.title.replace("_", " ")).strip(" -_.,:#!")
    words = re.sub(r"[\W\d_]+", " ", drawing.file.stem.removeprefix("aiga_")).split()
    people = drawing.creator.lower()
    while len(words) > 1 and (words[-1].lower() in people or words[-1] in {"bw", "ganson"}):
        words.pop()  # file names end in the creator's name, often cut off
    return " ".join(words)


def _class_name(drawing: _Drawing, subject: str) -> str | None:
    ancestors = [folder.as_posix() for folder in (drawing.file.parent, *drawing.file.parent.parents)]
    by_folder = next((CLASS_OF_FOLDER[a] for a in ancestors if a in CLASS_OF_FOLDER), None)
    if ancestors[0] in MIXED:
        words = [*reversed(subject.lower().split()), *drawing.keywords]
        return next((CLASS_OF_WORD[word] for word in words if word in CLASS_OF_WORD), by_folder)
    return by_folder


def _is_english(text: str) -> bool:
    return text.isascii() and not FOREIGN.search(text)


def _caption(drawing: _Drawing, subject: str, class_name: str) -> str:
    """Joins the subject, the description and the keywords, each only if it adds words."""
    if class_name == "flag":
        return f"The flag of {subject}." if "flag" not in subject.lower() else f"{sentence_case(subject)}."
    prefix = {"playing card": "A playing card, the ", "sign": "A sign for "}.get(class_name, "Clip art of ")
    caption = f"{prefix}{subject}."
    description = drawing.description.rstrip(". ")
    if _adds_text(description, caption):
        caption += f" {sentence_case(description)}."
    known = set(re.findall("[a-z]+", caption.lower()))
    keywords = [word for word in dict.fromkeys(drawing.keywords) if _is_keyword(word) and word not in known]
    return f"{caption} Keywords: {', '.join(keywords[:MAX_KEYWORDS])}." if keywords else caption


def _adds_text(description: str, caption: str) -> bool:
    words = set(re.findall("[a-z]+", description.lower()))
    is_about_file = re.search(r"https?:|@|inkscape|convert|created|drawn|clip ?art|hash\(", description, re.IGNORECASE)
    is_new = len(words - set(re.findall("[a-z]+", caption.lower()))) >= 3
    return is_new and len(words) <= 30 and not is_about_file and _is_english(description)


def _is_keyword(word: str) -> bool:
    return len(word) > 2 and word not in IDLE_KEYWORDS and "0x" not in word and _is_english(word)


SOURCE = Source((PACKAGE,), records)
