"""The parts' labels are the components that a union-find in memory has; a killed run goes on."""

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curate.components import components, labels_of, part_of, send_edges, stars
from pipeline.each import in_turn
from pipeline.exchange import Exchange
from pipeline.store import Store

NODES = st.one_of(st.integers(0, 12), st.integers(2**64 - 8, 2**64 - 1))
EDGES = st.lists(st.tuples(NODES, NODES).filter(lambda edge: edge[0] != edge[1]), max_size=30)


def _expected(edges: Iterable[tuple[int, int]]) -> dict[int, int]:
    label: dict[int, int] = {}
    for a, b in edges:
        low, high = sorted((label.setdefault(a, a), label.setdefault(b, b)))
        label = {node: low if of == high else of for node, of in label.items()}
    return label


def _sent(edges: list[tuple[int, int]], num_parts: int, num_writers: int = 2) -> Exchange:
    exchange = Exchange(Store(f"memory://{uuid.uuid4().hex}"), "scratch/pairs", num_parts)
    for number in range(num_writers):
        some = np.array(edges[number::num_writers], np.uint64).reshape(-1, 2)
        send_edges(exchange, f"w{number}", some[:, 0], some[:, 1])
    return exchange


def _labels(done: Exchange) -> dict[int, int]:
    labels: dict[int, int] = {}
    for part in range(done.num_parts):
        node_V, label_V = labels_of(done, part)
        assert (part_of(node_V, done.num_parts) == part).all()
        assert (np.diff(node_V.astype(object)) > 0).all()
        labels |= dict(zip(node_V.tolist(), label_V.tolist(), strict=True))
    return labels


@settings(deadline=None)
@given(EDGES, st.integers(1, 4))
def test_labels_are_the_smallest_members(edges: list[tuple[int, int]], num_parts: int) -> None:
    assert _labels(components(_sent(edges, num_parts), "scratch/steps", in_turn)) == _expected(edges)


@given(EDGES)
def test_stars_in_memory(edges: list[tuple[int, int]]) -> None:
    ends = np.array(edges, np.uint64).reshape(-1, 2)
    node_V, smallest_V = stars(ends[:, 0], ends[:, 1])
    expected = {node: label for node, label in _expected(edges).items() if node != label}
    assert dict(zip(node_V.tolist(), smallest_V.tolist(), strict=True)) == expected


def test_a_long_chain_takes_few_steps() -> None:
    chain = np.random.default_rng(0).permutation(2_000).tolist()
    edges = list(itertools.pairwise(chain))
    done = components(_sent(edges, 3), "scratch/steps", in_turn)
    assert set(_labels(done).values()) == {0}
    assert len(done.store._fs.ls(done.store.path("scratch/steps"))) < 2 * 15


def test_what_was_done_before_a_kill_is_not_done_again() -> None:
    edges = [(number, number + 7) for number in range(200)]
    exchange = _sent(edges, 3)
    calls: list[int] = []

    def dying(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for item in items:
            if len(calls) == 8:
                raise KeyboardInterrupt
            calls.append(item)
            yield item, function(item)

    with pytest.raises(KeyboardInterrupt):
        components(exchange, "scratch/steps", dying)
    written = exchange.store._fs.find(exchange.store.path("scratch/steps"))
    before = {path: exchange.store._fs.modified(path) for path in written}
    assert len(before) == 2 * 8
    assert _labels(components(exchange, "scratch/steps", in_turn)) == _expected(edges)
    assert {path: exchange.store._fs.modified(path) for path in written} == before


def test_parts_are_even_for_nodes_that_are_alike() -> None:
    node_N = np.arange(10_000, dtype=np.uint64) << np.uint64(40)
    counts = np.bincount(part_of(node_N, 8), minlength=8)
    assert counts.min() > 1_000
    assert counts.sum() == 10_000
