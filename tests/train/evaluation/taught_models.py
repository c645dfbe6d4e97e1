"""Tiny models that have learned what coloured squares are called, in a second or two."""

import functools

import torch
from tiny_images import squares, tiny_model

from model import EncodedSample, LoadedModel, pack_rows

NUM_STEPS = {"genlip": 60, "cappa": 60, "clip": 60, "siglip": 60}


@functools.cache
def taught(objective: str = "genlip") -> LoadedModel:
    """Trained on captions such as `A red square.` of noisy squares."""
    torch.manual_seed(0)
    loaded = tiny_model(objective)
    model, tokenizer = loaded.model, loaded.tokenizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(NUM_STEPS[objective]):
        encoded = [
            EncodedSample(
                *loaded.processor.load_patches(one.image),
                tokenizer.prompt_ids,
                [*tokenizer.encode(one.caption), *tokenizer.ending_ids],
            )
            for one in squares(6, seed=100 * step)
        ]
        out = model(pack_rows([encoded], sum(sample.num_tokens for sample in encoded)))
        optimizer.zero_grad()
        (out.loss_sum / (out.num_labels if model.loss_per == "label" else len(encoded))).backward()
        optimizer.step()
    model.eval()
    return loaded
