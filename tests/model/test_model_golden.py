"""The model against numbers from the official code (tests/golden/genlip/README.md says how they were made).

The environment variable GENLIP_GOLDEN names another folder of the same layout; its models and cases are discovered.
Every number is checked twice: on a model built in process, and on one that went official file, our folder, reloaded.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model import (
    EncodedSample,
    GenLIP,
    GenLIPConfig,
    ImageProcessor,
    PackedRows,
    SentencePieceTokenizer,
    generate_ids,
    load_model,
    load_weights,
    pack_rows,
    save_model,
)
from model.attention import plan_attention, prefix_attention
from model.cache import append_token, inference, prefill
from model.rope import rope_cos_sin

SHIPPED = Path(__file__).parents[1] / "golden" / "genlip"
FOLDER = Path(os.environ.get("GENLIP_GOLDEN", SHIPPED))


def cases(kind: str) -> list[tuple[str, str]]:
    """(model, case) for every stored case whose name starts with `case_{kind}`."""
    matches = (re.fullmatch(rf"(.+)\.(case_{kind}.*)\.safetensors", path.name) for path in sorted(FOLDER.iterdir()))
    return [(match[1], match[2]) for match in matches if match]


def row_cases() -> list[tuple[str, str]]:
    """Cases that are packed rows with logits."""
    return [case for kind in "abc" for case in cases(kind)]


LoadModel = Callable[[str], GenLIP]


@pytest.fixture(params=["in process", "folder"])
def load_golden_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadModel:
    """Gives the model of a name in evaluation mode, fresh on every call."""
    return build_model if request.param == "in process" else lambda name: reload_model(name, tmp_path_factory)


def build_model(name: str) -> GenLIP:
    config = json.loads((FOLDER / f"{name}.config.json").read_text())
    model = GenLIP(GenLIPConfig.from_dict(config))
    model.load_state_dict(load_file(FOLDER / f"{name}.weights.safetensors"))
    return model.eval()


def reload_model(name: str, tmp_path_factory: pytest.TempPathFactory) -> GenLIP:
    """From the official files through a folder of ours, which is written once."""
    folder = tmp_path_factory.getbasetemp() / f"golden-{name}"
    if not folder.exists():
        official = tmp_path_factory.mktemp("official")
        shutil.copy(FOLDER / f"{name}.weights.safetensors", official / "model.safetensors")
        shutil.copy(FOLDER / f"{name}.config.json", official / "config.json")
        model = load_weights(official)
        tokenizer = SentencePieceTokenizer.train(["a red cup"], vocab_size=300)
        save_model(folder, model, tokenizer, ImageProcessor("native", patch_size=model.config.patch_size))
    return load_model(folder).model


def test_the_golden_folder_holds_models_with_cases() -> None:
    """Discovery that finds nothing would leave every other test of this file without work."""
    assert row_cases(), f"{FOLDER} holds no *.case_a*, b or c"
    if FOLDER == SHIPPED:
        assert all(cases(kind) for kind in "abcdefg")
    for name, _ in [case for kind in "abcdefg" for case in cases(kind)]:
        assert (FOLDER / f"{name}.weights.safetensors").exists()
        assert (FOLDER / f"{name}.config.json").exists()


def load_case(name: str, case: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.{case}.safetensors")


def load_samples() -> dict[str, Tensor]:
    return load_file(FOLDER / "samples.safetensors")


def sample_tags(case_name: str, case: dict[str, Tensor]) -> list[str]:
    """Names in samples.safetensors of the case's samples, in row order."""
    kind = "navit" if "navit" in case_name else "stage1"
    return [f"{kind}.{number}" for number in case["in.samples"].tolist()]


def rows_of(name: str, case_name: str, case: dict[str, Tensor]) -> PackedRows:
    """The case's inputs through the official-tensor door."""
    samples = load_samples()
    pixels = torch.cat([samples[f"{tag}.pixel_values"] for tag in sample_tags(case_name, case)])
    return PackedRows.from_tensors(
        case["in.input_ids"],
        case["in.labels"],
        case["in.position_ids"],
        case["in.sample_ids"],
        case["in.image_mask"],
        pixels,
        patch_size=patch_size(name),
    )


def patch_size(name: str) -> int:
    """In pixels; it has the same value for all models of a folder, because they share the samples."""
    side: int = json.loads((FOLDER / f"{name}.config.json").read_text())["patch_size"]
    return side


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def mean_loss(model: GenLIP, rows: PackedRows) -> Tensor:
    out = model(rows)
    return out.loss_sum / out.num_labels


