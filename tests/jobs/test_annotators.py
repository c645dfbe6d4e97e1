"""Our own model as an annotator: its numbers are the model package's, and tell right captions from wrong ones."""

import base64
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

import jobs.annotators  # noqa: F401 registers them
from jobs.recipe import check_recipe
from jobs.runs import open_run
from model import (
    Decoding,
    EncodedSample,
    GenLIP,
    GenLIPConfig,
    ImageProcessor,
    LoadedModel,
    SentencePieceTokenizer,
    generate,
    load_rgb,
    pack_rows,
    save_model,
    score_captions,
)
from pipeline.annotate.annotator import Annotator, Batch, build_annotator
from pipeline.annotate.columns import address, read_annotations, read_stored
from pipeline.annotate.unit import annotate_unit
from pipeline.dataset_files import index_file
from pipeline.errors import UserError
from pipeline.shards import Sample, ShardWriter, iter_samples
from pipeline.store import Store
from tests.stores import Stored, jpeg, make_store, noise
from train.data.captions import CAPTION
from train.data.lengths import count_tokens

UNIT = "u00000000"
WORDS = ("red", "green", "small", "tall", "boat", "house", "over", "under", "river", "lamp")
NUM_PAIRS = 8


def picture(number: int) -> bytes:
    """Images of two shapes, so that a batch has two grids."""
    return noise(number, 32, 32 if number % 2 else 48)


def caption(number: int) -> str:
    rng = np.random.default_rng(number)
    return " ".join(rng.choice(WORDS, 5))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A model over-fitted on a few pairs."""
    captions = [caption(number) for number in range(NUM_PAIRS)]
    tokenizer = SentencePieceTokenizer.train(captions * 4, vocab_size=320)
    processor = ImageProcessor(mode="native", patch_size=8, min_pixels=1024, max_pixels=2048)
    model = GenLIP(GenLIPConfig.preset("nano8", vocab_size=tokenizer.vocab_size))
    model.init_weights(0)
    torch.manual_seed(0)  # of DropPath
    loaded = LoadedModel(model, tokenizer, processor)
    samples = [pair(loaded, picture(number), text) for number, text in enumerate(captions)]
    rows = pack_rows([samples], sum(sample.num_tokens for sample in samples))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(100):
        out = model(rows)
        (out.loss_sum / out.num_labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return loaded


@pytest.fixture(scope="module")
def checkpoint(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, loaded.model, loaded.tokenizer, loaded.processor)
    return folder


@pytest.fixture(scope="module")
def parameters(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Checkpoint and prior images: those that the model knows."""
    folder = tmp_path_factory.mktemp("prior")
    for number in range(NUM_PAIRS):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    return {"checkpoint": str(checkpoint), "prior_images": str(folder)}


def pair(loaded: LoadedModel, image: bytes, text: str) -> EncodedSample:
    patches, grid = loaded.processor.patches(load_rgb(image))
    tokenizer = loaded.tokenizer
    return EncodedSample(patches, grid, tokenizer.prompt_ids, [*tokenizer.encode(text), *tokenizer.ending_ids])


def annotate(one: Annotator, samples: Sequence[Stored]) -> dict[str, list[Any]]:
    """The columns, as a unit's annotation writes them."""
    store = make_store([samples])
    annotate_unit(UNIT, store, [one], max_errors=0)
    found = read_annotations(store, address(one), read_stored(store, UNIT))
    assert found.errors == {}
    assert {field.name: field.type for field in found.columns.schema} == one.columns()
    columns: dict[str, list[Any]] = found.columns.to_pydict()
    return columns


def pairs(shift: int = 0) -> list[Stored]:
    """Images with their captions, or with those of the image `shift` places on."""
    return [Stored(f"{n:020x}", caption((n + shift) % NUM_PAIRS), picture(n)) for n in range(NUM_PAIRS)]


def test_a_matched_pair_scores_above_shuffled_ones(parameters: dict[str, Any]) -> None:
    score = build_annotator("genlip_score", parameters)
    matched = annotate(score, pairs())
    for shift in (1, 3):
        shuffled = annotate(score, pairs(shift))
        for column in ("genlip_gain", "genlip_gain_likelihood"):
            assert min(matched[column]) > max(shuffled[column])
    assert min(matched["genlip_gain"]) > 0


