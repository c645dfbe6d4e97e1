"""How samples become rows: `[image x P] [prompt] [caption and ending]`, one sample after the other, padded at the end.

Shape legend: B rows, S tokens of a row, 3 position axes (time, height, width), N image tokens of the batch, L labelled
tokens, M samples, C channels of a patch, P its side in pixels.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import ModelError

NO_LABEL = -100
PADDING = -1

IntArray = npt.NDArray[np.int64]
Patches = npt.NDArray[np.uint8 | np.float32]


@dataclass(frozen=True)
class EncodedSample:
    """One image with its text as token ids.

    Attributes:
        patches: [P, C, p, p] in any memory order, row-major over the grid; uint8 pixels, or float32 if already
            normalised to [-1, 1].
        grid: (rows, columns) of patches.
        prompt_ids: seen by the model, no loss; may be empty.
        caption_ids: trained on; ends with the two ending ids (`tokenizer.ending_ids`), added by the caller. Without
            any the sample is seen but has no loss.

    Raises:
        ModelError: the patches do not fill the grid, are of another type or not finite. Ids are checked where they
            are used: negative ones by `pack_rows`, those outside the vocabulary by the model.
    """

    patches: Patches
    grid: tuple[int, int]
    prompt_ids: Sequence[int]
    caption_ids: Sequence[int]

    def __post_init__(self) -> None:
        num_patches = self.grid[0] * self.grid[1]
        if num_patches < 1 or self.patches.ndim != 4 or len(self.patches) != num_patches:
            raise ModelError(
                f"sample: grid {self.grid} needs patches of shape [{num_patches}, C, p, p] with at least one patch,"
                f" got {list(self.patches.shape)}; take both from ImageProcessor.patches"
            )
        if self.patches.dtype not in (np.uint8, np.float32):
            raise ModelError(f"sample: patches must be uint8 or normalised float32, got {self.patches.dtype}")
        if self.patches.dtype == np.float32 and not np.isfinite(self.patches).all():
            raise ModelError("sample: patches hold NaN or infinity; normalise pixels to [-1, 1], or pass uint8")

    @property
    def num_tokens(self) -> int:
        """Length of the sample in a row."""
        return len(self.patches) + len(self.prompt_ids) + len(self.caption_ids)


@dataclass(frozen=True)
class PackedRows:
    """A batch of packed rows. Padding: id 0, label -100, position -1, sample id -1.

    Attributes:
        input_ids_BS: token ids; 0 at image tokens.
        labels_BS: the token's own id where it is trained on, else -100 (the loss shifts by one).
        position_ids_B3S: (time, height, width), restarting for every sample.
        sample_ids_BS: 0, 1, 2, ... inside each row.
        image_mask_BS: true at image tokens.
        patches_NCPP: patches of all image tokens in row order; uint8, or float if already normalised.
        image_index_N: flat position (row * S + token) of every image token.
        label_index_L: flat position of every labelled token.
        segments_M4: one line (row, start, image tokens, tokens) per sample in row order. Always on the CPU, so that
            attention is planned without waiting for the device.
        max_token_id: largest id in input_ids_BS, checked against the model's vocabulary.
    """

    input_ids_BS: Tensor
    labels_BS: Tensor
    position_ids_B3S: Tensor
    sample_ids_BS: Tensor
    image_mask_BS: Tensor
    patches_NCPP: Tensor
    image_index_N: Tensor
    label_index_L: Tensor
    segments_M4: Tensor
    max_token_id: int

    @property
    def num_samples(self) -> int:
        """Samples in the batch."""
        return len(self.segments_M4)

    @property
    def num_labels(self) -> int:
        """Tokens with a loss."""
        return len(self.label_index_L)

    def to(self, device: torch.device | str) -> "PackedRows":
        """The same rows on another device; `segments_M4` stays on the CPU."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "segments_M4"
        }
        return replace(self, **moved)

    @classmethod
    def from_tensors(
        cls,
        input_ids_BS: Tensor,
        labels_BS: Tensor,
        position_ids_B3S: Tensor,
        sample_ids_BS: Tensor,
        image_mask_BS: Tensor,
        pixel_values: Tensor,
        patch_size: int,
    ) -> "PackedRows":
        """Builds rows from tensors in the official layout (CPU).

        Args:
            pixel_values: images [n, C, height, width] or patches [n, C, patch_size, patch_size], in row order.
            patch_size: side of a patch, in pixels.

        Raises:
            ModelError: the layout is not image tokens followed by text in every sample, counts disagree, an id is
                negative, a label differs from the id at its place, or pixels are no finite images.
        """
        patches_NCPP = _split_into_patches(pixel_values, patch_size)
        if len(patches_NCPP) != int(image_mask_BS.sum()):
            raise ModelError(f"rows: {int(image_mask_BS.sum())} image tokens but {len(patches_NCPP)} patches")
        is_wrong_BS = (labels_BS != NO_LABEL) & ((labels_BS != input_ids_BS) | image_mask_BS.bool())
        if is_wrong_BS.any():
            row, token = is_wrong_BS.nonzero()[0].tolist()
            raise ModelError(
                f"rows: the label {int(labels_BS[row, token])} at row {row}, token {token} must be {NO_LABEL} or the id"
                f" of a text token at the same place ({int(input_ids_BS[row, token])}); the loss shifts by one itself"
            )
        segments = _find_segments(sample_ids_BS.numpy(), image_mask_BS.numpy())
        for row, start, _, _ in segments:
            if labels_BS[row, start] != NO_LABEL:
                raise ModelError(f"rows: the first token of the sample at row {row}, token {start} has a label")
        return _with_indices(
            input_ids_BS=input_ids_BS.long(),
            labels_BS=labels_BS.long(),
            position_ids_B3S=position_ids_B3S.long(),
            sample_ids_BS=sample_ids_BS.long(),
            image_mask_BS=image_mask_BS.bool(),
            patches_NCPP=patches_NCPP,
            segments_M4=torch.from_numpy(segments),
        )