@pytest.mark.parametrize(("name", "case_name"), row_cases())
@torch.no_grad()
def test_logits_features_and_loss(load_golden_model: LoadModel, name: str, case_name: str) -> None:
    model, case = load_golden_model(name), load_case(name, case_name)
    rows = rows_of(name, case_name, case)
    valid = case["out.valid"]
    assert torch.equal(rows.sample_ids_BS >= 0, valid)
    close(model.logits(rows)[valid], case["out.logits"], 1e-4)
    close(model.hidden_BSD(rows)[rows.image_mask_BS], case["out.visual_features"], 1e-4)
    close(mean_loss(model, rows), case["out.loss"], 1e-5)


@pytest.mark.parametrize(("name", "case_name"), [c for c in row_cases() if "out.embeds" in load_case(*c)])
@torch.no_grad()
def test_every_step_of_the_forward_pass(load_golden_model: LoadModel, name: str, case_name: str) -> None:
    model, case = load_golden_model(name), load_case(name, case_name)
    rows = rows_of(name, case_name, case)
    valid = case["out.valid"]
    layer_outputs: list[Tensor] = []
    for block in model.visual.layers:
        block.register_forward_hook(lambda _module, _inputs, output: layer_outputs.append(output))
    hidden = model.hidden_BSD(rows)
    flat = valid.flatten()
    close(model.embed_rows(rows)[flat], case["out.embeds"], 1e-4)
    close(torch.stack([out[flat] for out in layer_outputs]), case["out.layer_outputs"], 1e-4)
    close(hidden[valid], case["out.ln_post"], 1e-4)
    close(model.proj(hidden)[valid], case["out.hidden_states"], 1e-4)
    cos, sin = rope_cos_sin(rows.position_ids_B3S, model.config, torch.float32)
    close(cos[valid], case["out.rope_cos"], 1e-6)
    close(sin[valid], case["out.rope_sin"], 1e-6)


@pytest.mark.parametrize(("name", "case_name"), row_cases())
def test_attention_sees_exactly_the_official_mask(name: str, case_name: str) -> None:
    """With equal scores and one-hot values the output row is the mask row divided by its sum."""
    case = load_case(name, case_name)
    rows = rows_of(name, case_name, case)
    num_rows, row_tokens = rows.input_ids_BS.shape
    plan = plan_attention(rows.segments_M4, num_rows, row_tokens, torch.device("cpu"))
    num_tokens = num_rows * row_tokens
    zeros = torch.zeros(num_tokens, 1, num_tokens)
    weights = prefix_attention(zeros, zeros, torch.eye(num_tokens).unsqueeze(1), plan)[:, 0]
    expected = torch.block_diag(*case["out.attend"].float())
    assert torch.equal(weights > 0, expected > 0)


def single_turn_cases() -> list[tuple[str, str]]:
    """Row cases whose samples are one prompt and one caption, which is what `EncodedSample` can say."""
    samples = load_samples()
    chosen = []
    for name, case_name in row_cases():
        tags = sample_tags(case_name, load_case(name, case_name))
        if all((samples[f"{tag}.labels"] == -100).diff().sum() == 1 for tag in tags):
            chosen.append((name, case_name))
    return chosen


@pytest.mark.parametrize(("name", "case_name"), single_turn_cases())
def test_our_packing_lays_samples_out_like_the_official_one(name: str, case_name: str) -> None:
    case, samples = load_case(name, case_name), load_samples()
    official = rows_of(name, case_name, case)
    encoded = [encoded_sample(samples, tag, patch_size(name)) for tag in sample_tags(case_name, case)]
    split = torch.tensor(case["in.samples_per_row"].tolist()).cumsum(0).tolist()
    rows = [encoded[begin:end] for begin, end in zip([0, *split[:-1]], split, strict=True)]
    ours = pack_rows(rows, official.input_ids_BS.shape[1])
    for field in ("input_ids_BS", "labels_BS", "position_ids_B3S", "sample_ids_BS", "image_mask_BS", "segments_M4"):
        assert torch.equal(getattr(ours, field), getattr(official, field)), field
    assert torch.equal(ours.patches_NCPP, official.patches_NCPP)


def encoded_sample(samples: dict[str, Tensor], tag: str, side: int) -> EncodedSample:
    """The official sample, cut into the parts our packing starts from."""
    grid = tuple(samples[f"{tag}.image_grid_thw"][0, 1:].tolist())
    num_image = grid[0] * grid[1]
    ids, labels = samples[f"{tag}.input_ids"], samples[f"{tag}.labels"]
    caption = int((labels != -100).nonzero()[0])
    pixels = samples[f"{tag}.pixel_values"]
    patches = pixels.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return EncodedSample(patches.numpy(), grid, ids[num_image:caption].tolist(), ids[caption:].tolist())


