"""A small noisy model, random images, and log-probabilities recomputed from scratch with the packed forward pass."""

import numpy as np
import torch

from model import EncodedSample, GenLIP, GenLIPConfig, pack_rows

VOCAB = 30
Image = tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], tuple[int, int]]


def make_model(vocab_size: int = VOCAB, text_embed_dim: int = 16, seed: int = 1) -> GenLIP:
    """Noise everywhere, and in training mode, which decoding must neither use nor change. d is 24."""
    config = GenLIPConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        text_embed_dim=text_embed_dim,
        vocab_size=vocab_size,
        patch_size=2,
        drop_path_rate=0.5,
    )
    model = GenLIP(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def make_images(grids: list[tuple[int, int]], seed: int = 0) -> list[Image]:
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (gh * gw, 3, 2, 2), dtype=np.uint8), (gh, gw)) for gh, gw in grids]


@torch.no_grad()
def recomputed_log_probs(model: GenLIP, image: Image, prompt_ids: list[int], text: list[int]) -> torch.Tensor:
    """log P of every next token after the prompt and after each token of the text, [len(text) + 1, V]."""
    sample = EncodedSample(image[0], image[1], prompt_ids, text)
    model.eval()
    log_probs = model.logits(pack_rows([[sample]], sample.num_tokens))[0].float().log_softmax(-1)
    model.train()
    return log_probs[sample.num_tokens - len(text) - 1 :]


def recomputed_score(model: GenLIP, image: Image, prompt_ids: list[int], text: list[int]) -> float:
    log_probs = recomputed_log_probs(model, image, prompt_ids, text)
    return sum(log_probs[k, token].item() for k, token in enumerate(text))
