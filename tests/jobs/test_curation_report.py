"""The curation report, the data set card and `genlip inspect`, from stores whose selection a test wrote down."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from jobs.curation.card import size_category, write_card
from jobs.curation.inspect import inspect_store
from jobs.curation.packing import packing_efficiency
from jobs.curation.page import write_curation_report
from pipeline.curate.rows import Part, Rows
from pipeline.curate.summary import read_summary, summarise, summary_file
from pipeline.each import in_turn
from pipeline.errors import UserError
from pipeline.shards import INDEX_SCHEMA
from pipeline.store import Store
from tests.selections import annotate_by_hand, write_selection
from tests.stores import Stored, make_store, noise

ATTACK = '<script>alert("a")</script><img src=http://example.org/x.png> & "quoted"'
MAX_BYTES = 10_000_000
VOID = {"meta", "link", "img", "input", "br"}


class _Checker(HTMLParser):
    """Whether every element is closed in order, and what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.num_scripts = 0

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.num_scripts += tag == "script"
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check(path: Path) -> _Checker:
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < MAX_BYTES
    checker = _Checker()
    checker.feed(text)
    assert not checker.open
    assert all(load.startswith("data:") for load in checker.loads)
    assert not re.search(r"@import|url\(", text)
    assert checker.num_scripts == 1
    assert all(image["alt"] for image in checker.images)
    return checker


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Forty samples of which some are short, near-duplicates, not safe, or evaluation images."""
    samples = [Stored(f"k{place:02d}", f"caption {place}", noise(place), phash=f"{place:016x}") for place in range(40)]
    samples[3] = Stored("k03", ATTACK, noise(3), url="javascript:alert(1)")
    store = make_store([samples[:20], samples[20:]], str(tmp_path / "store"))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "cat.jpg").write_bytes(noise(4))
    hit = [place == 4 for place in range(40)]
    columns = {
        "lang": pa.array(["en", "de", None, "fr"] * 10),
        "nsfw_score": pa.array(np.linspace(0, 1, 40), pa.float32()),
        "eval_set": pa.array(["animals" if one else None for one in hit]),
        "eval_image": pa.array(["cat.jpg" if one else None for one in hit]),
        "eval_bits": pa.array([-1 if one else None for one in hit], pa.int32()),
    }
    rows = annotate_by_hand(store, columns, {"sets": {"animals": str(tmp_path / "evaluation")}})
    fates = ["train"] * 30 + ["safe"] * 10
    fates[3], fates[4], fates[7], fates[8] = "long_enough", "evaluation_image", "near_duplicate", "heldout"
    where = {"long_enough": "words >= 3", "safe": "nsfw_score < 0.75"}
    fates[9] = "near_heldout"
    write_selection(rows, "demo", fates, {7: "k06", 9: "k08"}, where)
    return rows


def test_the_page_shows_each_section(rows: Rows, tmp_path: Path) -> None:
    path = write_curation_report(rows.store, rows, "demo", tmp_path / "out" / "curation.html")
    checker, text = _check(path), path.read_text(encoding="utf-8")
    for title in ("From stored to kept", "Before and after", "Languages", "Resolution", "Domains", "Tokens"):
        assert f"<h2>{title}</h2>" in text
    assert "near_duplicate, 1 of 64 bits differ" in text, "k06 and k07"
    assert "near_heldout, 1 of 64 bits differ" in text, "k08 and k09"
    assert '<span class="meaning">held out</span>' in text
    assert "animals: same file" in text
    assert any(image["alt"] == "evaluation image cat.jpg" for image in checker.images)
    assert "words &gt;= 3" in text
    assert "nsfw_score: 0.75" not in text, "a threshold is named by its rule"
    assert "safe: 0.75" in text
    assert text.count('class="veil"') == 10, "what is not safe is hidden, and nothing else"


def test_captions_are_text(rows: Rows, tmp_path: Path) -> None:
    path = write_curation_report(rows.store, rows, "demo", tmp_path / "curation.html")
    text = path.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&quot;a&quot;)&lt;/script&gt;" in text


def test_a_lost_raw_file_costs_its_pictures_only(rows: Rows, tmp_path: Path) -> None:
    rows.store.remove("raw")
    shutil.rmtree(tmp_path / "evaluation")
    path = write_curation_report(rows.store, rows, "demo", tmp_path / "curation.html")
    assert not _check(path).images
    assert "picture not readable" in path.read_text(encoding="utf-8")


def test_a_page_of_one_sample(tmp_path: Path) -> None:
    rows = annotate_by_hand(make_store([[Stored("only")]]), {})
    write_selection(rows, "one", ["train"])
    assert len(_check(write_curation_report(rows.store, rows, "one", tmp_path / "one.html")).images) == 1


def test_a_page_where_nothing_is_kept(tmp_path: Path) -> None:
    rows = annotate_by_hand(make_store([[Stored("only")]]), {})
    write_selection(rows, "none", ["short"], where={"short": "words > 9"})
    _check(write_curation_report(rows.store, rows, "none", tmp_path / "none.html"))


class _Many:
    """A million samples that are computed when they are read, in the shape of `Rows`."""

    NUM_PARTS, PART_SAMPLES = 4, 250_000

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folders = {"lang": "made-1", "clip_score": "made-2"}
        kinds = {"width": "int32", "height": "int32", "original_width": "int32", "original_height": "int32"}
        self.types = {"key": "string", "url": "string", "caption": "string", "size": "int64", **kinds}
        self.types |= {"lang": "string", "clip_score": "float"}

    def parts(self) -> Iterator[Part]:
        yield from (Part(number, number, (f"u{number:08d}",)) for number in range(self.NUM_PARTS))

    def read(self, part: Part, columns: Sequence[str]) -> pa.Table:
        rng = np.random.default_rng(part.number)
        row_N = np.arange(self.PART_SAMPLES)
        number_N = row_N + part.number * self.PART_SAMPLES
        names = pa.array(number_N).cast(pa.string())
        sides = pa.array(np.exp(rng.normal(6, 0.5, self.PART_SAMPLES)).astype(np.int32))
        hosts = pa.array(rng.zipf(1.3, self.PART_SAMPLES).clip(0, 10**6)).cast(pa.string())
        words = pa.array(["", "of a cat", "of two dogs on a beach", "x" * 3000])
        empty = pa.nulls(self.PART_SAMPLES, pa.string())
        found = {
            "unit": pa.array(np.full(self.PART_SAMPLES, part.number, np.int32)),
            "row": pa.array(row_N.astype(np.int32)),
            "key": names,
            "url": pa.compute.binary_join_element_wise("http://h", hosts, ".example.org/", names, ""),
            "caption": pa.compute.binary_join_element_wise("picture ", words.take(pa.array(row_N % 4)), ""),
            "raw": empty.fill_null(f"raw/u{part.number:08d}.tar"),
            "phash": empty,
            "lang": pa.array([f"l{place}" for place in range(90)]).take(pa.array(rng.integers(0, 90, len(row_N)))),
            "clip_score": pa.array(rng.normal(0.25, 0.05, self.PART_SAMPLES).astype(np.float32)),
            **{name: pa.array(row_N * 512) for name in ("offset", "size")},
            **dict.fromkeys(("width", "height", "original_width", "original_height"), sides),
        }
        return pa.table({column: pa.chunked_array([found[column]]) for column in ["unit", "row", *columns]})


def test_a_page_of_a_million_samples(tmp_path: Path) -> None:
    rows = _Many(Store(str(tmp_path / "store")))
    fates = ["train"] * 600_000 + ["heldout"] * 10_000 + ["near_duplicate"] * 190_000 + ["clip"] * 200_000
    write_selection(rows, "big", fates, {700_000: "5"}, {"clip": "clip_score in top 80%"})  # type: ignore[arg-type]
    path = write_curation_report(rows.store, rows, "big", tmp_path / "big.html")  # type: ignore[arg-type]
    _check(path)
    assert "1,000,000" in path.read_text(encoding="utf-8")
    assert len(rows.store.read(summary_file("big"))) < 1_000_000


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the program chromium")
def test_chromium_draws_the_page_without_a_word(rows: Rows, tmp_path: Path, theme: str) -> None:
    path = write_curation_report(rows.store, rows, "demo", tmp_path / "curation.html")
    shot = tmp_path / f"{theme}.png"
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--hide-scrollbars",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", "--window-size=1200,900"]
    command += [f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert shot.stat().st_size > 10_000
    assert "CONSOLE" not in done.stderr


def test_packing_is_that_of_training() -> None:
    assert packing_efficiency([], 100) == 0
    assert packing_efficiency([(50, 1000)], 100) == 1
    assert packing_efficiency([(60, 10)], 100) == pytest.approx(0.6)
    assert packing_efficiency([(60, 10), (40, 10)], 100) > 0.9
    assert packing_efficiency([(500, 3)], 100) == 1, "cut to a row"


def test_the_card_is_what_the_hub_reads(rows: Rows) -> None:
    with pytest.raises(UserError, match="genlip curate"):
        write_card(rows.store, "demo")
    summarise(rows, "demo", in_turn)
    content = rows.store.read(write_card(rows.store, "demo")).decode()
    _, front, body = content.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["license"] == "other"
    assert fields["task_categories"] == ["image-to-text"]
    assert fields["size_categories"] == ["n<1K"]
    assert fields["configs"][0]["data_files"] == [{"split": "train", "path": "shard-*.tar"}]
    assert sorted(fields["language"]) == ["de", "en", "fr"]
    assert "| safe | `nsfw_score < 0.75` | 10 (25.0%) |" in body
    spec = yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.DOTALL)[1])  # type: ignore[index]
    assert spec["curate"]["select"]["where"]["long_enough"] == "words >= 3"


@pytest.mark.parametrize(
    ("num", "name"), [(1, "n<1K"), (1000, "1K<n<10K"), (8 * 10**9, "1B<n<10B"), (10**11, "100B<n<1T")]
)
def test_sizes_have_the_hubs_names(num: int, name: str) -> None:
    assert size_category(num) == name


def test_inspect_says_what_is_there(rows: Rows, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_summary(rows.store, "demo") is None
    shard = {"path": "shards/demo/shard-000000.tar", "num_samples": 27, "num_bytes": 3_200_000}
    rows.store.write_table("shards/demo/index.parquet", pa.Table.from_pylist([shard], schema=INDEX_SCHEMA))
    assert inspect_store(rows.store.root) == 0
    output = capsys.readouterr().out
    assert re.search(r"2 units", output)
    assert re.search(r"success +40", output)
    assert re.search(r"made-0123456789 +2 +2 +eval_bits, eval_image, eval_set, lang, nsfw_score", output)
    assert re.search(r"demo +40 +25 +1 +14", output)
    assert re.search(r"demo +1 +27 +3\.2 MB", output)
    assert re.search(r"caption +caption 0", output)
    assert re.search(r"lang +en", output)


def test_inspect_prefers_the_report_of_ingestion(rows: Rows, capsys: pytest.CaptureFixture[str]) -> None:
    rows.store.write_json("reports/ingest.json", {"seen": 9, "success": 7, "rejected": {"small": 2}, "failed": {}})
    inspect_store(rows.store.root)
    assert re.search(r"success +7 +77\.8%", capsys.readouterr().out)


def test_inspect_of_what_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="not a store"):
        inspect_store(str(tmp_path))
    empty = make_store([], str(tmp_path / "empty"))
    assert inspect_store(empty.root) == 0
    assert "genlip ingest" in capsys.readouterr().out