@pytest.mark.parametrize(("name", "case_name"), cases("d"))
@torch.no_grad()
def test_image_encoder(load_golden_model: LoadModel, name: str, case_name: str) -> None:
    model, case, samples = load_golden_model(name), load_case(name, case_name), load_samples()
    tags = sorted(key.split(".")[0] for key in case if key.endswith(".features"))
    images = []
    for tag in tags:
        stored = tag.replace("fixed", "stage1.").replace("navit", "navit.")
        sample = encoded_sample(samples, stored, model.config.patch_size)
        images.append((sample.patches, tuple(case[f"{tag}.grid_thw"][0, 1:].tolist())))
    assert images
    for tag, image, together in zip(tags, images, model.encode_images(images), strict=True):
        alone = model.encode_image(*image)
        close(alone, case[f"{tag}.features"], 1e-4)
        close(together, case[f"{tag}.features"], 1e-4)
        close(model.proj(alone), case[f"{tag}.projected"], 1e-4)
        if f"{tag}.patch_logits" in case:
            close(model.lm_head(model.proj(alone)), case[f"{tag}.patch_logits"], 1e-4)


@pytest.mark.parametrize(("name", "case_name"), cases("e"))
def test_greedy_decoding_with_cache(load_golden_model: LoadModel, name: str, case_name: str) -> None:
    model, case, samples = load_golden_model(name), load_case(name, case_name), load_samples()
    sample = encoded_sample(samples, "stage1.0", model.config.patch_size)
    image = (sample.patches, sample.grid)
    prompt_ids = case["prompt_ids"][0, len(sample.patches) :].tolist()
    tokens = case["tokens"].tolist()
    with inference(model):
        prefix = prefill(model, [image], prompt_ids)
        assert int(prefix.next_position_G) == int(case["position_ids"][0, len(case["prompt_ids"][0])])
        for token, expected in zip(tokens, case["step_logits"], strict=True):
            close(model.lm_head(model.project(prefix.last_GD))[0], expected, 1e-4)
            prefix = append_token(model, prefix, torch.tensor([token]))
    assert generate_ids(model, [image], prompt_ids, stop_id=-1, max_new_tokens=len(tokens)) == [tokens]
    # Without a cache: the tokens as a caption, each predicted by the one before.
    whole = EncodedSample(*image, prompt_ids, tokens)
    with torch.no_grad():
        logits = model.logits(pack_rows([[whole]], whole.num_tokens))[0]
    close(logits[-len(tokens) - 1 : -1], case["step_logits"], 1e-4)


@pytest.mark.parametrize(("name", "case_name"), cases("f"))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(load_golden_model: LoadModel, name: str, case_name: str, checkpointing: bool) -> None:
    model, gradients = load_golden_model(name), load_case(name, case_name)
    for block in model.visual.layers:
        block.drop_path.rate = 0.0
    model.train()
    model.gradient_checkpointing = checkpointing
    mean_loss(model, rows_of(name, "case_b2_packed_rows", load_case(name, "case_b2_packed_rows"))).backward()
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(gradients)
    for key, expected in gradients.items():
        assert parameters[key].grad is not None
        assert (parameters[key].grad - expected).norm() <= 1e-4 * expected.norm() + 1e-7, key


@pytest.mark.parametrize(
    "name", [path.name.removesuffix(".case_g_trace.json") for path in FOLDER.glob("*.case_g_trace.json")]
)
def test_training_trace(load_golden_model: LoadModel, name: str) -> None:
    """Eight AdamW steps with the learning rates of the trace: losses, gradient norms and final weights."""
    model, log = load_golden_model(name), json.loads((FOLDER / f"{name}.case_g_trace.json").read_text())
    optimiser = torch.optim.AdamW(
        model.parameters(), betas=tuple(log["betas"]), eps=log["eps"], weight_decay=log["hyper"]["weight_decay"]
    )
    for step in log["trace"]:
        rows = rows_of(name, step["batch"], load_case(name, step["batch"]))
        loss = mean_loss(model, rows)
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), log["hyper"]["max_grad_norm"])
        assert abs(loss.item() - step["loss"]) < 1e-3
        assert abs(norm.item() - step["grad_norm"]) < 1e-2
        optimiser.param_groups[0]["lr"] = step["lr"]
        optimiser.step()
    parameters = dict(model.named_parameters())
    for key, expected in load_case(name, "case_g_after").items():
        close(parameters[key].detach(), expected, 2e-3)
