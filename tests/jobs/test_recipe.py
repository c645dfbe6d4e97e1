"""Recipes: what is wrong is named with its key and the right one, all at once; nothing is silently dropped."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.recipe import check_recipe, load_recipe, save_recipe
from pipeline.errors import UserError
from train.samples import parse_samples

RECIPES = sorted((Path(__file__).parents[2] / "jobs" / "recipes").glob("*.yaml"))
LEAST: dict[str, Any] = {
    "name": "test",
    "store": "store",
    "ingest": {"source": {"urls": "urls.parquet"}},
    "train": {"length": "8k samples"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recipe with the required keys alone."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(LEAST), encoding="utf-8")
    return path


def _refusal(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    return caught.value.message


# ---------------------------------------------------------------- good recipes


@pytest.mark.parametrize("shipped", RECIPES, ids=lambda path: path.stem)
def test_the_shipped_recipes_load_and_survive_saving(shipped: Path, tmp_path: Path) -> None:
    recipe = load_recipe(shipped)
    save_recipe(recipe, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe


def test_there_is_a_shipped_recipe() -> None:
    assert "demo" in [path.stem for path in RECIPES]


def test_the_least_recipe_has_the_defaults(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.train.length == 8000
    assert (recipe.seed, recipe.ingest.unit_samples) == (42, 1000)
    assert recipe.ingest.fetch.obey == ("noai", "noimageai", "noindex", "noimageindex", "noml")
    assert recipe.run_dir == Path("runs/test")


# ---------------------------------------------------------------- wrong keys and values


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("seeed", "seed"),
        ("ingest.unit_sample", "ingest.unit_samples"),
        ("ingest.source.captions", "ingest.source.caption"),
        ("ingest.fetch.timeout", "ingest.fetch.timeout_s"),
        ("ingest.accept_unit_if.fetched", "ingest.accept_unit_if.fetched_at_least"),
        ("shards.hold_out", "shards.holdout"),
        ("tokenizer.vocabsize", "tokenizer.vocab_size"),
        ("model.image_size_px", "model.image_px"),
        ("train.optim.warm_up", "train.optim.warmup"),
        ("train.checkpoint.keep", "train.checkpoint.keep_last"),
        ("eval.max_image", "eval.max_images"),
        ("run.worker", "run.workers"),
    ],
)
def test_a_typo_is_suggested_at_every_level(path: Path, wrong: str, right: str) -> None:
    message = _refusal(path, [f"{wrong}=1"])
    assert f"{wrong}: no such key; did you mean {right}?" in message
    assert str(path) in message


def test_a_key_like_no_other_gets_the_list_of_keys_there(path: Path) -> None:
    assert "train.optim.velocity: no such key; known here: lr, min_lr, " in _refusal(path, ["train.optim.velocity=1"])


def test_all_problems_are_listed_at_once(path: Path) -> None:
    overrides = [
        "storre=x",
        "ingest.image.quality=101",
        "train.optim.lr=fast",
        "train.precision=fp8",
        "run.workers=-1",
    ]
    message = _refusal(path, overrides)
    for key in ("storre", "ingest.image.quality", "train.optim.lr", "train.precision", "run.workers"):
        assert message.count(f"  - {key}: ") == 1
    assert "got 101" in message
    assert "'fast'" in message


def test_missing_sections_and_keys_are_named(path: Path) -> None:
    path.write_text("name: test\ningest: {}\n")
    message = _refusal(path)
    for key in ("store", "ingest.source", "train"):
        assert f"  - {key}: missing" in message


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ("[{caption_word: {min: 2}}]", "did you mean 'caption_words'"),
        ("[{caption_words: {minimum: 2}}]", "parameters: min, max"),
        ("[{caption_words: {min: 2}, image_size: {}}]", "one filter per list entry"),
        ("[caption_words]", "ingest.filters.0"),
        ("{caption_words: {min: 2}}", "ingest.filters"),
    ],
)
def test_a_wrong_filter_is_named(path: Path, filters: str, named: str) -> None:
    message = _refusal(path, [f"ingest.filters={filters}"])
    assert "  - ingest.filters" in message
    assert named in message


def test_a_plug_in_that_cannot_be_imported_is_named(path: Path) -> None:
    message = _refusal(path, ["ingest.plugins=[no_such_module]"])
    assert "  - ingest.plugins: the plug-in 'no_such_module' cannot be imported" in message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n", "3\n"])
def test_yaml_that_is_no_mapping_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    assert "must be a mapping" in _refusal(path)


@pytest.mark.parametrize("body", [b"a: [1\n", b"\xff\xfe\x00", b"name: caf\xe9\n", b"a: \x00\n"])
def test_what_is_not_yaml_is_refused(path: Path, body: bytes) -> None:
    path.write_bytes(body)
    message = _refusal(path)
    assert "not YAML" in message
    assert str(path) in message


@pytest.mark.parametrize("twice", ["train: {length: 9}\n", "eval: {max_images: 3, batch_images: 2, max_images: 4}\n"])
def test_a_key_that_stands_twice_is_refused(path: Path, twice: str) -> None:
    path.write_text(path.read_text() + twice)
    assert "stands twice" in _refusal(path)


def test_a_file_that_is_absent_or_a_folder_is_named(tmp_path: Path) -> None:
    assert "absent.yaml" in _refusal(tmp_path / "absent.yaml")
    assert "cannot be read" in _refusal(tmp_path)


def test_keys_that_are_no_text_are_named(path: Path) -> None:
    path.write_text(path.read_text() + "1: x\n")
    assert "  - 1: " in _refusal(path)


# ---------------------------------------------------------------- --set


def test_set_replaces_nested_values_and_reads_them_as_yaml(path: Path) -> None:
    overrides = [
        "ingest.fetch.timeout_s=2.5",
        "ingest.filters=[{caption_words: {min: 2}}]",
        "train.optim.lr=1e-4",
        "train.optim.betas=[0.8, 0.9]",
        "train.length=2M samples",
        "train.gradient_checkpointing=full",
        "store=s3://bucket/a=b",
        "seed=1",
        "seed=2",
    ]
    recipe = load_recipe(path, overrides)
    assert recipe.ingest.fetch.timeout_s == 2.5
    assert recipe.ingest.filters == ({"caption_words": {"min": 2}},)
    assert (recipe.train.optim.lr, recipe.train.optim.betas) == (1e-4, (0.8, 0.9))
    assert (recipe.train.length, recipe.train.gradient_checkpointing) == (2_000_000, "full")
    assert recipe.store == "s3://bucket/a=b"
    assert recipe.seed == 2
    assert recipe.ingest.source.urls == "urls.parquet"


@pytest.mark.parametrize("override", ["seed", "=3", "", "seed 3"])
def test_set_without_key_and_value_shows_how(path: Path, override: str) -> None:
    assert f"--set {override}: write --set section.key=value" in _refusal(path, [override])


def test_a_run_that_may_lose_processes_says_how_many_it_has(path: Path) -> None:
    assert load_recipe(path, ["run.workers=4", "run.min_workers=2"]).run.min_workers == 2
    for workers in (0, 1):
        assert "run.min_workers 2 needs run.workers" in _refusal(path, [f"run.workers={workers}", "run.min_workers=2"])


def test_set_below_a_value_and_set_to_broken_yaml_are_refused(path: Path) -> None:
    assert "'name' is not a section" in _refusal(path, ["name.first=x"])
    assert "the value is not YAML" in _refusal(path, ["seed=[1"])


# ---------------------------------------------------------------- numbers of samples


@given(st.integers(0, 2**53))
def test_a_plain_number_of_samples_is_itself(number: int) -> None:
    for text in (str(number), f"{number} samples", f"{number:_} Samples", f"  {number}samples "):
        assert parse_samples(text) == number
    assert parse_samples(number) == number


@given(st.integers(0, 9999), st.integers(0, 999), st.sampled_from([("k", 10**3), ("M", 10**6), ("B", 10**9)]))
def test_a_multiple_of_samples(whole: int, thousandths: int, multiple: tuple[str, int]) -> None:
    letter, factor = multiple
    assert parse_samples(f"{whole}.{thousandths:03d}{letter} samples") == (1000 * whole + thousandths) * factor // 1000
    assert parse_samples(f"{whole}{letter.swapcase()}") == whole * factor


@pytest.mark.parametrize("text", ["many", "-5", "8 T", "1e9", "8B images", ".5k", "8BB", "1,000"])
def test_what_is_no_number_of_samples_is_refused_by_key(path: Path, text: str) -> None:
    assert "  - train.length: write a number of samples" in _refusal(path, [f"train.length='{text}'"])


@pytest.mark.parametrize("value", ["-1", "1.5", "[1]", "null"])
def test_a_length_that_is_no_count_is_refused(path: Path, value: str) -> None:
    assert "  - train.length: " in _refusal(path, [f"train.length={value}"])


# ---------------------------------------------------------------- the content of a store


CONTENT_CHANGES = [
    "ingest.source.url=link",
    "ingest.source.caption=text",
    "ingest.source.preset=laion",
    "ingest.source.uid=id",
    "ingest.source.sha256=hash",
    "ingest.source.boxes=faces",
    "ingest.source.format=csv",
    "ingest.source.group_by_host=true",
    "ingest.unit_samples=7",
    "ingest.fetch.engine=img2dataset",
    "ingest.fetch.max_bytes=7",
    "ingest.fetch.max_redirects=7",
    "ingest.fetch.robots=false",
    "ingest.fetch.obey=[noai]",
    "ingest.fetch.tdm=false",
    "ingest.fetch.allow_addresses=[10.0.0.0/8]",
    "ingest.image.resize=border",
    "ingest.image.size_px=77",
    "ingest.image.only_if_bigger=false",
    "ingest.image.min_side_px=7",
    "ingest.image.max_aspect=7",
    "ingest.image.format=webp",
    "ingest.image.quality=77",
    "ingest.image.reencode=if_changed",
    "ingest.image.max_pixels=77",
    "ingest.image.max_frames=77",
    "ingest.image.max_expansion=77",
    "ingest.image.exact=true",
    "ingest.hash_check.phash=phash",
    "ingest.hash_check.similar_bits=7",
    "ingest.hash_check.different=rejected",
    "ingest.plugins=[json]",
    "ingest.filters=[{caption_words: null}]",
    "ingest.write.format=parquet",
]
COURTESIES = [
    "ingest.source.urls=other.parquet",
    "ingest.fetch.timeout_s=7",
    "ingest.fetch.connect_timeout_s=7",
    "ingest.fetch.min_bytes_per_s=7",
    "ingest.fetch.slow_for_s=7",
    "ingest.fetch.retries=7",
    "ingest.fetch.in_flight=7",
    "ingest.fetch.per_host=7",
    "ingest.fetch.per_host_rate=7",
    "ingest.fetch.user_agent=seven",
    "ingest.fetch.resolvers=[10.0.0.7]",
    "ingest.fetch.ca_file=seven.pem",
    "ingest.fetch.pause_limit_s=7",
    "ingest.fetch.spill=0.7",
    "ingest.image.decode_memory_mb=777",
    "ingest.image.decode_timeout_s=7",
    "ingest.accept_unit_if.fetched_at_least=0.7",
    "ingest.healthy_success=[0.7, 0.8]",
]


@pytest.mark.parametrize("override", [*CONTENT_CHANGES, *COURTESIES])
def test_the_content_changes_exactly_with_a_content_key(path: Path, override: str) -> None:
    before, after = load_recipe(path).ingest, load_recipe(path, [override]).ingest
    assert before != after
    assert (before.content() != after.content()) == (override in CONTENT_CHANGES)


def test_every_ingest_key_is_either_content_or_courtesy(path: Path) -> None:
    def leaves(node: Any, at: str) -> set[str]:
        return (
            {leaf for key, value in node.items() for leaf in leaves(value, f"{at}.{key}")}
            if isinstance(node, dict)
            else {at}
        )

    everything = leaves(load_recipe(path).ingest.model_dump(), "ingest")
    assert everything == {override.partition("=")[0] for override in [*CONTENT_CHANGES, *COURTESIES]}


def test_the_content_is_json_and_independent_of_how_the_recipe_is_written(path: Path) -> None:
    content = load_recipe(path).ingest.content()
    assert json.loads(json.dumps(content)) == content
    spelled_out = check_recipe(LEAST | {"ingest": load_recipe(path).ingest.model_dump(mode="json")}, "here")
    assert spelled_out.ingest.content() == content
