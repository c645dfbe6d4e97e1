"""Connected components of a graph that no machine holds: alternating large-star and small-star steps.

Each step sends every edge to a part by one of its nodes, and there moves the node's neighbours to the smallest of them;
after some log² steps each component is a star around its smallest member (Kiveris, Lattanzi, Mirrokni, Rastogi,
Vassilvitskii: Connected components in MapReduce and beyond, 2014). A part holds the edges of its nodes, so the largest
component has to fit into memory; the driver holds counts.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.curate.draws import finalise
from pipeline.each import Each
from pipeline.exchange import Exchange
from pipeline.store import Store

Nodes = NDArray[np.uint64]
Star = Callable[[Nodes, Nodes], tuple[Nodes, Nodes, int]]


def part_of(node_N: Nodes, num_parts: int) -> NDArray[np.int64]:
    """The part of each node, in [0, num_parts): evenly, whatever the nodes."""
    return (finalise(node_N.astype(np.uint64, copy=False)) % np.uint64(num_parts)).astype(np.int64)


def once(store: Store, name: str, compute: Callable[[], dict[str, int]]) -> dict[str, int]:
    """The counts of a step, which is done unless a run before this one has written them down."""
    if store.exists(name):
        counts: dict[str, int] = store.read_json(name)
        return counts
    counts = compute()
    store.write_json(name, counts)
    return counts


def total(counts: list[dict[str, int]]) -> dict[str, int]:
    """Counts summed by name."""
    return {name: sum(one[name] for one in counts) for name in counts[0]}


def stars(a_E: Nodes, b_E: Nodes) -> tuple[Nodes, Nodes]:
    """The components of edges in memory, as edges from each node to its component's smallest.

    Returns:
        node_V, sorted, and smallest_V; the smallest themselves are left out.
    """
    node_V, end_2E = np.unique(np.concatenate([a_E, b_E]), return_inverse=True)
    a, b = end_2E[: len(a_E)], end_2E[len(a_E) :]
    label = np.arange(len(node_V))
    while True:
        low, high = np.minimum(label[a], label[b]), np.maximum(label[a], label[b])
        if np.array_equal(low, high):
            break
        np.minimum.at(label, high, low)
        while not np.array_equal(label, label[label]):
            label = label[label]
    moved = label != np.arange(len(label))
    return node_V[moved], node_V[label[moved]]


def send_edges(edges: Exchange, writer: str, a_E: Nodes, b_E: Nodes) -> None:
    """Send edges to the parts of both of their nodes."""
    _send(edges, writer, np.concatenate([a_E, b_E]), np.concatenate([b_E, a_E]))


def components(edges: Exchange, folder: str, each: Each) -> Exchange:
    """Bring edges into the form of stars.

    Args:
        edges: all edges, sent by `send_edges`.
        folder: for the steps, in the same store; finished ones are not done again.
        each: runs the parts.

    Returns:
        The stars, of which `labels_of` reads the labels.
    """
    for number in itertools.count():
        halfway = replace(edges, folder=f"{folder}/{number:03d}-large")
        rounded = replace(edges, folder=f"{folder}/{number:03d}-small")
        moved = _step(edges, halfway, _large_star, each) + _step(halfway, rounded, _small_star, each)
        edges = rounded
        if not moved:
            break
    return edges


def labels_of(stars: Exchange, part: int) -> tuple[Nodes, Nodes]:
    """A part's nodes, sorted, and the smallest member of each one's component: [V], [V]."""
    node_E, other_E = _receive(stars, part)
    start_V = _starts(node_E)
    node_V = node_E[start_V]
    return node_V, np.minimum(node_V, other_E[start_V])


def _step(source: Exchange, target: Exchange, star: Star, each: Each) -> int:
    """One step on all parts. Returns how many edges it moved."""
    step = partial(_step_part, source=source, target=target, star=star)
    return sum(counts["moved"] for _, counts in each(step, range(source.num_parts)))


def _step_part(part: int, source: Exchange, target: Exchange, star: Star) -> dict[str, int]:
    writer = f"part-{part:06d}"

    def compute() -> dict[str, int]:
        node_E, smaller_E, num_moved = star(*_receive(source, part))
        if star is _large_star:
            _send(target, writer, node_E, smaller_E)
        else:
            send_edges(target, writer, node_E, smaller_E)
        return {"moved": num_moved}

    return once(source.store, f"{target.folder}/{writer}.json", compute)


def _large_star(node_E: Nodes, other_E: Nodes) -> tuple[Nodes, Nodes, int]:
    """Each node's larger neighbours become those of the smallest among it and all of its neighbours."""
    smallest_E = _smallest(node_E, other_E)
    larger = other_E > node_E
    num_moved = int(np.count_nonzero(larger & (smallest_E != node_E)))
    return other_E[larger], smallest_E[larger], num_moved


def _small_star(node_E: Nodes, other_E: Nodes) -> tuple[Nodes, Nodes, int]:
    """Each node and its smaller neighbours become neighbours of the smallest of them. All the others are smaller."""
    smallest_E = _smallest(node_E, other_E)
    moved = other_E != smallest_E
    first = _starts(node_E)
    return (
        np.concatenate([node_E[first], other_E[moved]]),
        np.concatenate([smallest_E[first], smallest_E[moved]]),
        int(np.count_nonzero(moved)),
    )


def _smallest(node_E: Nodes, other_E: Nodes) -> Nodes:
    """The smallest among an edge's node and this node's neighbours, of sorted edges."""
    start_V = _starts(node_E)
    smallest_V = np.minimum(node_E[start_V], other_E[start_V])
    return np.repeat(smallest_V, np.diff(np.r_[start_V, len(node_E)]))


def _starts(node_E: Nodes) -> NDArray[np.int64]:
    """Where each node's edges start, of sorted edges."""
    return np.flatnonzero(np.r_[True, node_E[1:] != node_E[:-1]][: len(node_E)])


def _send(edges: Exchange, writer: str, node_E: Nodes, other_E: Nodes) -> None:
    rows = pa.table({"node": node_E, "other": other_E})
    edges.send(writer, rows, part_of(node_E, edges.num_parts))


def _receive(edges: Exchange, part: int) -> tuple[Nodes, Nodes]:
    """A part's edges, sorted by node and then by the other one, each once."""
    rows = edges.receive(part)
    node_E, other_E = _numbers(rows["node"]), _numbers(rows["other"])
    order = np.lexsort((other_E, node_E))
    node_E, other_E = node_E[order], other_E[order]
    new = np.r_[True, (node_E[1:] != node_E[:-1]) | (other_E[1:] != other_E[:-1])][: len(node_E)]
    return node_E[new], other_E[new]


def _numbers(column: Any) -> Nodes:
    numbers: Nodes = column.to_numpy()
    return numbers
