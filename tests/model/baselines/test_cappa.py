"""CapPa: what each place of the decoder sees, and that scores are sums of token losses."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import EncodedSample, ModelError
from model.baselines import CapPa, build_model
from tests.model.baselines.toys import ENDING, image_of, make_sample, pack, tiny_baseline, tiny_config

CANDIDATES = st.lists(st.lists(st.integers(5, 9), min_size=1, max_size=6), min_size=1, max_size=6)


def cappa(parallel: float | None = None) -> CapPa:
    if parallel is None:
        model = tiny_baseline("cappa")
    else:
        model = build_model(tiny_config(initializer_range=0.2), "cappa", parallel=parallel)
    assert isinstance(model, CapPa)
    return model


def with_caption(sample: EncodedSample, ids: Sequence[int]) -> EncodedSample:
    return EncodedSample(sample.patches, sample.grid, sample.prompt_ids, ids)


def token_losses(model: CapPa, *samples: EncodedSample) -> torch.Tensor:
    with torch.no_grad():
        losses = model(pack(samples)).token_losses_L
    assert losses is not None
    return losses


@pytest.mark.parametrize("place", range(5))
def test_a_token_changes_nothing_before_it(place: int) -> None:
    model = cappa().eval()
    sample = make_sample(0)
    changed = list(sample.caption_ids)
    changed[place] = 49
    before, after = token_losses(model, sample), token_losses(model, with_caption(sample, changed))
    assert torch.equal(before[:place], after[:place])
    assert not torch.isclose(before[place:], after[place:]).any()


@pytest.mark.parametrize("place", range(5))
def test_parallel_prediction_sees_no_token(place: int) -> None:
    """A changed token changes its own loss alone; and the places are told apart."""
    model = cappa(parallel=1.0).train()
    sample = make_sample(0)
    changed = list(sample.caption_ids)
    changed[place] = 49
    before, after = token_losses(model, sample), token_losses(model, with_caption(sample, changed))
    others = torch.arange(5) != place
    assert torch.equal(before[others], after[others])
    assert not torch.isclose(before[place], after[place])
    repeated = token_losses(model, with_caption(sample, [7, 7, 7, 7]))
    assert len(set(repeated.tolist())) == 4


def test_parallel_places_see_the_length_of_their_own_caption_only() -> None:
    model = cappa(parallel=1.0).train()
    short, long = make_sample(0, num_ids=1), make_sample(1, num_ids=6)
    torch.testing.assert_close(
        token_losses(model, short, long), torch.cat([token_losses(model, short), token_losses(model, long)])
    )


def test_share_of_parallel_samples() -> None:
    """In training each sample is of one of the two kinds; in evaluation all are causal."""
    both = [cappa(parallel=parallel).train() for parallel in (0.0, 1.0)]
    sample = make_sample(0)
    causal, parallel = (float(token_losses(model, sample).sum()) for model in both)
    torch.manual_seed(0)
    mixed = cappa(parallel=0.75)
    mixed.train()
    sums = token_losses(mixed, *[sample] * 400).view(400, -1).sum(dim=1)
    is_parallel = torch.isclose(sums, torch.tensor(parallel), rtol=1e-4)
    assert (is_parallel | torch.isclose(sums, torch.tensor(causal), rtol=1e-4)).all()
    assert abs(int(is_parallel.sum()) - 300) < 5 * 8.7  # the deviation of 400 draws
    assert float(token_losses(mixed.eval(), sample).sum()) == pytest.approx(causal, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(candidates=CANDIDATES, max_tokens=st.sampled_from([1, 30, 16384]))
def test_scores_are_sums_of_token_losses(candidates: list[list[int]], max_tokens: int) -> None:
    model = cappa()
    samples = [make_sample(0, (2, 3)), make_sample(1, (1, 2)), make_sample(2, (2, 3))]
    scores = model.score_captions([image_of(sample) for sample in samples], candidates, max_tokens)
    assert model.training
    model.eval()
    for line, sample in zip(scores, samples, strict=True):
        expected = torch.stack([-token_losses(model, with_caption(sample, ids)).sum() for ids in candidates])
        torch.testing.assert_close(line, expected, rtol=1e-4, atol=1e-4)


def test_an_image_is_encoded_once_for_all_candidates() -> None:
    model = cappa().eval()
    num_encoded = []
    model.ln_post.register_forward_hook(lambda module, inputs, output: num_encoded.append(len(output)))
    candidates = [[a, b, c, *ENDING] for a in range(5, 15) for b in range(5, 15) for c in range(5, 15)]
    scores = model.score_captions([image_of(make_sample(seed)) for seed in range(3)], candidates)
    assert sum(num_encoded) == 3
    assert scores.shape == (3, 1000)
    assert scores.isfinite().all()


def test_greedy_captions_are_the_likeliest_continuations() -> None:
    model = cappa().eval()
    samples = [make_sample(0, (2, 3)), make_sample(1, (1, 2)), make_sample(2, (2, 3))]
    images = [image_of(sample) for sample in samples]
    found = model.generate_ids(images, ENDING, max_new_tokens=4)
    # Every id once as an ending: the caption is cut there.
    stops = [model.generate_ids(images[:1], [ids], max_new_tokens=4)[0] for ids in found[0]]
    assert stops == [found[0][: found[0].index(stop)] for stop in found[0]]
    for image, ids in zip(images, found, strict=True):
        for length, token_id in enumerate(ids):
            continuations = [[*ids[:length], other] for other in range(model.config.vocab_size)]
            assert int(model.score_captions([image], continuations)[0].argmax()) == token_id
        assert len(ids) <= 4


def test_bad_captions_are_refused() -> None:
    model = cappa()
    images = [image_of(make_sample(0))]
    with pytest.raises(ModelError, match="candidate 1 has no tokens"):
        model.score_captions(images, [[5], []])
    with pytest.raises(ModelError, match="token id 50"):
        model.score_captions(images, [[50]])
    with pytest.raises(ModelError, match="at least 1"):
        model.generate_ids(images, ENDING, max_new_tokens=0)
    assert model.score_captions([], [[5]]).shape == (0, 1)
    assert model.score_captions(images, []).shape == (1, 0)
