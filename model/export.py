"""Writes a model folder: official weights and config, processor, tokenizer, a card, and the code for AutoModel.

A baseline's folder has a config of its own and no such code: there is nothing official to be compatible with.
"""

import ast
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from .baselines.baseline import Baseline
from .baselines.build import baseline_to_dict
from .configuration_genlip import ARCHITECTURE
from .errors import ModelError
from .model_card import render_model_card
from .modeling_genlip import GenLIP
from .processing_genlip import ImageProcessor
from .tokenizer import SENTENCEPIECE_FILE, Tokenizer

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CARD_FILE = "README.md"
# Classes that the Auto classes load from the folder, as module.class.
HF_MODULE = "hf_genlip"
AUTO_MAP = {"AutoConfig": f"{HF_MODULE}.GenLIPModelConfig", "AutoModel": f"{HF_MODULE}.{ARCHITECTURE}"}
PROCESSOR_AUTO_MAP = {"AutoImageProcessor": f"{HF_MODULE}.GenLIPImageProcessor"}
# tokenizer_config.json beside a tokenizer.model. No special tokens, so that text cannot hold any.
SENTENCEPIECE_CONFIG = {
    "tokenizer_class": "GenLIPTokenizer",
    "clean_up_tokenization_spaces": False,
    "auto_map": {"AutoTokenizer": [f"{HF_MODULE}.GenLIPTokenizer", None]},
}
# Larger models are cut into several files.
SHARD_BYTES = 5 * 10**9


def save_model(
    folder: Path | str,
    model: GenLIP | Baseline,
    tokenizer: Tokenizer,
    processor: ImageProcessor,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes the folder; it appears complete or not at all. A model folder already there is replaced.

    Args:
        folder: its parents are made.
        model: any device; every tensor keeps its dtype.
        tokenizer: the one the model was trained with.
        processor: the one the model was trained with.
        facts: lines for the model card, such as {"Training data": "...", "Samples seen": "1.2 M"}; "License" replaces
            the default identifier.

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
        _write_json(fresh / CONFIG_FILE, _config_of(model, tokenizer))
        _write_tensors(fresh, model.state_dict())
        tokenizer.save(fresh)
        _write_json(fresh / PROCESSOR_FILE, processor.to_dict())
        if isinstance(model, GenLIP):
            _write_auto_classes(fresh, processor)
        card = render_model_card(target.name, model, tokenizer, processor, facts or {})
        (fresh / CARD_FILE).write_text(card, encoding="utf-8")
        _replace_folder(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _config_of(model: GenLIP | Baseline, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json: the official keys, and what AutoModel and its `generate_ids` need; see `baselines.build` for those
    of a baseline."""
    dtype = str(model.ln_post.weight.dtype).removeprefix("torch.")
    if isinstance(model, Baseline):
        return baseline_to_dict(model) | {"torch_dtype": dtype}
    return {
        **model.config.to_dict(),
        "torch_dtype": dtype,
        "prompt_ids": list(tokenizer.prompt_ids),
        "ending_ids": list(tokenizer.ending_ids),
        "auto_map": AUTO_MAP,
    }


def _write_auto_classes(folder: Path, processor: ImageProcessor) -> None:
    """What the Auto classes of transformers need beside the weights."""
    _write_json(folder / PROCESSOR_FILE, processor.to_dict() | {"auto_map": PROCESSOR_AUTO_MAP})
    if (folder / SENTENCEPIECE_FILE).exists():
        _write_json(folder / "tokenizer_config.json", SENTENCEPIECE_CONFIG)
    _write_code(folder)


def _write_code(folder: Path) -> None:
    """The file for AutoModel and all files of this package that it needs."""
    here = Path(__file__).parent
    sources: dict[str, str] = {}
    waiting = {HF_MODULE}
    while waiting:
        name = waiting.pop()
        sources[name] = (here / f"{name}.py").read_text(encoding="utf-8")
        waiting |= _modules_imported_by(sources[name]) - set(sources)
    # transformers reads the text for the files to copy: 4 only here, and never `from . import`. Nothing has to run.
    named = "".join(f"    from .{name} import *\n" for name in sorted(sources) if name != HF_MODULE)
    sources[HF_MODULE] += f"\n\nif False:  # tells transformers which files to copy\n{named}"
    for name, text in sources.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def _modules_imported_by(source: str) -> set[str]:
    """Names of this package's modules in `from .name import` and `from . import name`."""
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {module for node in imports for module in ([node.module] if node.module else [a.name for a in node.names])}


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """One file, or several with an index, in the layout of Hugging Face. One file at a time is copied to the CPU."""
    shards = list(_shards(tensors))
    names = [WEIGHTS_FILE]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in shard.items()}
        save_file(on_cpu, folder / name, metadata={"format": "pt"})
        # safetensors makes files that only their owner may read.
        shutil.copymode(folder / CONFIG_FILE, folder / name)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if shard and sum(other.nbytes for other in shard.values()) + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[key] = tensor
    yield shard


def _replace_folder(fresh: Path, target: Path) -> None:
    """Renames over an existing folder; the old one is moved aside first because a full folder cannot be replaced."""
    if not target.exists():
        os.rename(fresh, target)
        return
    old = fresh.with_suffix(".old")
    os.rename(target, old)
    try:
        os.rename(fresh, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