def pack_rows(
    rows: Sequence[Sequence[EncodedSample]], row_tokens: int, patches_NCPP: Tensor | None = None
) -> PackedRows:
    """Lays the samples of each row one after the other and pads every row to `row_tokens`.

    Positions inside a sample, as in the official code: the patch at row r, column c has (0, r, c); text token
    number k, prompt included, has p = max(grid) + k on all three axes.

    Args:
        rows: samples of each row.
        row_tokens: tokens in a row.
        patches_NCPP: the patches of all samples in row order, where they lie together already; else they are copied.

    Raises:
        ModelError: no rows, a row longer than `row_tokens`, a negative id, or samples whose patches differ in kind.
    """
    if not rows or row_tokens < 1:
        raise ModelError(
            f"pack_rows: {len(rows)} rows of {row_tokens} tokens; a batch needs at least one (possibly empty) row"
        )
    shape = (len(rows), row_tokens)
    input_ids = np.zeros(shape, np.int64)
    labels = np.full(shape, NO_LABEL, np.int64)
    position_ids = np.full((len(rows), 3, row_tokens), PADDING, np.int64)
    sample_ids = np.full(shape, PADDING, np.int64)
    image_mask = np.zeros(shape, np.bool_)
    segments: list[tuple[int, int, int, int]] = []
    for row, samples in enumerate(rows):
        _check_row_length(row, samples, row_tokens)
        start = 0
        for number, sample in enumerate(samples):
            text = start + len(sample.patches)
            caption = text + len(sample.prompt_ids)
            end = start + sample.num_tokens
            input_ids[row, text:caption] = sample.prompt_ids
            input_ids[row, caption:end] = sample.caption_ids
            labels[row, caption:end] = sample.caption_ids
            position_ids[row, :, start:text] = grid_positions(*sample.grid)
            position_ids[row, :, text:end] = max(sample.grid) + np.arange(end - text)
            sample_ids[row, start:end] = number
            image_mask[row, start:text] = True
            segments.append((row, start, text - start, end - start))
            start = end
    return _with_indices(
        input_ids_BS=torch.from_numpy(input_ids),
        labels_BS=torch.from_numpy(labels),
        position_ids_B3S=torch.from_numpy(position_ids),
        sample_ids_BS=torch.from_numpy(sample_ids),
        image_mask_BS=torch.from_numpy(image_mask),
        patches_NCPP=torch.from_numpy(_concatenate_patches(rows)) if patches_NCPP is None else patches_NCPP,
        segments_M4=torch.tensor(segments, dtype=torch.int64).reshape(-1, 4),
    )


