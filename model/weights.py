"""Reads a model folder: weights in the official names, dimensions from the tensors, processor and tokenizer beside."""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .baselines.baseline import Baseline
from .baselines.build import BASELINE_MODEL_TYPE, baseline_from_dict
from .configuration_genlip import GenLIPConfig, rope_values
from .errors import ModelError
from .export import CONFIG_FILE, INDEX_FILE, PROCESSOR_FILE, WEIGHTS_FILE
from .modeling_genlip import GenLIP
from .processing_genlip import ImageProcessor
from .tokenizer import Tokenizer, load_tokenizer

# What decides the dimensions, with the number of axes it has.
DECIDING_TENSORS = {
    "vision_embeddings.patch_embedding.weight": 4,
    "embeddings.weight": 2,
    "visual.layers.0.mlp.fc1.weight": 2,
    "visual.layers.0.self_attn.q_proj.weight": 2,
}


@dataclass(frozen=True)
class LoadedModel:
    """Everything needed to run a model on an image file."""

    model: GenLIP | Baseline
    tokenizer: Tokenizer
    processor: ImageProcessor

    @property
    def genlip(self) -> GenLIP:
        """The model, where it has to be GenLIP.

        Raises:
            ModelError: it is a baseline.
        """
        if not isinstance(self.model, GenLIP):
            raise ModelError(f"a GenLIP model is needed, and this one has the objective {self.model.objective!r}")
        return self.model


def load_model(
    folder: Path | str, device: torch.device | str = "cpu", tokenizer: Path | str | None = None
) -> LoadedModel:
    """Reads a folder written by `save_model`, or an official export, in evaluation mode and the stored dtype.

    `model.objective` says what was read; `LoadedModel.genlip` is for callers that need GenLIP.

    Args:
        folder: with weights, config.json and preprocessor_config.json.
        device: of the model.
        tokenizer: folder of the tokenizer, where it is not the same.

    Raises:
        ModelError: as in `load_weights`; or processor or tokenizer are missing or do not fit.
    """
    folder = Path(folder)
    model = _load_network(folder, device)
    patch_size = model.config.patch_size
    processor = ImageProcessor.from_dict({"patch_size": patch_size, **_read_json(folder / PROCESSOR_FILE)})
    if processor.patch_size != patch_size:
        raise ModelError(f"{folder}: processor has patch_size {processor.patch_size}, weights {patch_size}")
    return LoadedModel(model, load_tokenizer(tokenizer or folder), processor)


def load_weights(folder: Path | str, device: torch.device | str = "cpu") -> GenLIP:
    """Reads config.json and safetensors alone: the network, in evaluation mode and the stored dtype.

    Widths, depth and switches come from the tensors (published config files leave some out or contradict them);
    heads, rotary settings and epsilon from config.json. Heads that it lacks are guessed, with a warning. Pickle files
    are never read.

    Raises:
        ModelError: a file is missing or damaged, tensors are missing, unexpected, mis-shaped or not finite, or the
            config does not fit them.
    """
    model = _load_network(Path(folder), device)
    if isinstance(model, Baseline):
        raise ModelError(f"{folder} holds a model of the objective {model.objective!r}, and GenLIP is needed")
    return model


def _load_network(folder: Path, device: torch.device | str) -> GenLIP | Baseline:
    tensors = _read_tensors(folder)
    is_baseline = _is_baseline(folder)
    shape = {} if is_baseline else _shape_of_model(tensors, folder)
    values = _read_json(folder / CONFIG_FILE)
    try:
        with torch.device("meta"):
            model = baseline_from_dict(values) if is_baseline else GenLIP(_config_of(values | shape))
    except ModelError as error:
        raise ModelError(f"{folder / CONFIG_FILE}: {error}") from error
    _check_tensors(tensors, {name: tensor.shape for name, tensor in model.state_dict().items()}, folder)
    model.load_state_dict(tensors, assign=True)
    return model.to(device).eval()


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        try:
            tensors |= load_file(file)
        except FileNotFoundError as error:
            raise ModelError(f"{file} is missing although {INDEX_FILE} lists it; copy the whole folder") from error
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged or no safetensors file ({error}); copy it again") from error
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).exists():
        weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{folder / INDEX_FILE} has no weight_map; copy it again")
        return [folder / name for name in sorted(set(weight_map.values()))]
    if files := sorted(folder.glob("model-*.safetensors")):
        return files
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    why = f"; {pickled[0]} is a pickle file, which may run code and is not read" if pickled else ""
    raise ModelError(f"{folder} holds no {WEIGHTS_FILE}{why}; pass a folder written by save_model")


def _is_baseline(folder: Path) -> bool:
    # A folder of another project may lack the file; what its tensors lack says more.
    config = folder / CONFIG_FILE
    return config.exists() and _read_json(config).get("model_type") == BASELINE_MODEL_TYPE


def _config_of(values: dict[str, Any]) -> GenLIPConfig:
    if "num_attention_heads" not in values:
        values["num_attention_heads"] = _guess_heads(values, values["hidden_size"])
    return GenLIPConfig.from_dict(values)


def _shape_of_model(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """The config values that the tensors decide."""
    if missing := [name for name in DECIDING_TENSORS if name not in tensors]:
        raise ModelError(
            f"{folder}: no GenLIP weights, {', '.join(missing)} missing; found {sorted(tensors)[:4]} ..., which is"
            " another model"
        )
    for name, num_axes in DECIDING_TENSORS.items():
        if tensors[name].dim() != num_axes:
            raise ModelError(f"{folder}: {name} must have {num_axes} axes, got shape {list(tensors[name].shape)}")
    patch, table, fc1, q_proj = (tensors[name] for name in DECIDING_TENSORS)
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


def _guess_heads(values: Mapping[str, Any], width: int) -> int:
    """In the published shapes the rotary sections cover half a head."""
    section = rope_values(values).get("mrope_section")
    is_usable = isinstance(section, tuple) and all(type(n) is int and n > 0 for n in section)
    if not section or not is_usable or width % (2 * sum(section)):
        raise ModelError(
            f"no num_attention_heads, and the rotary sections ({section}) do not tell how"
            f" many heads a width of {width} has; add num_attention_heads"
        )
    num_heads: int = width // (2 * sum(section))
    warnings.warn(
        f"config.json has no num_attention_heads: assuming {num_heads}, from the rotary sections {section};"
        " if that is wrong, features are too, so add the number to the file",
        stacklevel=4,
    )
    return num_heads


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], folder: Path) -> None:
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in tensors if name not in expected]
    problems += [
        f"mis-shaped {name}: {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems += [f"not floating point: {name} ({t.dtype})" for name, t in tensors.items() if not t.is_floating_point()]
    problems += [f"not finite (NaN or infinity): {name}" for name, t in tensors.items() if not t.isfinite().all()]
    if problems:
        shown = "\n  ".join(problems[:20]) + ("\n  ..." if len(problems) > 20 else "")
        raise ModelError(f"{folder}: {len(problems)} tensors do not fit the model:\n  {shown}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; pass a folder written by save_model") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); restore it from the export") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(values).__name__}; restore it from the export")
    return values
