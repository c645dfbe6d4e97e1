"""A trained model as a folder: weights and config in the official names, processor and tokenizer beside them."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .configuration_genlip import GenLIPConfig
from .errors import ModelError
from .modeling_genlip import GenLIP
from .processing_genlip import ImageProcessor
from .tokenizer import Tokenizer, load_tokenizer

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class LoadedModel:
    """Everything needed to run a model on an image file."""

    model: GenLIP
    tokenizer: Tokenizer
    processor: ImageProcessor


def save_model(folder: Path | str, model: GenLIP, tokenizer: Tokenizer, processor: ImageProcessor) -> None:
    """Writes the folder; it appears complete or not at all. A model folder already there is replaced.

    Raises:
        ModelError: `folder` holds something that is not a model.
    """
    target = Path(folder)
    if target.exists() and not (target / CONFIG_FILE).exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} exists and is no model folder; choose another name or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    fresh.mkdir()
    try:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, fresh / "model.safetensors", metadata={"format": "pt"})
        _write_json(fresh / CONFIG_FILE, model.config.to_dict())
        _write_json(fresh / PROCESSOR_FILE, processor.to_dict())
        tokenizer.save(fresh)
        _replace_folder(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> LoadedModel:
    """Reads a folder written by `save_model`, or an official export, in evaluation mode and the stored dtype.

    Widths, depth and switches come from the tensors (published config files leave some out or contradict them);
    heads, rotary settings and epsilon from config.json.

    Raises:
        ModelError: a file is missing, or tensors are missing, unexpected or mis-shaped.
    """
    folder = Path(folder)
    tensors = _read_tensors(folder)
    shape = _shape_of_model(tensors, folder)
    values = {**_read_json(folder / CONFIG_FILE), **shape}
    section = (values.get("rope_scaling") or {}).get("mrope_section")
    if section and "num_attention_heads" not in values:
        # In the published shapes the rotary sections cover half a head.
        values["num_attention_heads"] = shape["hidden_size"] // (2 * sum(section))
    config = GenLIPConfig.from_dict(values)
    with torch.device("meta"):
        model = GenLIP(config)
    _check_tensors(tensors, {name: tensor.shape for name, tensor in model.state_dict().items()}, folder)
    model.load_state_dict(tensors, assign=True)
    processor = ImageProcessor.from_dict({"patch_size": config.patch_size, **_read_json(folder / PROCESSOR_FILE)})
    if processor.patch_size != config.patch_size:
        raise ModelError(f"{folder}: processor has patch_size {processor.patch_size}, weights {config.patch_size}")
    return LoadedModel(model.to(device).eval(), load_tokenizer(folder), processor)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no model*.safetensors; pass a folder written by save_model")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _shape_of_model(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """The config values that the tensors decide."""
    needed = [
        "vision_embeddings.patch_embedding.weight",
        "embeddings.weight",
        "visual.layers.0.mlp.fc1.weight",
        "visual.layers.0.self_attn.q_proj.weight",
    ]
    if missing := [name for name in needed if name not in tensors]:
        raise ModelError(f"{folder}: no GenLIP weights, {', '.join(missing)} missing; found {sorted(tensors)[:4]} ...")
    patch, table, fc1, q_proj = (tensors[name] for name in needed)
    layers = {int(match[1]) for name in tensors if (match := re.match(r"visual\.layers\.(\d+)\.", name))}
    shape: dict[str, Any] = {
        "hidden_size": patch.shape[0],
        "num_channels": patch.shape[1],
        "patch_size": patch.shape[2],
        "vocab_size": table.shape[0],
        "text_embed_dim": table.shape[1],
        "intermediate_size": fc1.shape[0],
        "num_hidden_layers": max(layers) + 1,
        "gated_attention": q_proj.shape[0] == 2 * patch.shape[0],
        "use_swiglu_ffn": "visual.layers.0.mlp.gate_fc.weight" in tensors,
    }
    if "visual.layers.0.layer_scale1.lambda1" not in tensors:
        shape["ls_init_value"] = 0.0
    return shape


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], folder: Path) -> None:
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in tensors if name not in expected]
    problems += [
        f"mis-shaped {name}: {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        shown = "\n  ".join(problems[:20]) + ("\n  ..." if len(problems) > 20 else "")
        raise ModelError(f"{folder}: {len(problems)} tensors do not fit the model:\n  {shown}")


def _replace_folder(fresh: Path, target: Path) -> None:
    """Renames over an existing folder; the old one is moved aside first because a full folder cannot be replaced."""
    if not target.exists():
        os.rename(fresh, target)
        return
    old = fresh.with_suffix(".old")
    os.rename(target, old)
    os.rename(fresh, target)
    shutil.rmtree(old)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; pass a folder written by save_model") from error
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); restore it from the export") from error
    return values
