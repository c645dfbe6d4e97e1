"""Memory is used again when nothing refers to it any more, and not before."""

import gc

import torch

from train.data.buffers import PatchBuffers


def test_a_buffer_comes_back_when_the_last_of_its_views_is_gone() -> None:
    buffers = PatchBuffers(num_patches=10, patch_px=4)
    whole = buffers.take()
    assert whole.shape == (10, 4, 4, 3)
    address, view = whole.data_ptr(), whole[3:5].flatten()
    del whole
    gc.collect()
    other = buffers.take()
    assert other.data_ptr() != address
    del view
    assert buffers.take().data_ptr() == address


def test_what_autograd_keeps_is_not_overwritten() -> None:
    buffers = PatchBuffers(num_patches=1, patch_px=2)
    weight = torch.ones(12, requires_grad=True)
    patches = buffers.take().fill_(3)
    loss = (patches.flatten().view(torch.uint8).float() * weight).sum()
    del patches
    buffers.take().fill_(9)
    loss.backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((12,), 3.0))
