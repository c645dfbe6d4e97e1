"""The shape of a GenLIP model, in the key names of the official config.json."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelError

PRESETS = Path(__file__).parent / "presets"
MODEL_TYPE = "genlip"
# The name of the official class, and of ours in hf_genlip.py.
ARCHITECTURE = "GenLIPModel"
# Kinds of rotary positions that mean plain, unscaled angles.
ROPE_TYPES = (None, "default", "mrope")
# Official switches that change the computation. This package implements exactly one value of each.
FIXED = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "mrope_interleaved": True,
    "tie_word_embeddings": False,
    "use_llm_head": False,
    "llm_decoder": None,
}


@dataclass(frozen=True, kw_only=True)
class GenLIPConfig:
    """One GenLIP architecture. Widths are in channels, `patch_size` in pixels.

    `mrope_section` holds the channel pairs of the (time, height, width) axes; its default leaves every head of up to
    96 channels unclipped, which is what all published models amount to.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    text_embed_dim: int
    vocab_size: int
    patch_size: int = 16
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    mrope_section: tuple[int, int, int] = (16, 16, 16)
    drop_path_rate: float = 0.1
    ls_init_value: float = 0.1
    gated_attention: bool = True
    use_swiglu_ffn: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in _names_of_type(int):
            _require_count(name, getattr(self, name))
        for name in _names_of_type(bool):
            if not isinstance(getattr(self, name), bool):
                raise ModelError(f"model config: {name} must be true or false, got {getattr(self, name)!r}")
        for name in _names_of_type(float):
            _require_number(name, getattr(self, name))
        section = self.mrope_section
        if not (isinstance(section, tuple) and len(section) == 3 and all(type(n) is int and n >= 0 for n in section)):
            raise ModelError(f"model config: mrope_section must be three channel counts >= 0, got {section!r}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ModelError(
                f"model config: hidden_size {self.hidden_size} must split into {self.num_attention_heads} heads of an"
                " even width (rotary positions pair channels); change hidden_size or num_attention_heads"
            )
        if not self.drop_path_rate < 1:
            raise ModelError(f"model config: drop_path_rate must be below 1, got {self.drop_path_rate}")
        if self.layer_norm_eps == 0 or self.rope_theta == 0:
            raise ModelError("model config: layer_norm_eps and rope_theta must be above 0")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def has_layer_scale(self) -> bool:
        """Whether the blocks carry LayerScale (the official threshold)."""
        return self.ls_init_value > 1e-6

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenLIPConfig":
        """Reads the official key style; keys without effect on the computation are ignored.

        A missing `text_embed_dim` means the hidden width. `mrope_section` and `rope_theta` may stand alone or inside
        `rope_scaling` (`rope_parameters` in files written by transformers 5).

        Raises:
            ModelError: a required key is missing, a value is out of range, a key looks misspelt, or an official
                switch asks for a computation that this package does not implement.
        """
        values = dict(values)
        for name, only in FIXED.items():
            if values.pop(name, only) != only:
                raise ModelError(f"model config: only {name}={only!r} is implemented; change it in config.json")
        values |= rope_values(values)
        values.setdefault("text_embed_dim", values.get("hidden_size"))
        names = {field.name for field in dataclasses.fields(cls)}
        _reject_misspelt(set(values) - names, names - set(values))
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise ModelError(f"model config: missing {', '.join(missing)}; add them or start from a preset")
        return cls(**{name: value for name, value in values.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        """The official key style, ready for config.json; `from_dict` is its inverse."""
        values = dataclasses.asdict(self)
        section = values.pop("mrope_section")
        scaling = {"type": "mrope", "mrope_section": list(section)}
        names = {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}
        return {**values, **FIXED, "rope_scaling": scaling, **names}

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "GenLIPConfig":
        """A named architecture from `model/presets`, with fields replaced by name.

        Example: `GenLIPConfig.preset("nano8", vocab_size=4096)`.

        Raises:
            ModelError: no such preset, or an override that is not a field.
        """
        path = PRESETS / f"{name}.json"
        if name not in list_presets():
            raise ModelError(f"model preset {name!r} does not exist; choose one of {', '.join(list_presets())}")
        unknown = set(overrides) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ModelError(f"model preset {name}: {', '.join(sorted(unknown))} is not a field of the model config")
        return cls.from_dict({**json.loads(path.read_text(encoding="utf-8")), **overrides})


def list_presets() -> list[str]:
    """Names accepted by `GenLIPConfig.preset`."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def rope_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """`mrope_section` and `rope_theta`, wherever a config.json keeps them; a missing one is left out."""
    nested = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(nested, Mapping):
        raise ModelError(f"model config: rope_scaling must be an object, got {nested!r}")
    for key in ("type", "rope_type"):
        if nested.get(key) not in ROPE_TYPES:
            raise ModelError(f"model config: rotary positions of {key} {nested[key]!r} are not implemented")
    found = {name: values.get(name, nested.get(name)) for name in ("mrope_section", "rope_theta")}
    if isinstance(found["mrope_section"], list):
        found["mrope_section"] = tuple(found["mrope_section"])
    return {name: value for name, value in found.items() if value is not None}


def _names_of_type(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(GenLIPConfig) if field.type is kind]


def _require_count(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ModelError(f"model config: {name} must be a whole number of at least 1, got {value!r}")


def _require_number(name: str, value: object) -> None:
    # `not 0 <= value` also catches NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ModelError(f"model config: {name} must be a finite number of at least 0, got {value!r}")


def _reject_misspelt(unknown: set[str], absent: set[str]) -> None:
    """Unknown keys are normal in official files; one that is nearly the name of an absent field is a typo."""
    for key in sorted(unknown):
        if match := difflib.get_close_matches(key, absent, n=1, cutoff=0.85):
            raise ModelError(f"model config: unknown key {key!r}; did you mean {match[0]!r}?")
