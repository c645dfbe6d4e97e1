"""Writes the table of URLs and captions that the demo ingests: mostly good rows, and the bad ones that the web has."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.corpus import CorpusError

MIN_IMAGES = 20
ROWS_PER_GROUP = 500
REFUSING_URL = "http://127.0.0.1:1"  # nothing listens on port 1
MAX_SLOW = 6

# Shares of the number of images. `noai` and flaky rows take the place of a good row, all others are extra rows.
NOAI_SHARE = 0.01
FLAKY_SHARE = 0.02
EXTRA_SHARES = {
    "dead": 0.02,
    "refused": 0.005,
    "error": 0.005,
    "slow": 0.002,
    "truncated": 0.01,
    "html": 0.01,
    "duplicate_row": 0.02,
    "duplicate_image": 0.02,
    "empty_caption": 0.005,
}


@dataclass(frozen=True)
class UrlTableSummary:
    """What a URL table holds.

    Attributes:
        num_expected: rows by the value of their column `expected`.
        num_flaky: rows (expected `ok`) whose URL fails once before it works.
    """

    path: Path
    num_rows: int
    num_expected: dict[str, int]
    num_flaky: int


@dataclass(frozen=True)
class _Row:
    index: int  # of the image in the corpus
    url: str
    expected: str
    caption: str | None = None  # None keeps the image's own


def write_url_table(corpus: pa.Table, base_url: str, path: Path, seed: int) -> UrlTableSummary:
    """Writes a Parquet file of shuffled rows; the same arguments give the same bytes.

    Columns: `url`, `caption`, `class_name`, the corpus's other columns and `expected`, which says what becomes of a
    row: `ok`, `noai` or a key of `EXTRA_SHARES`. A `duplicate_row` repeats an ok row; a `duplicate_image` has another
    URL, but the caption and the bytes of an ok row: deduplication leaves one row of each pair, whichever came first.
    Rows with an `empty_caption` (empty or only blanks) have a URL of their own that works.

    Args:
        corpus: what `read_corpus` returns.
        base_url: of the image server, e.g. ``http://127.0.0.1:8000``.
        seed: decides which images get bad rows, and the order of all rows.

    Raises:
        CorpusError: fewer than `MIN_IMAGES` images, or the corpus has a column `url` or `expected`.
    """
    if corpus.num_rows < MIN_IMAGES:
        raise CorpusError(
            f"the corpus has {corpus.num_rows} images; a URL table with bad rows needs {MIN_IMAGES} or more"
        )
    if taken := {"url", "expected"} & set(corpus.column_names):
        raise CorpusError(f"the corpus has columns {sorted(taken)}, which the URL table writes itself: rename them")
    rng = random.Random(seed)
    files = [quote(file.removeprefix("images/")) for file in corpus["file"].to_pylist()]
    good = _good_rows(files, base_url, rng)
    rows = good + _extra_rows(files, good, base_url, rng)
    rng.shuffle(rows)
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(_table(corpus, rows), part, row_group_size=ROWS_PER_GROUP)
    part.replace(path)
    return UrlTableSummary(
        path=path,
        num_rows=len(rows),
        num_expected=dict(sorted(Counter(row.expected for row in rows).items())),
        num_flaky=sum(row.url.startswith(f"{base_url}/flaky/") for row in rows),
    )


def _good_rows(files: list[str], base_url: str, rng: random.Random) -> list[_Row]:
    """One row per image: plain, flaky or noai."""
    num_noai = _count(len(files), NOAI_SHARE)
    num_flaky = _count(len(files), FLAKY_SHARE)
    special = rng.sample(range(len(files)), num_noai + num_flaky)
    routes = dict.fromkeys(special[:num_noai], "noai") | dict.fromkeys(special[num_noai:], "flaky")
    rows = []
    for index, file in enumerate(files):
        route = routes.get(index, "img")
        rows.append(_Row(index, f"{base_url}/{route}/{file}", "noai" if route == "noai" else "ok"))
    return rows


def _extra_rows(files: list[str], good: list[_Row], base_url: str, rng: random.Random) -> list[_Row]:
    # Duplicates and captionless rows point at images whose plain URL works, so that what is left is known exactly.
    plain = [row.index for row in good if row.url.startswith(f"{base_url}/img/")]
    rows = []
    for expected, share in EXTRA_SHARES.items():
        num_rows = _count(len(files), share)
        for number, index in enumerate(rng.sample(plain, min(num_rows, MAX_SLOW) if expected == "slow" else num_rows)):
            image_url = f"{base_url}/img/{files[index]}"
            match expected:
                case "duplicate_row":
                    row = _Row(index, image_url, expected)
                case "duplicate_image":
                    row = _Row(index, f"{image_url}?copy=1", expected)
                case "empty_caption":
                    row = _Row(index, f"{image_url}?caption=none", expected, caption=" \t " if number % 2 else "")
                case "refused":
                    row = _Row(index, f"{REFUSING_URL}/img/{files[index]}", expected)
                case route:
                    row = _Row(index, f"{base_url}/{route}/{files[index]}", expected)
            rows.append(row)
    return rows


def _count(num_images: int, share: float) -> int:
    """At least two of each kind, so that every kind occurs (and both kinds of empty caption)."""
    return max(2, round(num_images * share))


def _table(corpus: pa.Table, rows: list[_Row]) -> pa.Table:
    taken = corpus.take([row.index for row in rows])
    captions = [
        row.caption if row.caption is not None else caption
        for row, caption in zip(rows, taken["caption"].to_pylist(), strict=True)
    ]
    columns = {
        "url": pa.array([row.url for row in rows], pa.string()),
        "caption": pa.array(captions, pa.string()),
        "class_name": taken["class_name"],
    }
    columns |= {name: taken[name] for name in taken.column_names if name not in columns}
    return pa.table(columns | {"expected": pa.array([row.expected for row in rows], pa.string())})
