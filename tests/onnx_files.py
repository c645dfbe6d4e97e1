"""Small ONNX models written byte by byte, because the package onnx is no dependency of the tests.

The numbers are those of the fields in onnx.proto3 of the ONNX project, the encoding is that of protocol buffers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT, INT64 = 1, 7
_OPSET = 13


def onnx_model(
    nodes: Sequence[bytes], inputs: Sequence[bytes], output: bytes, weights: Mapping[str, NDArray[Any]]
) -> bytes:
    """A model file of one graph."""
    graph = b"".join(_bytes(1, one) for one in nodes) + _bytes(2, b"graph")
    graph += b"".join(_bytes(5, _tensor(name, values)) for name, values in weights.items())
    graph += b"".join(_bytes(11, one) for one in inputs) + _bytes(12, output)
    return _int(1, 8) + _bytes(7, graph) + _bytes(8, _int(2, _OPSET))


def node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    """One operation, its attributes left at their defaults."""
    names = b"".join(_bytes(1, name.encode()) for name in inputs)
    return names + _bytes(2, output.encode()) + _bytes(4, operator.encode())


def value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    """An input or output of the graph; dimensions that vary have a name."""
    dimensions = b"".join(_bytes(1, _bytes(2, d.encode()) if isinstance(d, str) else _int(1, d)) for d in shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _int(1, kind) + _bytes(2, dimensions)))


def _tensor(name: str, values: NDArray[Any]) -> bytes:
    kind = FLOAT if values.dtype == np.float32 else INT64
    dimensions = b"".join(_int(1, side) for side in values.shape)
    return dimensions + _int(2, kind) + _bytes(8, name.encode()) + _bytes(9, values.tobytes())


def _int(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _bytes(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
