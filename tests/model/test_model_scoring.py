"""Scores of many captions against recomputation from scratch."""

from itertools import pairwise

import pytest
import torch
from decoding_toys import VOCAB, make_images, make_model, recomputed_score
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelError, PackedRows, score_captions, score_unconditional
from model.text_tree import plan_trees

ids = st.integers(0, VOCAB - 1)
# Few ids and lengths: candidates often share a beginning, contain one another or are equal.
texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    grids=st.lists(st.sampled_from([(1, 1), (2, 2), (1, 4), (3, 2)]), min_size=1, max_size=5),
    prompt_ids=st.lists(ids, max_size=3),
    candidates=st.one_of(texts, st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=6)),
    max_tokens=st.sampled_from([1, 40, 10_000]),
    tree_tokens=st.sampled_from([1, 5, 1000]),
    text_embed_dim=st.sampled_from([16, 24]),
)
def test_scores_are_summed_log_probabilities(
    grids: list[tuple[int, int]],
    prompt_ids: list[int],
    candidates: list[list[int]],
    max_tokens: int,
    tree_tokens: int,
    text_embed_dim: int,
) -> None:
    model, images = make_model(text_embed_dim=text_embed_dim), make_images(grids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.scoring.TREE_TOKENS", tree_tokens)
        scores = score_captions(model, images, prompt_ids, candidates, max_tokens)
    assert model.training
    expected = [[recomputed_score(model, image, prompt_ids, candidate) for candidate in candidates] for image in images]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_bfloat16_scores_equal_recomputation_up_to_rounding() -> None:
    model, images = make_model().bfloat16(), make_images([(3, 2), (2, 2)])
    candidates = [[1, 2, 3], [1, 2, 4, 5, 6], [7]]
    scores = score_captions(model, images, [8], candidates)
    expected = [[recomputed_score(model, image, [8], candidate) for candidate in candidates] for image in images]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=0.1, rtol=0.02)


def test_scores_under_autocast() -> None:
    model, images, candidates = make_model(), make_images([(3, 2)]), [[1, 2, 3], [1, 4]]
    expected = score_captions(model, images, [8], candidates)
    with torch.autocast("cpu", torch.bfloat16):
        scores = score_captions(model, images, [8], candidates)
    torch.testing.assert_close(scores, expected, atol=0.3, rtol=0.05)


@pytest.mark.parametrize("grid", [(2, 3), (1, 5)])
def test_unconditional_scores_keep_the_positions_of_text_after_the_image(grid: tuple[int, int]) -> None:
    model, prompt_ids, candidates = make_model(), [4, 5], [[1, 2, 3], [7], [9, 9], [1, 2, 4]]
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
    before = score_unconditional(model, [6], candidates, (2, 2))
    with torch.no_grad():
        model.vision_embeddings.patch_embedding.weight.add_(1)
    assert torch.equal(score_unconditional(model, [6], candidates, (2, 2)), before)


def test_no_images_or_candidates_give_empty_scores() -> None:
    assert score_captions(make_model(), [], [1], [[2]]).shape == (0, 1)
    assert score_captions(make_model(), make_images([(1, 2)]), [1], []).shape == (1, 0)
    assert score_unconditional(make_model(), [1], [], (1, 2)).shape == (0,)


def test_bad_ids_are_refused() -> None:
    model, images = make_model(), make_images([(1, 1)])
    with pytest.raises(ModelError, match="candidate 1 has no tokens"):
        score_captions(model, images, [1], [[2], []])
    for token_id in (VOCAB, -1):
        with pytest.raises(ModelError, match=f"candidate 0 has token id {token_id} .* ids 0 to 29"):
            score_captions(model, images, [1], [[3, token_id]])
        with pytest.raises(ModelError, match=f"the prompt has token id {token_id}"):
            score_unconditional(model, [token_id], [[3]], (1, 1))
    with pytest.raises(ModelError, match="at least one prompt token"):
        score_unconditional(model, [], [[2]], (1, 1))


@settings(deadline=None)
@given(texts=texts, tree_tokens=st.integers(1, 30))
def test_trees_hold_every_text_and_run_a_common_beginning_once(texts: list[list[int]], tree_tokens: int) -> None:
    trees = plan_trees(texts, tree_tokens)
    assert sorted(number for tree in trees for number in tree.texts) == list(range(len(texts)))
    for tree in trees:
        own = [texts[number] for number in tree.texts]
        beginnings = {tuple(text[:k]) for text in own for k in range(1, len(text) + 1)}
        assert len(tree.token_ids_E) == len(beginnings)
        assert len(beginnings) <= tree_tokens or len({tuple(text) for text in own}) == 1 or len(own) == 1
        continued = {beginning[:-1] for beginning in beginnings} - {()}
        assert tree.num_inner == len(continued)
    # Each tree is as full as the order allows.
    for first, second in pairwise(trees):
        merged = {tuple(texts[n][:k]) for n in [*first.texts, second.texts[0]] for k in range(1, len(texts[n]) + 1)}
        assert len(merged) > tree_tokens
