"""Beam search against greedy decoding, exhaustive search and a plain beam search without a cache."""

from itertools import product

import pytest
import torch
from decoding_toys import Image, make_images, make_model, recomputed_log_probs, recomputed_score
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model import Decoding, GenLIP, generate_ids, score_captions
from model.beam_search import beam_search
from model.cache import inference, prefill

STOP = 0
GRIDS = [(1, 1), (2, 2), (4, 1), (3, 2), (2, 3)]


def final_score(model: GenLIP, image: Image, new_ids: list[int], limit: int, length_penalty: float) -> float:
    tokens = [*new_ids, STOP] if len(new_ids) < limit else new_ids
    return recomputed_score(model, image, [1], tokens) / len(tokens) ** length_penalty


@settings(max_examples=30, deadline=None)
@given(
    model_seed=st.integers(0, 1000),
    vocab_size=st.sampled_from([2, 3, 10, 30]),
    num_beams=st.integers(2, 5),
    max_new_tokens=st.integers(1, 8),
    length_penalty=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
)
# Here the greedy hypothesis overtakes, after having scored lower than one that had already ended.
@example(model_seed=25, vocab_size=10, num_beams=2, max_new_tokens=6, length_penalty=1.0)
def test_beam_search_scores_at_least_as_high_as_greedy(
    model_seed: int, vocab_size: int, num_beams: int, max_new_tokens: int, length_penalty: float
) -> None:
    model, images = make_model(vocab_size, seed=model_seed), make_images(GRIDS)
    greedy = generate_ids(model, images, [1], STOP, max_new_tokens)
    decoding = Decoding(num_beams=num_beams, length_penalty=length_penalty)
    searched = generate_ids(model, images, [1], STOP, max_new_tokens, decoding=decoding)
    for image, first, second in zip(images, greedy, searched, strict=True):
        floor, score = (final_score(model, image, new, max_new_tokens, length_penalty) for new in (first, second))
        assert score >= floor - 1e-4


@pytest.mark.parametrize("model_seed", range(4))
@pytest.mark.parametrize("max_new_tokens", [1, 2, 4])
def test_enough_beams_search_exhaustively(model_seed: int, max_new_tokens: int) -> None:
    model, images = make_model(vocab_size=4, seed=model_seed), make_images(GRIDS)
    texts = [
        [*words, STOP][:max_new_tokens]
        for length in range(max_new_tokens + 1)
        for words in product([1, 2, 3], repeat=length)
    ]
    best = score_captions(model, images, [1], texts).argmax(dim=1)
    decoding = Decoding(num_beams=4**max_new_tokens)
    searched = generate_ids(model, images, [1], STOP, max_new_tokens, decoding=decoding)
    assert searched == [[token for token in texts[i] if token != STOP] for i in best.tolist()]


def plain_beam_search(model: GenLIP, image: Image, num_beams: int, limit: int) -> list[int]:
    """The textbook's, with the greedy hypothesis kept; recomputes everything."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    greedy: list[int] | None = []
    ended: list[tuple[float, list[int]]] = []
    for _ in range(limit):
        candidates = []
        for total, tokens in beams:
            log_probs = recomputed_log_probs(model, image, [1], tokens)[-1].tolist()
            candidates += [(total + log_prob, [*tokens, token]) for token, log_prob in enumerate(log_probs)]
            if tokens == greedy:
                greedy_next = [*tokens, max(range(len(log_probs)), key=log_probs.__getitem__)]
        greedy = greedy_next if greedy is not None else None
        candidates.sort(key=lambda candidate: (candidate[1] != greedy, -candidate[0]))
        ended += [candidate for candidate in candidates[:num_beams] if candidate[1][-1] == STOP]
        greedy = None if greedy is not None and greedy[-1] == STOP else greedy
        beams = [candidate for candidate in candidates if candidate[1][-1] != STOP][:num_beams]
        if greedy is None and ended and max(ended)[0] >= max(beams)[0]:
            break
    else:
        ended += beams
    return [token for token in max(ended)[1] if token != STOP]


@pytest.mark.parametrize("vocab_size", [5, 30])
@pytest.mark.parametrize("num_beams", [1, 2, 4])
def test_beam_search_equals_one_without_a_cache(vocab_size: int, num_beams: int) -> None:
    for model_seed in range(3):
        model, images = make_model(vocab_size, seed=model_seed), make_images([(2, 3), (3, 2), (6, 1)])
        with inference(model):
            searched = beam_search(model, prefill(model, images, [1]), STOP, 6, num_beams, length_penalty=0.0)
        plain = [plain_beam_search(model, image, num_beams, 6) for image in images]
        assert [new[: new.index(STOP)] if STOP in new else new for new in searched] == plain


def test_one_beam_is_greedy() -> None:
    model, images = make_model(), make_images([(2, 3), (3, 2), (1, 6), (2, 3)])
    with inference(model):
        searched = beam_search(model, prefill(model, images, [1]), STOP, 7, num_beams=1, length_penalty=0.0)
    greedy = generate_ids(model, images, [1], STOP, 7)
    assert [new[: new.index(STOP)] if STOP in new else new for new in searched] == greedy


def test_a_length_penalty_favours_longer_captions() -> None:
    images = make_images([(2, 2)] * 30)
    num_tokens = []
    for length_penalty in (0.0, 2.0):
        decoding = Decoding(num_beams=4, length_penalty=length_penalty)
        generated = [
            new
            for model_seed in range(5)
            for new in generate_ids(make_model(4, seed=model_seed), images, [1], STOP, 8, decoding=decoding)
        ]
        num_tokens.append(sum(len(new) for new in generated))
    assert num_tokens[1] > num_tokens[0]


def test_the_prefix_is_stored_once_per_image() -> None:
    model, images = make_model(), make_images([(4, 4)] * 3)
    with inference(model):
        prefix = prefill(model, images, [1])
        beam_search(model, prefix, -1, max_new_tokens=5, num_beams=4, length_penalty=0.0)
    assert prefix.cache.num_tokens == 17 + 4 * 4
    keys = prefix.cache.layers[0].keys
    assert keys is not None
    assert torch.isfinite(keys[:, :, : prefix.cache.num_tokens]).all()
    assert keys.shape[0] == 3


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_an_image_whose_search_is_over_waits_for_the_others_unchanged(length_penalty: float) -> None:
    decoding = Decoding(num_beams=3, length_penalty=length_penalty)
    images = make_images([(2, 3)] * 8)
    for model_seed in range(10):
        model = make_model(vocab_size=4, seed=model_seed)
        together = generate_ids(model, images, [1], STOP, 12, batch_size=8, decoding=decoding)
        assert together == generate_ids(model, images, [1], STOP, 12, batch_size=1, decoding=decoding)
