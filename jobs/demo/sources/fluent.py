"""Microsoft Fluent 3D emoji with the names and keywords of emojibase, from npm. Both are MIT: fixtures may ship."""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.demo.sources.record import Record, Source, inverted, sentence_case

PICTURES = "npm:@lobehub/fluent-emoji-3d@1.1.0"
LICENCE = "MIT (Microsoft Fluent Emoji; names from emojibase, MIT)"
MAX_KEYWORDS = 4

# Class -> Unicode emoji subgroups. A subgroup that is missing here (arrows, keycaps, ...) is left out of the corpus.
CLASS_OF_SUBGROUP = inverted(
    {
        "mammal": "animal-mammal",
        "bird": "animal-bird",
        "reptile or amphibian": "animal-reptile animal-amphibian",
        "fish": "animal-marine",
        "insect": "animal-bug",
        "flower": "plant-flower",
        "plant": "plant-other",
        "fruit": "food-fruit",
        "vegetable": "food-vegetable",
        "meal": "food-prepared food-asian",
        "dessert": "food-sweet",
        "drink": "drink",
        "kitchenware": "dishware",
        "map": "place-map",
        "mountain": "place-geographic",
        "building": "place-building place-religious",
        "city": "place-other",
        "road vehicle": "transport-ground",
        "boat": "transport-water",
        "aircraft": "transport-air",
        "clock": "time",
        "weather or sky": "sky-weather",
        "holiday": "event",
        "sport": "sport person-sport award-medal",
        "toy or game": "game",
        "clothing": "clothing",
        "musical instrument": "musical-instrument",
        "electronics": "phone computer light-video music sound",
        "book or paper": "book-paper",
        "money": "money",
        "office supply": "office writing mail arts-crafts",
        "tool": "tool lock",
        "science or medicine": "science medical",
        "household item": "household hotel other-object",
        "body part": "body-parts hands hand-single-finger hand-fingers-closed hand-fingers-open "
        "hand-fingers-partial hand-prop",
        "face": "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy face-unwell "
        "face-hat face-glasses face-concerned face-negative cat-face monkey-face",
        "fantasy creature": "face-costume person-fantasy",
        "person": "person person-gesture person-role person-activity person-resting person-symbol family",
        "flag": "flag country-flag subdivision-flag",
        "sign": "transport-sign warning",
        "symbol": "heart emotion zodiac religion",
    },
    " ",
)
# Labels whose subgroup is too coarse.
CLASS_OF_LABEL = inverted(
    {
        "mammal": "whale; spouting whale; dolphin; seal",
        "sea creature": "octopus; squid; jellyfish; coral; spiral shell; crab; lobster; shrimp; oyster",
        "dinosaur": "sauropod; T-Rex",
        "fantasy creature": "unicorn; dragon; dragon face",
        "tree": "evergreen tree; deciduous tree; palm tree; Christmas tree; tanabata tree",
        "mushroom": "mushroom",
        "grain": "sheaf of rice",
        "nut or seed": "chestnut; peanuts",
        "legume": "beans; pea pod",
        "spice": "garlic; ginger root; hot pepper; salt",
        "bread": "bread; croissant; baguette bread; flatbread; pretzel; bagel",
        "meat": "meat on bone; poultry leg; bacon; cut of meat",
        "dairy or egg": "egg; cooking; cheese wedge; butter; glass of milk",
        "train": "locomotive; railway car; high-speed train; bullet train; train; metro; light rail; station; tram; "
        "tram car; monorail; mountain railway; suspension railway; railway track",
        "cycle": "bicycle; motorcycle; motor scooter; kick scooter",
        "sign": "stop sign; construction; horizontal traffic light; vertical traffic light; bus stop",
        "space": "rocket; satellite; flying saucer; ringed planet; milky way; comet; new moon; full moon; sun; "
        "crescent moon; first quarter moon; last quarter moon; waxing crescent moon; waning crescent moon; "
        "waxing gibbous moon; waning gibbous moon; shooting star",
        "hat": "crown; top hat; woman’s hat; billed cap; graduation cap; military helmet; rescue worker’s helmet",
        "furniture": "chair; couch and lamp; bed",
        "weapon": "bomb; dagger; bow and arrow; crossed swords; axe; shield",
        "coast or sea": "beach with umbrella; desert island; water wave",
        "desert": "desert",
        "forest": "national park; camping",
        "toy or game": "carousel horse; ferris wheel; roller coaster; circus tent; playground slide",
        "kitchenware": "teapot",
        "household item": "brick; rock; wood",
    },
    ";",
)


def records(folders: Sequence[Path]) -> Iterator[Record]:
    """Yields one record per emoji in its default skin tone; `folders` are the pictures and emojibase."""
    pictures, emojibase = folders
    subgroups = json.loads((emojibase / "meta" / "groups.json").read_text(encoding="utf-8"))["subgroups"]
    # Skin tones stand inside their base emoji there, so that a look-up by code leaves them out.
    emoji_by_code = {
        emoji["hexcode"]: emoji for emoji in json.loads((emojibase / "en" / "data.json").read_text(encoding="utf-8"))
    }
    for path in sorted((pictures / "assets").glob("*.webp")):
        code = path.stem.upper()
        emoji = emoji_by_code.get(code) or emoji_by_code.get(code.replace("-FE0F", ""))
        if emoji is None:
            continue
        subgroup = subgroups.get(str(emoji.get("subgroup")), "")
        class_name = CLASS_OF_LABEL.get(emoji["label"]) or CLASS_OF_SUBGROUP.get(subgroup)
        if class_name is None:
            continue
        subject = _subject(emoji["label"])
        yield Record(
            path=path,
            caption=_caption(code, subject, emoji),
            class_name=class_name,
            source="fluent",
            licence=LICENCE,
            origin=f"{PICTURES}:assets/{path.name}",
            subject=subject,
        )


def _subject(label: str) -> str:
    """Names a flag in words ("flag: Chad" -> "the flag of Chad"); every other label stays."""
    return re.sub(r"^flag: ", "the flag of ", label)


def _caption(code: str, subject: str, emoji: Mapping[str, Any]) -> str:
    """Three kinds of sentence, spread evenly by the emoji's code."""
    # Two letters are mostly the code of a country, which a picture of its flag does not show.
    tags = [tag for tag in emoji.get("tags", []) if len(tag) > 2 and tag.lower() not in subject.lower()]
    keywords = tags[:MAX_KEYWORDS]
    kind = zlib.crc32(code.encode()) % 3 if keywords else 0
    if kind == 0:
        return f"A 3D emoji of {subject}."
    if kind == 1:
        return f"A glossy 3D icon of {subject}, about {', '.join(keywords)}."
    return f"{sentence_case(subject)} as a 3D drawing: {', '.join(keywords)}."


SOURCE = Source((PICTURES, "npm:emojibase-data@17.0.0"), records)
