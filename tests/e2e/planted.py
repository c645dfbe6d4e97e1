"""A corpus with planted cases, curated by the commands: a table of what was planted and what was caught.

    python -m tests.e2e.planted FOLDER_OF_A_CORPUS WORK_FOLDER

The corpus is one of the demo's (`genlip demo` makes them in OUT/corpus).
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.corpus import image_path, read_corpus
from jobs.demo.server import start_server
from pipeline.store import Store
from tests.planted import nsfw_positive
from tests.stores import jpeg

PER_CASE = 20
BLOCKED = "zorkmid"
LANGUAGES = {
    "fr": "Une photo de {} posée sur une table en bois, près de la fenêtre ouverte.",
    "de": "Ein Bild von {}, das auf einem alten Holztisch neben dem Fenster liegt.",
    "ja": "窓のそばの木のテーブルの上に置かれた{}の写真です。",
    "es": "Una fotografía de {} que está sobre una mesa de madera junto a la ventana.",
    "zh": "这是一张放在窗边木桌上的{}的照片。",
}


@dataclass(frozen=True)
class Planted:
    """One planted row: a served file with a caption, and the fates that count as caught."""

    case: str
    file: str
    caption: str
    expected: frozenset[str]
    twin: str = ""
    """URL of the row that it repeats: one of the two must go."""


def plant(corpus: Path, work: Path) -> tuple[Path, list[Planted], list[Planted], Path]:
    """Write the planted files and the evaluation set below WORK.

    Returns:
        Folder to serve, the planted rows, the corpus's own rows, and the folder of the evaluation set.
    """
    table = read_corpus(corpus)
    served = work / "served"
    (served / "images").mkdir(parents=True)
    own: list[Planted] = []
    pixels: dict[str, np.ndarray[Any, Any]] = {}
    for number, (file, caption) in enumerate(zip(table["file"].to_pylist(), table["caption"].to_pylist(), strict=True)):
        source = image_path(corpus, file)
        name = f"c{number:06d}{source.suffix}"
        (served / "images" / name).write_bytes(source.read_bytes())
        own.append(Planted("corpus", name, caption, frozenset()))
    chosen = np.random.default_rng(5).permutation(len(own))[: 8 * PER_CASE]
    groups = [[own[i] for i in chosen[start : start + PER_CASE]] for start in range(0, 7 * PER_CASE, PER_CASE)]
    exact, encoded, resized, evaluated, words, named, spoken = groups
    for one in {one.file for group in groups for one in group}:
        pixels[one] = _read(served / "images" / one)

    def write(name: str, body: bytes) -> str:
        (served / "images" / name).write_bytes(body)
        return name

    def case(kind: str, fates: str, originals: Sequence[Planted], body: Callable[[Planted], bytes]) -> list[Planted]:
        return [
            Planted(kind, write(f"{kind}{i}.jpg", body(one)), one.caption, frozenset(fates.split()), one.file)
            for i, one in enumerate(originals)
        ]

    planted = case("exact", "duplicate_image", exact, lambda one: (served / "images" / one.file).read_bytes())
    planted += case("reencoded", "near_duplicate", encoded, lambda one: jpeg(pixels[one.file], 60))
    planted += case("resized", "near_duplicate", resized, lambda one: jpeg(_scaled(pixels[one.file], 0.7)))
    evaluation = work / "evaluation"
    evaluation.mkdir()
    for i, one in enumerate(evaluated):
        (evaluation / f"e{i:03d}.jpg").write_bytes(jpeg(_scaled(pixels[one.file], 0.8), 80))
    fate = frozenset({"evaluation_image"})
    planted += [Planted("evaluation", one.file, one.caption, fate) for one in evaluated]

    def captioned(kind: str, rule: str, captions: Sequence[str], originals: Sequence[Planted]) -> list[Planted]:
        # Pictures of their own (mirrored), so that only the caption can be the reason.
        return [
            Planted(kind, write(f"{kind}{i}.jpg", jpeg(pixels[one.file][:, ::-1])), text, frozenset({rule}))
            for i, (one, text) in enumerate(zip(originals, captions, strict=True))
        ]

    planted += captioned("blocklisted", "not_blocked", [f"{one.caption} {BLOCKED}" for one in words], words)
    names = [f"IMG_{4000 + i}.JPG" for i in range(len(named))]
    planted += captioned("file name", "not_file_name", names, named)
    for language, sentence in LANGUAGES.items():
        quarter = spoken[:4]
        spoken = spoken[4:]
        foreign = [sentence.format(one.file[1:5]) for one in quarter]
        planted += captioned(f"language {language}", "english", foreign, quarter)
    for i in range(5):
        name = write(f"nsfw{i}.jpg", jpeg(nsfw_positive(i)))
        planted.append(Planted("nsfw", name, "a drawing of soft round shapes", frozenset({"safe"})))
    return served, planted, own, evaluation


def write_recipe(work: Path, base_url: str, planted: list[Planted], own: list[Planted], evaluation: Path) -> Path:
    """The URL table and a recipe whose rules should catch what is planted."""
    rows = {one.file: one.caption for one in [*own, *planted]}
    urls = [f"{base_url}/img/{quote(file)}" for file in rows]
    pq.write_table(pa.table({"url": urls, "caption": list(rows.values())}), work / "urls.parquet")
    recipe = {
        "name": "planted",
        "store": str(work / "store"),
        "runs": str(work / "runs"),
        "ingest": {
            "source": {"urls": str(work / "urls.parquet")},
            "unit_samples": 500,
            "fetch": {"allow_addresses": ["127.0.0.0/8"], "per_host": 32, "spill": 0},
        },
        "curate": {
            "annotate": [
                {"caption_stats": {}},
                {"language": {}},
                {"boilerplate": {}},
                {"blocklist": {"words": [BLOCKED]}},
                {"nsfw": {}},
            ],
            "decontaminate": {"sets": {"planted": str(evaluation)}},
            "select": {
                "where": {
                    "not_file_name": "not is_filename",
                    "not_blocked": "blocked_word is null",
                    "english": "lang = 'en' or lang_score < 0.8 or lang is null",
                    "safe": "nsfw_score < 0.5",
                },
                "dedup": {"near_bits": 6},
            },
        },
        "shards": {"name": "planted", "shard_samples": 500},
        "train": {"length": 1000},
    }
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


def fates(store: Store, name: str) -> dict[str, str]:
    """Fate by file of the served folder."""
    urls = {}
    for ledger in store.names("ledger", ".parquet"):
        table = store.read_table(f"ledger/{ledger}", ["key", "url"])
        urls |= dict(zip(table["key"].to_pylist(), table["url"].to_pylist(), strict=True))
    found = {}
    for part in store.names(f"selection/{name}", ".parquet"):
        table = store.read_table(f"selection/{name}/{part}", ["key", "fate"])
        for key, fate in zip(table["key"].to_pylist(), table["fate"].to_pylist(), strict=True):
            found[unquote(urls[key]).rsplit("/", 1)[-1]] = fate
    return found


def caught(planted: Sequence[Planted], found: dict[str, str]) -> dict[str, tuple[int, int]]:
    """(planted, caught) by case; of twins it is enough that one of the two went."""
    result: dict[str, list[int]] = {}
    for one in planted:
        number = result.setdefault(one.case, [0, 0])
        number[0] += 1
        pair = {found.get(one.file, "not stored"), found.get(one.twin, "")}
        if pair & one.expected:
            number[1] += 1
        else:
            sys.stderr.write(f"missed: {one.case} {one.file} {sorted(pair)}\n")
    return {case: (total, hits) for case, (total, hits) in result.items()}


def lost(planted: Sequence[Planted], own: Sequence[Planted], found: dict[str, str]) -> Counter[str]:
    """Fates of the corpus's own rows that nothing was planted on."""
    touched = {one.file for one in planted} | {one.twin for one in planted}
    return Counter(found.get(one.file, "not stored") for one in own if one.file not in touched)


def _read(path: Path) -> np.ndarray[Any, Any]:
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.float32) / 255
        image = (image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _scaled(rgb: np.ndarray[Any, Any], factor: float) -> np.ndarray[Any, Any]:
    return cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def run(corpus: Path, work: Path) -> tuple[dict[str, tuple[int, int]], Counter[str], str]:
    """Plant, ingest, curate. Returns (planted, caught) by case, the fates of the rest, and what the command printed."""
    served, planted, own, evaluation = plant(corpus, work)
    with start_server(served) as base_url:
        recipe = write_recipe(work, base_url, planted, own, evaluation)
        command = [sys.executable, "-m", "jobs.cli", "ingest", str(recipe)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    found = fates(Store(str(work / "store")), "planted")
    return caught(planted, found), lost(planted, own, found), done.stdout


def main() -> None:
    table, rest, printed = run(Path(sys.argv[1]), Path(sys.argv[2]))
    lines = [printed, *(f"{case:<14} planted {total:4d}  caught {hits:4d}" for case, (total, hits) in table.items())]
    lines.append(f"the corpus's other rows: {dict(rest.most_common())}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
