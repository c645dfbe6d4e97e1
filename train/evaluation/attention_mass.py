"""Where attention goes: the paper's attention-sink statistics (arXiv v2, Figure 3), with and without the gate.

The paper compares a model trained with gates (So/16: text gives 0.1 % to the first text token, 13.4 % to the image) to
one trained without (17.1 % and 8.9 %). One model is only one of the two, so its probabilities stand beside the same
times the gate: what of the mass reaches the output.

Shape legend: N tokens of a sample, P of them image, H heads, K channels of a head, Q text queries, L layers, I images.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model import EncodedSample, GenLIP, LoadedModel, pack_rows
from model.layers import SelfAttention
from train.evaluation.features import Features
from train.evaluation.result import Metric, Part
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.spec import EvalSpec

NUM_IMAGES = 64
"""The first held-out images that have captions."""
MAX_CAPTION_TOKENS = 256
"""Longer captions are cut: the probabilities of a layer are held whole."""

# Takes the probabilities [H, N, N] of a layer, and its gate [H, N] (see `run_recorded`) or None without gates.
Record = Callable[[Tensor, Tensor | None], None]


def attention(loaded: LoadedModel, data: EvalData, spec: EvalSpec, features: Features) -> Part:
    """Means over layers, heads and tokens, by image; chance is attention spread evenly over all that a token sees.

    The first text token is that of the prompt. Queries are the text tokens behind it, so `text_to_first_text`,
    `text_to_image` and `text_to_other_text` add up to 1. `image_to_strongest` is what the patches of an image give, on
    average, to the patch that gets most.
    """
    model = loaded.model
    if not isinstance(model, GenLIP):
        return Part(notes=[f"attention is left out: a {model.objective} model has no text behind its patches"])
    rows = [row for row, one in enumerate(features.heldout.samples) if one.caption][:NUM_IMAGES]
    if not rows:
        return Part(notes=["attention is left out: no held-out image has a caption"])
    samples = [_encode(loaded, features.heldout.samples[row]) for row in rows]
    found_I = [_measure(model, sample) for sample in samples]
    even_I = [masses(_even(visible(len(one.patches), one.num_tokens)), len(one.patches)) for one in samples]
    part = Part(details={"attention/num_images": len(rows)})
    by_layer: dict[str, list[float]] = {}
    for name in found_I[0]:
        value_IL = np.array([found[name] for found in found_I])
        value_I = value_IL.mean(axis=1)
        chance = float(np.mean([even[name] for even in even_I])) if name in even_I[0] else None
        part.metrics[f"attention/{name}"] = Metric(float(value_I.mean()), chance=chance, better="")
        part.per_image[f"attention/{name}"] = features.heldout.per_image(rows, value_I)
        by_layer[name] = value_IL.mean(axis=0).tolist()
    part.details["attention/by_layer"] = by_layer
    return part


def masses(p_HNN: Tensor, num_image: int) -> dict[str, float]:
    """What text gives to the first text token, the image and other text, and the image to its strongest key.

    Args:
        p_HNN: Probabilities, or probabilities times a gate: queries, then keys.
        num_image: P; at least two text tokens follow.
    """
    text_HQN = p_HNN[:, num_image + 1 :]
    return {
        "text_to_first_text": float(text_HQN[:, :, num_image].mean()),
        "text_to_image": float(text_HQN[:, :, :num_image].sum(dim=-1).mean()),
        "text_to_other_text": float(text_HQN[:, :, num_image + 1 :].sum(dim=-1).mean()),
        "image_to_strongest": float(p_HNN[:, :num_image].mean(dim=1).amax(dim=-1).mean()),
    }


def run_recorded(model: GenLIP, sample: EncodedSample, record: Record) -> Tensor:
    """Runs one sample with attention written out, for its probabilities; returns `ln_post` output [N, D].

    Args:
        model: In evaluation mode.
        sample: Its N tokens are image, then text; a layer holds [H, N, N].
        record: Called for every layer in order, with probabilities [H, N, N] (queries, then keys; each row adds up to
            1) and the gate [H, N], the mean of its sigmoid over the channels of a head.
    """
    rows = pack_rows([[sample]], sample.num_tokens).to(model.device)
    sees_NN = visible(len(sample.patches), sample.num_tokens).to(model.device)
    gates: list[Tensor] = []

    def keep_gate(projection: nn.Module, inputs: Any, output_ND: Tensor) -> None:
        gate_NHK = torch.unflatten(output_ND.chunk(2, dim=-1)[1].sigmoid(), -1, (model.config.num_attention_heads, -1))
        gates.append(gate_NHK.mean(dim=-1).T.float())

    def attend(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        scores_HNN = torch.einsum("qhk,shk->hqs", q_NHK, k_NHK).float() / q_NHK.shape[-1] ** 0.5
        p_HNN = scores_HNN.masked_fill(~sees_NN, -torch.inf).softmax(dim=-1)
        # The query projection, which holds the gate, has just run.
        record(p_HNN, gates[-1] if gates else None)
        return torch.einsum("hqs,shk->qhk", p_HNN.to(v_NHK.dtype), v_NHK)

    gated = [module for module in model.modules() if isinstance(module, SelfAttention) and module.is_gated]
    hooks = [module.q_proj.register_forward_hook(keep_gate) for module in gated]
    try:
        attends = [attend] * model.config.num_hidden_layers
        with torch.no_grad():
            x_ND = model.run_blocks(model.embed_rows(rows), rows.position_ids_B3S, attends)
            hidden_ND: Tensor = model.ln_post(x_ND)
    finally:
        for hook in hooks:
            hook.remove()
    return hidden_ND


def visible(num_image: int, num_tokens: int) -> Tensor:
    """Which keys a query sees, bool [N, N]: images the whole image, text the image and the text up to itself."""
    token_N = torch.arange(num_tokens)
    return (token_N < num_image) | (token_N <= token_N.unsqueeze(1))


def _even(sees_NN: Tensor) -> Tensor:
    """Attention spread evenly over all that is seen, [1, N, N]."""
    return (sees_NN / sees_NN.sum(dim=-1, keepdim=True)).unsqueeze(0)


def _encode(loaded: LoadedModel, one: Labelled) -> EncodedSample:
    patches, grid = loaded.processor.load_patches(one.image)
    caption_ids = loaded.tokenizer.encode(one.caption)[:MAX_CAPTION_TOKENS]
    return EncodedSample(patches, grid, loaded.tokenizer.prompt_ids, [*caption_ids, *loaded.tokenizer.ending_ids])


def _measure(model: GenLIP, sample: EncodedSample) -> dict[str, list[float]]:
    """Every statistic of every layer, [L] by name."""
    found: dict[str, list[float]] = defaultdict(list)

    def record(p_HNN: Tensor, gate_HN: Tensor | None) -> None:
        for name, value in masses(p_HNN, len(sample.patches)).items():
            found[name].append(value)
        if gate_HN is not None:
            found["gate"].append(float(gate_HN.mean()))
            for name, value in masses(p_HNN * gate_HN.unsqueeze(-1), len(sample.patches)).items():
                found[f"{name}_gated"].append(value)

    run_recorded(model, sample, record)
    return found