def test_scores_are_those_of_the_model_package(parameters: dict[str, Any], loaded: LoadedModel) -> None:
    found = annotate(build_annotator("genlip_score", parameters | {"column": "gain"}), pairs(2))
    prior = [loaded.processor.patches(load_rgb(picture(number))) for number in range(NUM_PAIRS)]
    for number, sample in enumerate(pairs(2)):
        one = pair(loaded, sample.image, sample.caption)
        prompt_ids, ids = loaded.tokenizer.prompt_ids, [one.caption_ids]
        given = float(score_captions(loaded.model, [(one.patches, one.grid)], prompt_ids, ids))
        alone = float(score_captions(loaded.model, prior, prompt_ids, ids).double().exp().mean().log())
        assert found["gain_likelihood"][number] == pytest.approx(given / len(one.caption_ids), abs=1e-4)
        assert found["gain"][number] == pytest.approx((given - alone) / len(one.caption_ids), abs=1e-4)


def test_a_sample_has_its_value_in_any_company(parameters: dict[str, Any]) -> None:
    score = build_annotator("genlip_score", parameters)
    many = annotate(score, [Stored(f"{n:020x}", one.caption, one.image) for n, one in enumerate(pairs(1) * 9)])
    alone = annotate(score, pairs(1)[:1])
    assert many["genlip_gain"][::NUM_PAIRS] == pytest.approx(alone["genlip_gain"] * 9, abs=1e-4)


def test_long_captions_are_cut_as_in_training(parameters: dict[str, Any]) -> None:
    score = build_annotator("genlip_score", parameters | {"max_caption_tokens": 5})
    long = [Stored("a" * 20, "red boat under the tall house", picture(1))]
    longer = [Stored("a" * 20, "red boat under the tall house over a river", picture(1))]
    assert annotate(score, long) == annotate(score, longer)


def test_masked_text_is_scored_as_the_image_without_it(parameters: dict[str, Any]) -> None:
    overlay = pytest.importorskip("pipeline.annotate.overlay")
    rgb = np.full((480, 640, 3), 200, np.uint8)
    rgb[300:] = (40, 90, 160)
    cv2.putText(rgb, "GREEN BOAT SALE", (40, 120), cv2.FONT_HERSHEY_SIMPLEX, 2.0, (0, 0, 0), 5)
    written = jpeg(rgb)
    masked = overlay.mask_text(np.asarray(load_rgb(written)))
    _, lossless = cv2.imencode(".png", cv2.cvtColor(masked, cv2.COLOR_RGB2BGR))
    plain = build_annotator("genlip_score", parameters)
    with_mask = build_annotator("genlip_score", parameters | {"mask_text": True})
    found = annotate(with_mask, [Stored("a" * 20, "green boat", written)])
    assert found == annotate(plain, [Stored("a" * 20, "green boat", bytes(lossless))])
    assert found != annotate(plain, [Stored("a" * 20, "green boat", written)])
    assert address(with_mask) != address(plain)


@pytest.mark.parametrize("beams", [1, 2])
def test_captions_are_those_the_model_generates(parameters: dict[str, Any], loaded: LoadedModel, beams: int) -> None:
    captioner = build_annotator("genlip_caption", parameters | {"beams": beams, "max_new_tokens": 24})
    found = annotate(captioner, pairs())
    images = [loaded.processor.patches(load_rgb(sample.image)) for sample in pairs()]
    decoding = Decoding(num_beams=beams)
    assert found["genlip_caption"] == generate(loaded.model, images, loaded.tokenizer, 24, decoding=decoding)
    assert found["genlip_caption"][0] == caption(0)
    generated = [Stored(one.key, text, one.image) for one, text in zip(pairs(), found["genlip_caption"], strict=True)]
    scores = annotate(build_annotator("genlip_score", parameters), generated)
    assert found["genlip_caption_gain"] == pytest.approx(scores["genlip_gain"], abs=1e-5)


