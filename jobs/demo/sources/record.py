"""What every source yields, and the class names that all of them share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


def squash(text: str) -> str:
    """Joins a text to one line with single spaces."""
    return " ".join(text.split())


# One vocabulary for all sources, so that "a bird" is the same class in a photograph and in clip art.
CLASSES = frozenset(
    squash(name)
    for name in """
    mammal; bird; fish; insect; reptile or amphibian; sea creature; dinosaur; fantasy creature
    flower; tree; plant; mushroom
    fruit; vegetable; grain; legume; nut or seed; spice; cooking oil; dairy or egg; meat; bread; meal; dessert; drink
    train; boat; aircraft; space; cycle; road vehicle
    clothing; hat; musical instrument; household item; furniture; kitchenware; tool; weapon; electronics; clock
    book or paper; money; office supply; science or medicine; toy or game; sport; holiday
    building; city; mountain; coast or sea; valley or hills; canyon or badlands; field; snow or ice
    lake or river; desert; forest; lava or geyser; weather or sky; map
    person; face; body part; flag; sign; symbol; letter or digit; playing card
    """.replace("\n", ";").split(";")
    if name.strip()
)


@dataclass(frozen=True)
class Record:
    """One image with its caption, as a source offers it.

    Attributes:
        path: the image file inside the unpacked package (SVG files are drawn later).
        caption: English text of the source, put into a sentence.
        class_name: one of `CLASSES`.
        source: short name of the source.
        licence: licence of this image.
        origin: package and file inside it.
        subject: the thing shown, in a few words.
    """

    path: Path
    caption: str
    class_name: str
    source: str
    licence: str
    origin: str
    subject: str

    def __post_init__(self) -> None:
        if self.class_name not in CLASSES:
            raise ValueError(
                f"{self.origin}: class {self.class_name!r} is not in CLASSES; add it there or fix the rule"
            )


@dataclass(frozen=True)
class Source:
    """A source: the packages that it needs and how their unpacked folders become records.

    Attributes:
        packages: what `registry.get_package` accepts, e.g. ``npm:emojibase-data@17.0.0``.
        records: takes the unpacked folders in the order of `packages`.
    """

    packages: tuple[str, ...]
    records: Callable[[Sequence[Path]], Iterator[Record]]


def sentence_case(text: str) -> str:
    """Upper-cases the first letter and leaves the rest as it is."""
    return text[:1].upper() + text[1:]


def inverted(keys_by_class: dict[str, str], separator: str) -> dict[str, str]:
    """Turns ``{"fish": "shark; eel"}`` into ``{"shark": "fish", "eel": "fish"}``."""
    return {
        squash(key): class_name
        for class_name, keys in keys_by_class.items()
        for key in keys.split(separator)
        if key.strip()
    }
