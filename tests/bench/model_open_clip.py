"""The training step of open_clip's NaFlexGenLip, imported from a checkout of its repository.

Shape legend: B samples, P patches of an image, C channels, p side of a patch in pixels, S text tokens.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import EncodedSample, GenLIP
from tests.bench.model_inputs import StepSetup, make_rows
from tests.bench.model_ours import Step
from tests.bench.peer_import import bare_package, missing_package

NAME = "open_clip NaFlexGenLip"
PAD_ID = 0


def make_step(setup: StepSetup) -> Step:
    """Forward and backward of the samples as one batch, with its own chunked loss on the text.

    Its layout has no rows: texts are padded to the longest of the batch. Pixels are normalised before the step.
    """
    bare_package("open_clip", Path(setup.folder) / "src" / "open_clip")
    missing_package("timm.layers", DropPath=nn.Identity)  # never run: the rate is 0
    code = importlib.import_module("open_clip.naflex_genlip_model")
    model = build_model(code, setup).to(setup.device, getattr(torch, setup.dtype)).train()
    samples = [sample for row in make_rows(setup) for sample in row]
    batch = {name: _move(value, setup) for name, value in pad(samples).items()}

    def step() -> Tensor:
        mean = model(**batch, compute_loss=True)["loss"]
        mean.backward()
        loss: Tensor = mean.detach()
        return loss

    return step, model


def build_model(code: Any, setup: StepSetup) -> nn.Module:
    """Its model with our weights under its names, biases switched on to match."""
    ours = setup.config
    trunk = {
        "width": ours.hidden_size,
        "depth": ours.num_hidden_layers,
        "num_heads": ours.num_attention_heads,
        "intermediate_size": ours.intermediate_size,
        "text_embed_dim": ours.text_embed_dim,
        "mrope_section": ours.mrope_section,
        "ls_init_value": ours.ls_init_value,
        "attention_bias": True,
        "mlp_bias": True,
    }
    text = {"vocab_size": ours.vocab_size, "pad_id": PAD_ID}
    model: nn.Module = code.NaFlexGenLip(ours.hidden_size, {"patch_size": ours.patch_size}, text, trunk)
    named = {_their_name(name): tensor for name, tensor in GenLIP(ours).state_dict().items()}
    patch = named["patch_embed.proj.weight"]
    named["patch_embed.proj.weight"] = patch.permute(0, 2, 3, 1).flatten(1)
    # Its vision tower holds the same modules once more, under other names.
    missing, unexpected = model.load_state_dict(named, strict=False)
    if unexpected or not all(name.startswith("visual.") for name in missing):
        raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    if setup.gradient_checkpointing:
        model.set_grad_checkpointing()
    return model


def _their_name(name: str) -> str:
    prefixes = {
        "vision_embeddings.patch_embedding.": "patch_embed.proj.",
        "visual.layers.": "trunk.layers.",
        "ln_post.": "trunk.ln_post.",
        "embeddings.": "text_embed.",
        "proj.": "out_proj.",
    }
    for ours, theirs in prefixes.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def pad(samples: list[EncodedSample]) -> dict[str, Any]:
    """A batch in its layout: flat patches with the channel last, coordinates, and text padded to the longest."""
    num_rows, num_columns = samples[0].grid
    patches_BPCpp = torch.stack([torch.from_numpy(sample.patches) for sample in samples])
    flat = patches_BPCpp.permute(0, 1, 3, 4, 2).flatten(2)
    coordinates_P2 = torch.cartesian_prod(torch.arange(num_rows), torch.arange(num_columns))
    longest = max(len(sample.caption_ids) for sample in samples)
    text_BS = torch.full((len(samples), longest), PAD_ID)
    for row, sample in enumerate(samples):
        text_BS[row, : len(sample.caption_ids)] = torch.tensor(sample.caption_ids)
    image = {
        "patches": (flat / 255 - 0.5) / 0.5,
        "patch_coord": coordinates_P2.expand(len(samples), -1, -1),
        "patch_valid": torch.ones(flat.shape[:2], dtype=torch.bool),
    }
    return {"image": image, "text": text_BS}


def _move(value: Any, setup: StepSetup) -> Any:
    if isinstance(value, dict):
        return {name: _move(inner, setup) for name, inner in value.items()}
    return value.to(setup.device, getattr(torch, setup.dtype) if value.is_floating_point() else None)
