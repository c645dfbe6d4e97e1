"""Tensors in safetensors files, with the checksum taken while they are written and checked while they are read."""

import hashlib
import json
import struct
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.store import Store
from train.checkpoints.record import Damaged, FileFacts


def write_tensors(store: Store, name: str, tensors: Mapping[str, Tensor]) -> FileFacts:
    """Write fp32 tensors of the host as one safetensors file.

    The format is 8 bytes with the header's length, the header as JSON, then the numbers
    (https://huggingface.co/docs/safetensors). Written here and not by the library, which would hold the file in
    memory a second time and other threads up meanwhile.

    Raises:
        UserError: It cannot be written; nothing is left of it.
    """
    header, size = {}, 0
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"{key} is {tensor.dtype}")
        offsets = [size, size + tensor.nbytes]
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        size += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), size + 8 + len(text)
    parts: list[bytes | memoryview] = [struct.pack("<Q", len(text)), text, *map(_bytes, tensors.values())]
    with store.writing(name) as stream:
        for part in parts:
            stream.write(part)
            digest.update(part)
    return FileFacts(size=size, sha256=digest.hexdigest())


def read_verified(store: Store, name: str, facts: FileFacts) -> bytes:
    """A file's content.

    Raises:
        Damaged: It is missing, cannot be read, or is not what was written.
        StoreError: The store fails, which says nothing of the file.
    """
    try:
        body = store.read(name)
    except StoreError:
        raise
    except OSError as error:
        raise Damaged(f"{name} cannot be read: {error}") from error
    if len(body) != facts.size:
        raise Damaged(f"{name} has {len(body):,} bytes instead of {facts.size:,}")
    if hashlib.sha256(body).hexdigest() != facts.sha256:
        raise Damaged(f"{name} does not fit its checksum")
    return body


def read_tensors(store: Store, name: str, facts: FileFacts) -> dict[str, Tensor]:
    """The tensors of a file. Raises as `read_verified`."""
    try:
        return load(read_verified(store, name, facts))
    except SafetensorError as error:
        raise Damaged(f"{name} is no safetensors file: {error}") from error


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
