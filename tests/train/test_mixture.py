"""Mixing: weights are kept, passes are complete and of their own order, and the schedule changes weights on time."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.mixture import Mixture, Phase, Place

SEGMENT = 64
Drawn = tuple[Callable[[], Mixture], list[Phase]]


@st.composite
def mixtures(draw: st.DrawFn) -> Drawn:
    """How to make a mixture, and its phases."""
    num_sources = draw(st.integers(1, 4))
    shards = st.lists(st.integers(1, 20), min_size=1, max_size=6)
    sources = [np.array(draw(shards), np.int64) for _ in range(num_sources)]
    weights = st.lists(st.floats(0, 5), min_size=num_sources, max_size=num_sources).filter(lambda w: sum(w) > 0.01)
    starts = [0, *sorted(draw(st.lists(st.integers(1, 600), max_size=2)))]
    phases = [Phase(start, tuple(draw(weights))) for start in starts]
    segment = draw(st.integers(num_sources**2, SEGMENT))
    return partial(Mixture, sources, phases, draw(st.integers(0, 2**40)), draw(st.integers(1, 4)), segment), phases


def first_places(mixture: Mixture, num_segments: int) -> list[Place]:
    return [place for segment in range(num_segments) for place in mixture.places(segment)]


@given(mixtures(), st.integers(1, 12))
@settings(deadline=None)
def test_every_pass_reads_every_sample_once_before_the_next_begins(drawn: Drawn, num_segments: int) -> None:
    mixture = drawn[0]()
    by_source = defaultdict(list)
    for place in first_places(mixture, num_segments):
        by_source[place.source].append(place)
    for source, places in by_source.items():
        sizes = mixture.num_samples_by_source[source]
        total = int(sizes.sum())
        everything = {(shard, row) for shard, size in enumerate(sizes.tolist()) for row in range(size)}
        for begin in range(0, len(places), total):
            one = places[begin : begin + total]
            assert {place.number for place in one} == {begin // total}
            found = [(place.shard, place.row) for place in one]
            assert len(set(found)) == len(found)
            assert set(found) <= everything
            assert len(one) < total or set(found) == everything


@given(mixtures(), st.integers(0, 12))
@settings(deadline=None)
def test_a_segment_does_not_depend_on_those_before(drawn: Drawn, segment: int) -> None:
    make, _ = drawn
    whole = first_places(make(), segment + 1)
    assert list(make().places(segment)) == whole[-make().segment_samples :]


@given(mixtures(), st.integers(1, 12))
@settings(deadline=None)
def test_weights_are_kept_at_every_segment(drawn: Drawn, num_segments: int) -> None:
    make, phases = drawn
    mixture = make()
    num_sources, size = len(mixture.num_samples_by_source), mixture.segment_samples
    expected = np.zeros(num_sources)
    given_so_far = np.zeros(num_sources)
    for segment in range(num_segments):
        begun = [phase for phase in phases if phase.from_samples <= segment * size]
        weights = np.array(begun[-1].weights)
        expected += weights / weights.sum() * size
        given_so_far += np.bincount(mixture.places(segment).source_N, minlength=num_sources)
        assert given_so_far.sum() == (segment + 1) * size
        assert np.abs(given_so_far - expected).max() <= num_sources * len(begun)
        lighter = np.arange(num_sources) != weights.argmax()
        if len(begun) == 1:
            assert (np.abs(given_so_far - expected)[lighter] <= 1 + 1e-6).all()


def test_passes_of_a_source_differ_in_their_order() -> None:
    mixture = Mixture([np.full(10, 20, np.int64)], [Phase(0, (1.0,))], 3, 2, 200)
    passes = [[(place.shard, place.row) for place in mixture.places(number)] for number in range(4)]
    for number, one in enumerate(passes):
        for other in passes[:number]:
            assert sum(mine == yours for mine, yours in zip(one, other, strict=True)) < 10


def test_a_source_is_read_only_while_it_has_a_weight() -> None:
    sources = [np.array([30]), np.array([50])]
    mixture = Mixture(sources, [Phase(0, (1.0, 0.0)), Phase(100, (1.0, 3.0))], 0, 1, 64)
    found = [np.bincount(mixture.places(segment).source_N, minlength=2).tolist() for segment in range(4)]
    assert found == [[64, 0], [64, 0], [16, 48], [16, 48]]
    assert mixture.taken(256) == [160, 96]


def test_turns_are_shuffled_inside_a_segment() -> None:
    mixture = Mixture([np.array([500]), np.array([500])], [Phase(0, (1.0, 1.0))], 0, 1, 400)
    source_N = mixture.places(0).source_N
    assert source_N[:200].sum() == pytest.approx(100, abs=40)
    assert not np.array_equal(source_N, mixture.places(1).source_N)
