"""The files: any tensors come back, other readers of safetensors can read them, and shares are even."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.store import Store
from train.checkpoints.staging import assign
from train.checkpoints.tensor_files import read_tensors, write_tensors

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5)


@settings(max_examples=50, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_tensors_come_back(shapes: list[list[int]], seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tensors")
    torch.manual_seed(seed)
    tensors = {f"kind/é.{number}": torch.randn(shape) for number, shape in enumerate(shapes)}
    store = Store(str(folder))
    facts = write_tensors(store, "some.safetensors", tensors)
    body = (folder / "some.safetensors").read_bytes()
    assert (facts.size, facts.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    for found in (read_tensors(store, "some.safetensors", facts), load_file(folder / "some.safetensors")):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_transposed_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    write_tensors(Store(str(tmp_path)), "t", {"a": tensor})
    assert torch.equal(load_file(tmp_path / "t")["a"], tensor)


@given(sizes=st.dictionaries(st.text(max_size=3), st.integers(0, 1_000), max_size=40), num_ranks=st.integers(1, 9))
def test_shares_are_even_and_do_not_depend_on_the_order(sizes: dict[str, int], num_ranks: int) -> None:
    ranks = assign(sizes, num_ranks)
    assert ranks == assign(dict(reversed(sizes.items())), num_ranks)
    loads = [sum(size for name, size in sizes.items() if ranks[name] == rank) for rank in range(num_ranks)]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)
