"""The stream is a pure function of a position: any number of ranks, any resumes, the same global batches."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.consumed import own_rows
from train.data.costs import Costs
from train.data.mixture import Mixture, Phase, Place, Places
from train.data.stream import Position, Row, Step, Stream

ROW = 64


@dataclass(frozen=True)
class Plan:
    """What a stream follows from."""

    sizes: list[list[int]]
    phases: list[Phase]
    lanes: int
    segment_samples: int
    seed: int

    def stream(self) -> Stream:
        """A new one, which knows nothing of what another has planned."""
        sources = [np.array(sizes, np.int64) for sizes in self.sizes]
        mixture = Mixture(sources, self.phases, self.seed, 2, self.segment_samples)
        return Stream(mixture, cost, ROW, self.lanes)


def cost(places: Places) -> Costs:
    """Lengths from 1 to ROW that depend on sample and pass, as captions drawn anew make them."""
    mixed_N = (places.row_N * 7919 + places.shard_N * 104_729 + places.source_N * 31 + places.pass_N * 17) % ROW
    tokens_N = (mixed_N + 1).astype(np.int32)
    return Costs(tokens_N, tokens_N, tokens_N, tokens_N.astype(np.int64))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    num_sources = draw(st.integers(1, 3))
    sizes = [draw(st.lists(st.integers(1, 30), min_size=1, max_size=5)) for _ in range(num_sources)]
    weights = st.lists(st.floats(0, 4), min_size=num_sources, max_size=num_sources).filter(lambda w: sum(w) > 0.01)
    starts = [0, *sorted(draw(st.lists(st.integers(1, 300), max_size=2)))]
    phases = [Phase(start, tuple(draw(weights))) for start in starts]
    lanes = draw(st.sampled_from([1, 2, 4, 6, 12]))
    return Plan(sizes, phases, lanes, draw(st.integers(num_sources**2, 80)), draw(st.integers(0, 2**31)))


def steps_from(stream: Stream, at: Position, num_steps: int) -> list[Step]:
    steps = []
    for _ in range(num_steps):
        steps.append(stream.step(at))
        at = steps[-1].after
    return steps


def samples(row: Row) -> list[Place]:
    return list(row.places)


def batch(step: Step) -> list[list[Place]]:
    return [samples(row) for row in step.rows]


@given(plans(), st.integers(1, 12), st.data())
@settings(deadline=None)
def test_two_resumes_on_other_numbers_of_ranks_give_the_uninterrupted_batches(
    plan: Plan, num_steps: int, data: st.DataObject
) -> None:
    straight = [batch(step) for step in steps_from(plan.stream(), Position(), num_steps)]
    stops = sorted(data.draw(st.lists(st.integers(0, num_steps), min_size=2, max_size=2)))
    sizes = [size for size in range(1, plan.lanes + 1) if plan.lanes % size == 0]
    at, found = Position(), []
    for begin, end in zip([0, *stops], [*stops, num_steps], strict=True):
        world_size = data.draw(st.sampled_from(sizes))
        ranks = [steps_from(plan.stream(), at, end - begin) for _ in range(world_size)]  # each in its own process
        for ranks_of_step in zip(*ranks, strict=True):
            parts = [own_rows(step, rank, world_size) for rank, step in enumerate(ranks_of_step)]
            found.append([samples(row) for part in parts for row in part])
            assert len({step.after for step in ranks_of_step}) == 1
            at = ranks_of_step[0].after
    assert found == straight


@given(plans(), st.integers(1, 30))
@settings(deadline=None)
def test_passes_are_complete_and_disjoint(plan: Plan, num_steps: int) -> None:
    stream = plan.stream()
    steps = steps_from(stream, Position(), num_steps)
    seen = Counter(place for step in steps for row in batch(step) for place in row)
    assert set(seen.values()) == {1}
    ended = stream.mixture.taken(steps[-1].after.segment * plan.segment_samples)
    for source, (sizes, taken) in enumerate(zip(plan.sizes, ended, strict=True)):
        for number in range(taken // sum(sizes)):
            everything = [Place(source, number, shard, row) for shard, size in enumerate(sizes) for row in range(size)]
            assert all(seen[place] == 1 for place in everything)


@given(plans(), st.integers(1, 12))
@settings(deadline=None)
def test_every_lane_has_a_row_that_fits_and_the_count_is_right(plan: Plan, num_steps: int) -> None:
    stream = plan.stream()
    steps = steps_from(stream, Position(), num_steps)
    for step in steps:
        assert len(step.rows) == plan.lanes
        assert all(0 < row.costs.tokens_N.sum() <= ROW for row in step.rows)
        assert all(np.array_equal(row.costs.tokens_N, cost(row.places).tokens_N) for row in step.rows)
    given_by_source = Counter(place.source for step in steps for row in batch(step) for place in row)
    before = plan.stream().samples_before(steps[-1].after)
    assert before == [given_by_source[source] for source in range(len(plan.sizes))]
    assert sum(before) == sum(step.totals.num_samples for step in steps)
    passes = [number / sum(sizes) for number, sizes in zip(before, plan.sizes, strict=True)]
    assert plan.stream().passes(steps[-1].after) == passes


def test_steps_take_the_rows_of_one_segment_after_the_other() -> None:
    plan = Plan([[40]], [Phase(0, (1.0,))], lanes=6, segment_samples=20, seed=1)
    stream = plan.stream()
    steps = steps_from(stream, Position(), 10)
    segments = [stream.segment(number) for number in range(20)]
    rows = [list(segment.places.take(row)) for segment in segments for row in segment.rows]
    assert any(len(segment.rows) % plan.lanes for segment in segments)
    assert [row for step in steps for row in batch(step)] == rows[: 6 * 10]


def test_a_position_after_the_last_row_of_a_segment_is_the_first_of_the_next() -> None:
    plan = Plan([[40]], [Phase(0, (1.0,))], lanes=1, segment_samples=20, seed=1)
    num_rows = len(plan.stream().segment(0).rows)
    assert plan.stream().step(Position(0, num_rows - 1)).after == Position(1, 0)


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, number: int) -> list[tuple[int, int]]:
        plan = Plan([[50] * 10], [Phase(0, (1.0,))], lanes=1, segment_samples=500, seed=seed)
        segment = plan.stream().segment(number)
        return [(place.shard, place.row) for place in segment.places.take([one for row in segment.rows for one in row])]

    orders = [order(seed, number) for seed in (0, 1) for number in (0, 1)]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            assert sum(mine == yours for mine, yours in zip(one, other, strict=True)) < 25