@functools.lru_cache(maxsize=4096)
def grid_positions(num_grid_rows: int, num_grid_columns: int) -> IntArray:
    """(time, height, width) of every patch of a grid, row-major: [3, rows * columns]. Shared: do not write to it."""
    positions = np.zeros((3, num_grid_rows, num_grid_columns), np.int64)
    positions[1] = np.arange(num_grid_rows)[:, None]
    positions[2] = np.arange(num_grid_columns)
    positions.setflags(write=False)
    return positions.reshape(3, -1)


def _check_row_length(row: int, samples: Sequence[EncodedSample], row_tokens: int) -> None:
    num_tokens = sum(sample.num_tokens for sample in samples)
    if num_tokens > row_tokens:
        raise ModelError(
            f"pack_rows: row {row} has {num_tokens} tokens in {len(samples)} samples but only {row_tokens} fit;"
            " put fewer samples in the row, shorten captions, or raise row_tokens"
        )


def _concatenate_patches(rows: Sequence[Sequence[EncodedSample]]) -> Patches:
    patches = [sample.patches for samples in rows for sample in samples]
    if not patches:
        return np.zeros((0, 3, 1, 1), np.uint8)
    kinds = {(array.dtype.name, array.shape[1:]) for array in patches}
    if len(kinds) > 1:
        raise ModelError(f"pack_rows: samples of one batch must share patch type and shape, got {sorted(kinds)}")
    return np.concatenate(patches)


def _split_into_patches(pixel_values: Tensor, patch_size: int) -> Tensor:
    if pixel_values.dim() != 4:
        shape = list(pixel_values.shape)
        raise ModelError(f"rows: pixel values must be [images or patches, C, height, width], got {shape}")
    if pixel_values.is_floating_point() and not pixel_values.isfinite().all():
        raise ModelError("rows: pixel values hold NaN or infinity; normalise pixels to [-1, 1], or pass uint8")
    num_channels, height, width = pixel_values.shape[1:]
    if height % patch_size or width % patch_size:
        raise ModelError(f"rows: pixel values of {height}x{width} do not split into patches of {patch_size} pixels")
    p = patch_size
    tiles = pixel_values.reshape(-1, num_channels, height // p, p, width // p, p)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, num_channels, patch_size, patch_size)


def _find_segments(sample_ids_BS: IntArray, image_mask_BS: npt.NDArray[np.bool_]) -> IntArray:
    segments: list[tuple[int, int, int, int]] = []
    for row, (ids, is_image) in enumerate(zip(sample_ids_BS, image_mask_BS, strict=True)):
        num_real = int((ids != PADDING).sum())
        starts = np.flatnonzero(np.diff(ids[:num_real], prepend=PADDING))
        if not np.array_equal(ids[starts], np.arange(len(starts))) or (ids[num_real:] != PADDING).any():
            raise ModelError(f"rows: sample ids of row {row} must count 0, 1, 2, ... and end in padding of -1")
        for start, end in itertools.pairwise([*starts, num_real]):
            num_image_tokens = int(is_image[start:end].sum())
            if not is_image[start : start + num_image_tokens].all():
                raise ModelError(f"rows: in row {row}, token {start}: the image tokens must come before the text")
            segments.append((row, int(start), num_image_tokens, int(end - start)))
    return np.array(segments, np.int64).reshape(-1, 4)


def _with_indices(
    input_ids_BS: Tensor,
    labels_BS: Tensor,
    position_ids_B3S: Tensor,
    sample_ids_BS: Tensor,
    image_mask_BS: Tensor,
    patches_NCPP: Tensor,
    segments_M4: Tensor,
) -> PackedRows:
    """Adds the flat indices, found here on the CPU because finding them on a GPU would make it wait."""
    min_token_id, max_token_id = (int(value) for value in input_ids_BS.aminmax())
    if min_token_id < 0:
        raise ModelError(f"rows: token id {min_token_id} is negative; image tokens and padding have id 0")
    return PackedRows(
        input_ids_BS=input_ids_BS,
        labels_BS=labels_BS,
        position_ids_B3S=position_ids_B3S,
        sample_ids_BS=sample_ids_BS,
        image_mask_BS=image_mask_BS,
        patches_NCPP=patches_NCPP,
        image_index_N=image_mask_BS.flatten().nonzero().flatten(),
        label_index_L=(labels_BS != NO_LABEL).flatten().nonzero().flatten(),
        segments_M4=segments_M4,
        max_token_id=max_token_id,
    )
