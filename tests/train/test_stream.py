"""The stream is a pure function of its inputs; every epoch is complete, and resuming is being at a position."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.stream import Position, Stream

ROW = 64


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    lengths = draw(st.lists(st.integers(1, ROW), min_size=1, max_size=120))
    return Stream(np.array(lengths, np.int32), ROW, draw(st.integers(1, 6)), draw(st.integers(0, 2**31)))


def samples_of(stream: Stream, epoch: int) -> list[int]:
    steps = (stream.step_rows(Position(epoch, step)) for step in range(stream.num_steps(epoch)))
    return [sample for rows in steps for row in rows for sample in row]


@given(streams(), st.integers(0, 5))
@settings(deadline=None)
def test_an_epoch_has_every_sample_once(stream: Stream, epoch: int) -> None:
    assert Counter(samples_of(stream, epoch)) == Counter(range(len(stream.tokens_N)))


@given(streams(), st.integers(0, 5), st.data())
@settings(deadline=None)
def test_a_step_has_a_row_for_every_lane_and_does_not_depend_on_the_past(
    stream: Stream, epoch: int, data: st.DataObject
) -> None:
    at = Position(epoch, data.draw(st.integers(0, stream.num_steps(epoch) - 1)))
    fresh = Stream(stream.tokens_N, ROW, stream.lanes, stream.seed)
    assert fresh.step_rows(at) == stream.step_rows(at)
    assert len(stream.step_rows(at)) == stream.lanes


@given(streams())
@settings(deadline=None)
def test_positions_walk_through_the_epochs_without_a_gap(stream: Stream) -> None:
    at, walked = Position(), []
    while at.epoch < 2:
        walked += [sample for row in stream.step_rows(at) for sample in row]
        at = stream.after(at)
    assert walked == samples_of(stream, 0) + samples_of(stream, 1)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths = np.full(500, 5, np.int32)
    orders = [samples_of(Stream(lengths, ROW, 4, seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert np.mean(np.array(order) == np.array(other)) < 0.05


def test_fill_is_the_share_of_row_space_with_tokens() -> None:
    stream = Stream(np.array([32, 32, 16], np.int32), ROW, 1, seed=0)
    assert stream.fill(0) == 80 / 128
