"""Generation and scoring against recomputation from scratch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import (
    EncodedSample,
    GenLIP,
    GenLIPConfig,
    ModelError,
    PackedRows,
    SentencePieceTokenizer,
    generate,
    generate_ids,
    pack_rows,
    score_captions,
    score_unconditional,
)

VOCAB = 30
Image = tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], tuple[int, int]]
Images = list[Image]


def make_model(vocab_size: int = VOCAB) -> GenLIP:
    """A toy with t != d and noise everywhere; in training mode, which decoding must neither use nor change."""
    config = GenLIPConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        text_embed_dim=16,
        vocab_size=vocab_size,
        patch_size=2,
        drop_path_rate=0.5,
    )
    model = GenLIP(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def make_images(grids: list[tuple[int, int]]) -> Images:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (gh * gw, 3, 2, 2), dtype=np.uint8), (gh, gw)) for gh, gw in grids]


@torch.no_grad()
def naive_score(model: GenLIP, image: Image, prompt_ids: list[int], candidate: list[int]) -> float:
    sample = EncodedSample(image[0], image[1], prompt_ids, candidate)
    log_probs = model.logits(pack_rows([[sample]], sample.num_tokens))[0].log_softmax(-1)
    first = sample.num_tokens - len(candidate)
    return sum(log_probs[first + k - 1, token].item() for k, token in enumerate(candidate))


ids = st.integers(0, VOCAB - 1)
grids_strategy = st.lists(st.sampled_from([(1, 1), (2, 2), (1, 4), (3, 2)]), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(
    grids=grids_strategy,
    prompt_ids=st.lists(ids, max_size=3),
    candidates=st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=6),
    max_tokens=st.sampled_from([1, 40, 10_000]),
)
def test_scores_are_summed_log_probabilities(
    grids: list[tuple[int, int]], prompt_ids: list[int], candidates: list[list[int]], max_tokens: int
) -> None:
    model, images = make_model(), make_images(grids)
    scores = score_captions(model, images, prompt_ids, candidates, max_tokens)
    assert model.training
    model.eval()
    expected = [[naive_score(model, image, prompt_ids, candidate) for candidate in candidates] for image in images]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [(2, 3), (1, 5)])
def test_unconditional_scores_keep_the_positions_of_text_after_the_image(grid: tuple[int, int]) -> None:
    model, prompt_ids, candidates = make_model(), [4, 5], [[1, 2, 3], [7], [9, 9]]
    scores = score_unconditional(model, prompt_ids, candidates, grid)
    model.eval()
    for score, candidate in zip(scores.tolist(), candidates, strict=True):
        text = torch.tensor([prompt_ids + candidate])
        rows = PackedRows.from_tensors(
            input_ids_BS=text,
            labels_BS=torch.where(torch.arange(text.shape[1]) < len(prompt_ids), -100, text),
            position_ids_B3S=(max(grid) + torch.arange(text.shape[1])).expand(1, 3, -1),
            sample_ids_BS=torch.zeros_like(text),
            image_mask_BS=torch.zeros_like(text, dtype=torch.bool),
            pixel_values=torch.zeros(0, 3, 2, 2),
            patch_size=2,
        )
        assert score == pytest.approx(-model(rows).loss_sum.item(), abs=1e-4)


def test_images_matter_only_for_conditional_scores() -> None:
    model, candidates = make_model(), [[1, 2], [3, 4, 5]]
    scores = score_captions(model, make_images([(2, 2), (2, 2)]), [6], candidates)
    assert (scores[0] - scores[1]).abs().min() > 1e-4


def test_no_images_or_candidates_give_empty_scores() -> None:
    assert score_captions(make_model(), [], [1], [[2]]).shape == (0, 1)
    assert score_captions(make_model(), make_images([(1, 2)]), [1], []).shape == (1, 0)


def test_bad_candidates_are_refused() -> None:
    images = make_images([(1, 1)])
    with pytest.raises(ModelError, match="candidate 1 has no tokens"):
        score_captions(make_model(), images, [1], [[2], []])
    with pytest.raises(ModelError, match="token id 30"):
        score_captions(make_model(), images, [1], [[VOCAB]])
    with pytest.raises(ModelError, match="at least one prompt token"):
        score_unconditional(make_model(), [], [[2]], (1, 1))


@torch.no_grad()
def naive_generate(model: GenLIP, image: Image, prompt_ids: list[int], stop_id: int, max_new_tokens: int) -> list[int]:
    new_ids: list[int] = []
    for _ in range(max_new_tokens):
        sample = EncodedSample(image[0], image[1], prompt_ids, new_ids)
        token = int(model.logits(pack_rows([[sample]], sample.num_tokens))[0, -1].argmax())
        if token == stop_id:
            break
        new_ids.append(token)
    return new_ids


@settings(max_examples=20, deadline=None)
@given(
    grids=grids_strategy,
    prompt_ids=st.lists(ids, max_size=3),
    stop_id=ids,
    max_new_tokens=st.integers(1, 7),
    batch_size=st.integers(1, 3),
)
def test_generation_is_argmax_of_recomputation(
    grids: list[tuple[int, int]], prompt_ids: list[int], stop_id: int, max_new_tokens: int, batch_size: int
) -> None:
    model, images = make_model(), make_images(grids)
    generated = generate_ids(model, images, prompt_ids, stop_id, max_new_tokens, batch_size)
    assert model.training
    model.eval()
    assert generated == [naive_generate(model, image, prompt_ids, stop_id, max_new_tokens) for image in images]


def test_generate_returns_text_in_image_order() -> None:
    tokenizer = SentencePieceTokenizer.train(["a red cup", "a blue dog"] * 10, vocab_size=300)
    model, images = make_model(tokenizer.vocab_size), make_images([(1, 2), (2, 2), (2, 1)])
    texts = generate(model, images, tokenizer, max_new_tokens=5)
    stop_id = tokenizer.ending_ids[0]
    model.eval()
    expected = [naive_generate(model, image, tokenizer.prompt_ids, stop_id, 5) for image in images]
    assert texts == [tokenizer.decode(new_ids) for new_ids in expected]
    with pytest.raises(ModelError, match="at least 1"):
        generate(model, images, tokenizer, max_new_tokens=0)
