"""Packed rows as padded images and captions, for models that treat the two apart. The prompt is dropped.

Shape legend: M samples, P patches of the largest image, N patches of the batch, T tokens of the longest text, L
labelled tokens, 3 position axes, C channels and p side of a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch import EncodedSample, PackedRows, pack_rows
from ..configuration_genlip import GenLIPConfig
from ..errors import ModelError
from ..modeling_genlip import ImagePatches, check_fit


@dataclass(frozen=True)
class ImageBatch:
    """The images of M samples.

    Attributes:
        patches_NCPP: one image after the other.
        positions_M3P: (time, height, width) of every patch, as GenLIP has them.
        num_patches_M: on the CPU, so that nothing waits for the device to know a shape.
        is_patch_MP: false at padding; None where all images have P patches.
        index_MP: where each patch is among the N; padding repeats the last.
    """

    patches_NCPP: Tensor
    positions_M3P: Tensor
    num_patches_M: Tensor
    is_patch_MP: Tensor | None
    index_MP: Tensor

    def pad(self, x_N: Tensor) -> Tensor:
        """Values of the N patches, [N, ...], image by image: [M, P, ...]."""
        # A view where that is enough: the gradient of an index is a slow sum.
        return torch.unflatten(x_N, 0, self.index_MP.shape) if self.is_patch_MP is None else x_N[self.index_MP]


@dataclass(frozen=True)
class TextBatch:
    """The captions of M samples with their endings.

    Attributes:
        ids_MT: padded with 0.
        num_ids_M: tokens of each, at least 1.
        sample_L: sample of every labelled token, in the order of `PackedRows.label_index_L`.
        place_L: its place in the caption.
    """

    ids_MT: Tensor
    num_ids_M: Tensor
    sample_L: Tensor
    place_L: Tensor


def unpack_images(rows: PackedRows, config: GenLIPConfig) -> ImageBatch:
    """The images of packed rows, in their order.

    Raises:
        ModelError: patches or ids do not fit the model.
    """
    check_fit(rows, config)
    device = rows.input_ids_BS.device
    num_patches_M = rows.segments_M4[:, 2]
    largest = int(num_patches_M.max()) if rows.num_samples else 1
    place_P = torch.arange(largest)
    first_M1 = (num_patches_M.cumsum(0) - num_patches_M).unsqueeze(1)
    index_MP = first_M1 + torch.minimum(place_P, num_patches_M.unsqueeze(1) - 1)
    is_patch_MP = place_P < num_patches_M.unsqueeze(1)
    positions_N3 = rows.position_ids_B3S.transpose(1, 2).flatten(0, 1)[rows.image_index_N]
    index_MP = index_MP.to(device, non_blocking=True)
    return ImageBatch(
        patches_NCPP=rows.patches_NCPP,
        positions_M3P=positions_N3[index_MP].transpose(1, 2),
        num_patches_M=num_patches_M,
        is_patch_MP=None if bool(is_patch_MP.all()) else is_patch_MP.to(device, non_blocking=True),
        index_MP=index_MP,
    )


def unpack_texts(rows: PackedRows) -> TextBatch:
    """The labelled tokens of packed rows, sample by sample.

    Every sample has at least its ending, and its labels are its last tokens: what `pack_rows` makes of captions.

    Raises:
        ModelError: a sample has no text at all.
    """
    device = rows.input_ids_BS.device
    row_M, start_M, num_patches_M, num_tokens_M = rows.segments_M4.unbind(1)
    # Text with its prompt: longer than the caption by a few tokens, but known on the CPU.
    num_text_M = num_tokens_M - num_patches_M
    if bool((num_text_M == 0).any()):
        raise ModelError("rows: a sample has no caption; this objective needs one, or at least its ending ids")
    longest = int(num_text_M.max()) if rows.num_samples else 1
    end_M = (row_M * rows.input_ids_BS.shape[1] + start_M + num_tokens_M).to(device, non_blocking=True)
    sample_L = torch.searchsorted(end_M, rows.label_index_L, right=True)
    num_ids_M = torch.zeros_like(end_M).index_add(0, sample_L, torch.ones_like(sample_L))
    place_L = rows.label_index_L - (end_M - num_ids_M)[sample_L]
    ids_MT = rows.input_ids_BS.new_zeros(rows.num_samples, longest)
    ids_MT[sample_L, place_L] = rows.input_ids_BS.flatten()[rows.label_index_L]
    return TextBatch(ids_MT, num_ids_M, sample_L, place_L)


def batch_images(images: Sequence[ImagePatches], config: GenLIPConfig, device: torch.device) -> ImageBatch:
    """Images as `ImageProcessor.patches` returns them, at least one.

    Raises:
        ModelError: the patches do not fit the model, or each other.
    """
    samples = [EncodedSample(patches, grid, prompt_ids=(), caption_ids=()) for patches, grid in images]
    rows = pack_rows([samples], sum(sample.num_tokens for sample in samples))
    return unpack_images(rows.to(device), config)
