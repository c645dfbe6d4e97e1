"""Generation against recomputation from scratch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from decoding_toys import VOCAB, Image, make_images, make_model, recomputed_log_probs
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Decoding, GenLIP, ModelError, SentencePieceTokenizer, generate, generate_ids
from model.generation import sample

ids = st.integers(0, VOCAB - 1)
grids_strategy = st.lists(st.sampled_from([(1, 1), (2, 2), (1, 4), (3, 2)]), min_size=1, max_size=5)
GRIDS = [(1, 1), (2, 2), (1, 4), (3, 2), (4, 1), (2, 2)]
SAMPLED = Decoding(temperature=1.5, top_p=0.9)


def greedy_by_recomputation(model: GenLIP, image: Image, prompt_ids: list[int], stop_id: int, limit: int) -> list[int]:
    new_ids: list[int] = []
    for _ in range(limit):
        token = int(recomputed_log_probs(model, image, prompt_ids, new_ids)[-1].argmax())
        if token == stop_id:
            break
        new_ids.append(token)
    return new_ids


@settings(max_examples=25, deadline=None)
@given(
    grids=grids_strategy,
    prompt_ids=st.lists(ids, max_size=3),
    stop_id=ids,
    max_new_tokens=st.integers(1, 7),
    batch_size=st.integers(1, 3),
    text_embed_dim=st.sampled_from([16, 24]),
)
def test_generation_is_argmax_of_recomputation(
    grids: list[tuple[int, int]],
    prompt_ids: list[int],
    stop_id: int,
    max_new_tokens: int,
    batch_size: int,
    text_embed_dim: int,
) -> None:
    model, images = make_model(text_embed_dim=text_embed_dim), make_images(grids)
    generated = generate_ids(model, images, prompt_ids, stop_id, max_new_tokens, batch_size)
    assert model.training
    expected = [greedy_by_recomputation(model, image, prompt_ids, stop_id, max_new_tokens) for image in images]
    assert generated == expected


def test_captions_longer_than_one_step_of_the_cache() -> None:
    model, images = make_model(), make_images([(2, 2), (1, 4)])
    generated = generate_ids(model, images, [1], stop_id=-1, max_new_tokens=140)
    for image, new_ids in zip(images, generated, strict=True):
        assert new_ids == recomputed_log_probs(model, image, [1], new_ids[:-1]).argmax(dim=-1).tolist()


@settings(max_examples=25, deadline=None)
@given(
    grids=grids_strategy,
    temperature=st.sampled_from([0.3, 1.0, 3.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9]),
    seed=st.integers(0, 2**40),
)
def test_sampled_tokens_are_in_the_nucleus_of_recomputation(
    grids: list[tuple[int, int]], temperature: float, top_p: float, seed: int
) -> None:
    model, images = make_model(), make_images(grids)
    decoding = Decoding(temperature=temperature, top_p=top_p, seed=seed)
    for image, new_ids in zip(images, generate_ids(model, images, [1], 0, 6, decoding=decoding), strict=True):
        log_probs = recomputed_log_probs(model, image, [1], new_ids)
        probs = (log_probs / temperature).softmax(-1)
        for line, token in zip(probs, [*new_ids, 0][:6], strict=False):
            assert line[line > line[token]].sum() < top_p + 1e-5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.2, 0.7, 1.0]))
def test_draws_follow_the_nucleus(seed: int, top_p: float) -> None:
    """Evenly spaced draws take every token of the nucleus as often as its share of it."""
    logits = 2 * torch.randn(8, generator=torch.Generator().manual_seed(seed))
    probs, order = logits.softmax(0).sort(descending=True)
    size = int((probs.cumsum(0) - probs < top_p).sum())
    expected = torch.zeros(8).index_copy(0, order[:size], probs[:size] / probs[:size].sum())
    draws = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    tokens = sample(logits.expand(4000, -1), top_p, draws)
    torch.testing.assert_close(tokens.bincount(minlength=8) / 4000, expected, atol=1e-3, rtol=0)


def test_a_draw_at_either_end_stays_in_the_nucleus() -> None:
    logits = torch.tensor([[0.0, 30.0, -torch.inf]]).expand(2, -1)
    draws = torch.tensor([0.0, float(np.nextafter(1.0, 0.0))], dtype=torch.float64)
    assert sample(logits, 1.0, draws).tolist() == [1, 0]
    assert sample(logits, 0.5, draws).tolist() == [1, 1]


def test_shares_are_half_open() -> None:
    draws = torch.tensor([0.0, 0.49, 0.5, 0.99], dtype=torch.float64)
    assert sample(torch.zeros(4, 2), 1.0, draws).tolist() == [0, 0, 1, 1]
    assert sample(torch.zeros(4, 2), 0.5, draws).tolist() == [0, 0, 0, 0]


def test_every_token_of_every_image_has_a_draw_of_its_own() -> None:
    model, images = make_model(), make_images([(2, 2), (1, 4), (4, 1)])
    with torch.no_grad():
        model.lm_head.weight.zero_()
    generated = np.array(generate_ids(model, images, [1], -1, 300, decoding=Decoding(temperature=1.0)))
    assert np.all(np.bincount(generated.ravel(), minlength=VOCAB) > 10)  # 30 each are expected
    for first, second in [*pairwise(generated), (generated[:, 1:], generated[:, :-1])]:
        assert np.mean(first == second) < 0.1


def test_the_same_pixels_on_another_grid_are_another_image() -> None:
    model, (patches, _) = make_model(), make_images([(2, 2)])[0]
    images = [(patches, (2, 2)), (patches, (1, 4))]
    with torch.no_grad():
        model.lm_head.weight.zero_()
    first, second = generate_ids(model, images, [1], -1, 20, decoding=SAMPLED)
    assert first != second


def test_low_temperature_and_small_nucleus_are_greedy() -> None:
    model, images = make_model(), make_images(GRIDS)
    greedy = generate_ids(model, images, [1], 0, 8)
    for decoding in (Decoding(temperature=1e-6), Decoding(temperature=2.0, top_p=1e-6)):
        assert generate_ids(model, images, [1], 0, 8, decoding=decoding) == greedy


def test_a_seed_repeats_and_another_differs() -> None:
    model, images = make_model(), make_images(GRIDS)
    first = generate_ids(model, images, [1], 0, 8, decoding=SAMPLED)
    assert generate_ids(model, images, [1], 0, 8, decoding=SAMPLED) == first
    assert generate_ids(model, images, [1], 0, 8, decoding=Decoding(temperature=1.5, top_p=0.9, seed=1)) != first
    assert first != generate_ids(model, images, [1], 0, 8)


@pytest.mark.parametrize("decoding", [Decoding(), SAMPLED, Decoding(num_beams=3)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_do_not_matter(decoding: Decoding, batch_size: int) -> None:
    model, images = make_model(), make_images(GRIDS)
    together = generate_ids(model, images, [1], 0, 8, batch_size, decoding)
    alone = [generate_ids(model, [image], [1], 0, 8, decoding=decoding)[0] for image in reversed(images)]
    assert together == alone[::-1]


@pytest.mark.parametrize("decoding", [Decoding(), SAMPLED, Decoding(num_beams=3)])
def test_captions_stop_at_the_ending_or_are_cut(decoding: Decoding) -> None:
    model, images = make_model(), make_images([(2, 2)] * 20)
    generated = generate_ids(model, images, [1], stop_id=3, max_new_tokens=6, decoding=decoding)
    assert all(3 not in new_ids and len(new_ids) <= 6 for new_ids in generated)
    unending = generate_ids(model, images, [1], stop_id=-1, max_new_tokens=6, decoding=decoding)
    assert {len(new_ids) for new_ids in unending} == {6}
    with torch.no_grad():  # an ending that is certain
        model.lm_head.weight.zero_()
        model.lm_head.weight[3] = 100 * model.project(torch.zeros(24))
        model.ln_post.weight.zero_()
    assert generate_ids(model, images, [1], 3, 6, decoding=decoding) == [[]] * 20


def test_generate_returns_text_in_image_order() -> None:
    tokenizer = SentencePieceTokenizer.train(["a red cup", "a blue dog"] * 10, vocab_size=300)
    model, images = make_model(tokenizer.vocab_size), make_images([(1, 2), (2, 2), (2, 1)])
    stop_id = tokenizer.ending_ids[0]
    expected = [greedy_by_recomputation(model, image, tokenizer.prompt_ids, stop_id, 5) for image in images]
    assert generate(model, images, tokenizer, max_new_tokens=5) == [tokenizer.decode(new_ids) for new_ids in expected]
    assert generate(model, [], tokenizer) == []


def test_a_model_with_broken_weights_is_refused() -> None:
    model = make_model()
    with torch.no_grad():
        model.in_proj.weight[0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        generate_ids(model, make_images([(1, 1)]), [1], 0, max_new_tokens=1)


def test_bad_settings_are_refused() -> None:
    model, images = make_model(), make_images([(1, 1)])
    with pytest.raises(ModelError, match="at least 1"):
        generate_ids(model, images, [1], 0, max_new_tokens=0)
    with pytest.raises(ModelError, match="the prompt has token id 30"):
        generate_ids(model, images, [VOCAB], 0, max_new_tokens=1)
    for name, value in [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("num_beams", 0),
        ("length_penalty", -0.5),
        ("seed", -1),
    ]:
        with pytest.raises(ModelError, match=rf"{name} \(.* is {value}"):
            Decoding(**{name: value})
    with pytest.raises(ModelError, match="beam search does not draw"):
        Decoding(num_beams=2, temperature=1.0)
