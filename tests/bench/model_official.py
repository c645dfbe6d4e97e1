"""The training step of the official GenLIP code, imported from a checkout of its repository.

Only its model file and what that imports are loaded: its packages' `__init__` files want the whole training stack.
On a CPU its dense mask is used, which holds one row; on a GPU its block-sparse one.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import GenLIP, PackedRows, pack_rows
from tests.bench.model_inputs import IMAGE_PX, StepSetup, make_rows
from tests.bench.model_ours import Step
from tests.bench.peer_import import bare_package, missing_package

NAME = "official GenLIP"
MODEL = "veomni.models.transformers.genlip.genlip_modeling"


def make_step(setup: StepSetup) -> Step:
    """Forward and backward of packed rows; pixels are normalised before the step.

    Its own loss without Liger fails, so the cross entropy is taken here, over all positions as there.
    """
    code = import_model(Path(setup.folder))
    model = build_model(code, setup).to(setup.device, getattr(torch, setup.dtype)).train()
    rows = pack_rows(make_rows(setup), setup.row_tokens).to(setup.device)
    inputs = model_inputs(rows, setup)

    def step() -> Tensor:
        if model.config.use_liger_kernel:
            mean = model(**inputs, labels=rows.labels_BS).loss
        else:
            logits = model(**inputs).logits[:, :-1].float()
            mean = F.cross_entropy(logits.flatten(0, 1), rows.labels_BS[:, 1:].flatten())
        mean.backward()
        loss: Tensor = mean.detach()
        return loss

    return step, model


def import_model(folder: Path) -> Any:
    """Its model module."""
    parts = MODEL.split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        bare_package(".".join(parts[:depth]), folder.joinpath(*parts[:depth]))
    bare_package("veomni.distributed", folder / "veomni" / "distributed")
    bare_package("veomni.data", folder / "veomni" / "data")
    missing_package("timm.layers", DropPath=nn.Identity)  # never run: the rate is 0
    return importlib.import_module(MODEL)


def build_model(code: Any, setup: StepSetup) -> nn.Module:
    """Its model with our weights, whose names are the same."""
    values = setup.config.to_dict()
    values.pop("rope_scaling")
    config = code.GenLIPConfig(
        **values,
        rope_scaling={"type": "mrope", "mrope_section": list(setup.config.mrope_section)},
        max_position_embeddings=setup.row_tokens,
        use_liger_kernel=code.is_liger_kernel_available() and setup.device != "cpu",
        attn_implementation="sdpa",
    )
    model: nn.Module = code.GenLIPModel(config)
    model.load_state_dict(GenLIP(setup.config).state_dict())
    if setup.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def model_inputs(rows: PackedRows, setup: StepSetup) -> dict[str, Any]:
    """What its forward takes. Images are whole, as in its first stage."""
    side, p = IMAGE_PX // setup.config.patch_size, setup.config.patch_size
    tiles = rows.patches_NCPP.view(-1, side, side, setup.config.num_channels, p, p)
    images = tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, setup.config.num_channels, IMAGE_PX, IMAGE_PX)
    inputs = {
        "input_ids": rows.input_ids_BS,
        "position_ids": rows.position_ids_B3S,
        "pixel_values": (images / 255 - 0.5) / 0.5,
        "image_mask": rows.image_mask_BS,
    }
    if setup.device != "cpu":
        masks = importlib.import_module("veomni.utils.flex_attn_utils")
        indicators_BS = rows.image_mask_BS.long().masked_fill(rows.sample_ids_BS < 0, -1)
        flex_mask = masks.create_fast_flex_mask_padding(rows.sample_ids_BS, indicators_BS, setup.row_tokens)
        inputs["flex_attn_args"] = {"flex_mask": flex_mask, "max_seqlen": setup.row_tokens}
    return inputs
