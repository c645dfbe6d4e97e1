"""Memory for the patches of micro-batches that is used again and again: fresh pages cost more than what is written."""

import weakref

import numpy as np
import torch
from numpy.typing import NDArray


class PatchBuffers:
    """Buffers of one size. One that no tensor refers to any more is handed out again, so none is ever overwritten.

    They are ordinary memory, from which CUDA copies before `Tensor.to` returns; from pinned memory it would go on
    copying while the buffer is filled again.
    """

    def __init__(self, num_patches: int, patch_px: int) -> None:
        """Args:
        num_patches: In each buffer.
        patch_px: Side of a patch.
        """
        self._shape = (num_patches, patch_px, patch_px, 3)
        self._free: list[NDArray[np.uint8]] = []

    def take(self) -> torch.Tensor:
        """A buffer, uint8 [num_patches, p, p, 3], with whatever is in it."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(self._shape, np.uint8)
        handle = buffer[:]  # lives as long as the tensor's memory is in use, by whichever of its views
        weakref.finalize(handle, self._free.append, buffer).atexit = False
        return torch.from_numpy(handle)