def test_a_run_stands_for_its_newest_checkpoint_and_its_training_images(
    loaded: LoadedModel, parameters: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = begin_run(tmp_path)
    first, second = (run_dir / "checkpoints" / f"step-{step:08d}" for step in (1, 2))
    save_into(first, loaded)
    by_run, by_step = (build_annotator("genlip_score", {"checkpoint": str(path)}) for path in (run_dir, first))
    assert by_run.state() == by_step.state()
    assert annotate(by_run, pairs()) == annotate(build_annotator("genlip_score", parameters), pairs())
    other = GenLIP(loaded.model.config)
    other.init_weights(1)
    save_into(second, LoadedModel(other, loaded.tokenizer, loaded.processor))
    assert by_run.state() != by_step.state()
    assert annotate(by_run, pairs()) != annotate(by_step, pairs())


def begin_run(folder: Path) -> Path:
    """A run folder on a dataset of the pictures that the model knows."""
    content = {"name": "run", "store": str(folder / "store"), "runs": str(folder / "runs"), "train": {"length": 1}}
    recipe = check_recipe(content | {"ingest": {"source": {"urls": "urls.parquet"}}}, "recipe")
    store, path = Store(recipe.store), f"shards/{recipe.shards.name}/000000.tar"
    with store.writing(path) as stream:
        writer = ShardWriter(stream)
        for number in range(NUM_PAIRS):
            writer.add(Sample(f"{number:020x}", picture(number), caption(number), {}))
        writer.close()
    store.write_table(index_file(recipe.shards.name), pa.table({"path": [path]}))
    return open_run(recipe)


def save_into(folder: Path, loaded: LoadedModel) -> None:
    (folder / "model").mkdir(parents=True)
    save_model(folder / "model", loaded.model, loaded.tokenizer, loaded.processor)
    (folder / "COMMITTED").write_text("{}")


def test_what_is_missing_is_named(checkpoint: Path, parameters: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not in the run folder(.|\n)*prior_images: FOLDER"):
        build_annotator("genlip_score", {"checkpoint": str(checkpoint)}).state()
    with pytest.raises(UserError, match=r"no images(.|\n)*prior_images: FOLDER"):
        build_annotator("genlip_score", {"checkpoint": str(checkpoint), "prior_images": str(tmp_path)}).state()
    with pytest.raises(UserError, match=r"no model(.|\n)*name a run folder"):
        build_annotator("genlip_caption", {"checkpoint": str(tmp_path)}).state()
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged"):
        annotate(build_annotator("genlip_score", parameters | {"checkpoint": str(tmp_path)}), pairs())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="genlip train"):
        build_annotator("genlip_score", {"checkpoint": str(tmp_path)}).state()


def test_tokens_are_counted_as_the_tokenizer_command_counts_them(loaded: LoadedModel, checkpoint: Path) -> None:
    store = make_store([[Stored(f"{n:020x}", text) for n, text in enumerate(["red boat", " x ", "ünder\tthe lamp"])]])
    tokens = build_annotator("caption_tokens", {"tokenizer": str(checkpoint)})
    annotate_unit(UNIT, store, [tokens], max_errors=0)
    unit = read_stored(store, UNIT)
    found = read_annotations(store, address(tokens), unit).columns["tokens"]
    assert found.type == pa.int32()
    with store.reading(unit.raw) as stream:
        counted = count_tokens(iter_samples(stream), loaded.tokenizer, [CAPTION])[CAPTION]
    assert found.to_pylist() == counted.to_pylist()
    assert tokens.state() == loaded.tokenizer.fingerprint


def test_tokens_of_another_column(checkpoint: Path) -> None:
    rows = pa.table({"caption": ["a", "b"], "alt": pa.array(["red boat", None]), "width": [1, 2]})
    parameters = {"tokenizer": str(checkpoint), "of": "alt", "column": "alt_tokens"}
    found = build_annotator("caption_tokens", parameters).annotate(Batch(rows))["alt_tokens"]
    assert found[0] > 0
    assert found[1] is None
    with pytest.raises(UserError, match=r"no text column 'width'(.|\n)*it has caption, alt"):
        build_annotator("caption_tokens", parameters | {"of": "width"}).annotate(Batch(rows))


def test_another_tokenizer_is_another_result(checkpoint: Path, tmp_path: Path) -> None:
    SentencePieceTokenizer.train(["quite other words"] * 4, vocab_size=300).save(tmp_path)
    found = {address(build_annotator("caption_tokens", {"tokenizer": str(one)})) for one in (checkpoint, tmp_path)}
    assert len(found) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no tokenizer(.|\n)*genlip tokenizer"):
        build_annotator("caption_tokens", {"tokenizer": str(tmp_path / "empty")}).state()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_command_that_installs_it_is_named() -> None:
    with pytest.raises(UserError, match="pip install vllm"):
        annotate(build_annotator("vllm_caption", {"model": "some/model"}), pairs())


def test_vllm_is_asked_for_each_image_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with vLLM's signatures: the engine itself needs a GPU."""

    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            assert model == "stand-in"

        def chat(self, messages: list[Any], sampling_params: Any, *, use_tqdm: bool) -> list[Any]:
            return [SimpleNamespace(outputs=[SimpleNamespace(text=self._say(one))]) for one in messages]

        def _say(self, conversation: list[dict[str, Any]]) -> str:
            image, text = conversation[0]["content"]
            body = base64.b64decode(image["image_url"]["url"].partition("base64,")[2])
            return f" {text['text']} {load_rgb(body).size}\n" if load_rgb(body).height > 32 else " "

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict))
    found = annotate(build_annotator("vllm_caption", {"model": "stand-in", "prompt": "Size?"}), pairs())
    assert found["recaption"] == ["Size? (32, 48)", None] * (NUM_PAIRS // 2)


def test_a_recipe_with_these_annotators_is_read_without_torch() -> None:
    program = (
        "import sys, json, jobs.annotators; print(json.dumps(sorted({'torch', 'ray', 'vllm'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
