"""GenLIP for Hugging Face's Auto classes. The only file of this package that imports transformers at its top.

`save_model` copies this file and every file it imports into the model folder, where AutoModel finds them; so imports
of this package are relative and flat.

Shape legend: n images, N patches of all images, P patches of one image, C channels, p patch side in pixels, H and W
image sides in pixels, D hidden width, 3 (time, grid rows, grid columns).
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature, PretrainedConfig, PreTrainedModel, PreTrainedTokenizer
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import BaseModelOutput

from .batch import EncodedSample, pack_rows
from .configuration_genlip import MODEL_TYPE, GenLIPConfig
from .errors import ModelError
from .generation import generate_ids
from .layers import LayerScale
from .modeling_genlip import GenLIP
from .processing_genlip import ImageProcessor

Picture = Image.Image | npt.NDArray[np.uint8]


class GenLIPModelConfig(PretrainedConfig):  # type: ignore[misc]
    """The keys of config.json as attributes; `GenLIPConfig.from_dict` gives them their meaning."""

    model_type = MODEL_TYPE
    # Tells transformers 5 that it may move rope_scaling and rope_theta in here.
    rope_parameters = None

    def _validate_mrope_rope_parameters(self, *_args: Any, **_kwargs: Any) -> None:
        """transformers 5 warns about kinds of rotary positions without a check; `GenLIPConfig` does the checking."""


class GenLIPModel(PreTrainedModel):  # type: ignore[misc]
    """A vision encoder with the official parameter names.

    Attributes:
        genlip: the same network as the genlip package has it, with packed loss and logits.
    """

    genlip: GenLIP
    config_class = GenLIPModelConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True

    def __init__(self, config: GenLIPModelConfig) -> None:
        super().__init__(config)
        network = GenLIP(GenLIPConfig.from_dict(config.to_dict()))
        # Both have the same parts, here under names without a prefix; a part replaced in one is replaced in both.
        self._modules = network._modules
        self.__dict__["genlip"] = network
        if not network.ln_post.weight.is_meta:
            # GenLIP has drawn its parameters itself; transformers must not draw them again.
            for module in self.modules():
                module._is_hf_initialized = True
        self.post_init()

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor | None = None) -> BaseModelOutput:
        """Vision features: the output of `ln_post`. Gradients flow to parameters and pixels.

        Args:
            pixel_values: with `image_grid_thw` the patches of all images, [N, C, p, p]; without it images of one size,
                [n, C, H, W]. Normalised to [-1, 1], or uint8.
            image_grid_thw: (1, grid rows, grid columns) of every image, [n, 3].

        Returns:
            `last_hidden_state`: [N, D] with `image_grid_thw`, else [n, P, D].

        Raises:
            ModelError: grids and patches disagree, or image sides are not whole patches.
        """
        if image_grid_thw is not None:
            return BaseModelOutput(last_hidden_state=self._encode(pixel_values, _grids(image_grid_thw, pixel_values)))
        patches_NCPP, grid = self._cut(pixel_values)
        features_ND = self._encode(patches_NCPP, [grid] * len(pixel_values))
        return BaseModelOutput(last_hidden_state=torch.unflatten(features_ND, 0, (len(pixel_values), -1)))

    def encode_image(self, patches: npt.NDArray[np.uint8 | np.float32], grid: tuple[int, int]) -> Tensor:
        """Features [P, D] of one image, from what `ImageProcessor.patches` returns."""
        return self.genlip.encode_image(patches, grid)

    def generate_ids(
        self,
        pixel_values: Tensor,
        image_grid_thw: Tensor,
        max_new_tokens: int = 64,
        prompt_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Greedy captions as token ids, one list per image; decode them with the folder's tokenizer.

        Args:
            pixel_values: [N, C, p, p], as in `forward`.
            image_grid_thw: [n, 3], as in `forward`.
            max_new_tokens: a caption that has not ended by then is cut.
            prompt_ids: another prompt than the one the model was saved with.
        """
        grids = _grids(image_grid_thw, pixel_values)
        pixels = pixel_values if pixel_values.dtype == torch.uint8 else pixel_values.float()
        patches = torch.split(pixels.cpu(), [rows * columns for rows, columns in grids])
        images = [(part.numpy(), grid) for part, grid in zip(patches, grids, strict=True)]
        prompt_ids = self.config.prompt_ids if prompt_ids is None else prompt_ids
        return generate_ids(self.genlip, images, prompt_ids, self.config.ending_ids[0], max_new_tokens)

    def train(self, mode: bool = True) -> "GenLIPModel":
        """As in torch; `genlip` is no part of this module, so it is told."""
        super().train(mode)
        self.genlip.training = mode
        return self

    @property
    def gradient_checkpointing(self) -> bool:
        """What `gradient_checkpointing_enable` of transformers sets."""
        return self.genlip.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.genlip.gradient_checkpointing = value

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.genlip.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token table."""
        self.genlip.embeddings = value

    def _init_weights(self, module: nn.Module) -> None:
        """Only for what a checkpoint lacks; transformers warns about it."""
        super()._init_weights(module)
        if isinstance(module, LayerScale):
            nn.init.constant_(module.lambda1, self.genlip.config.ls_init_value)

    def _cut(self, images_nCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        p = self.genlip.config.patch_size
        if images_nCHW.dim() != 4 or any(side % p for side in images_nCHW.shape[2:]):
            raise ModelError(
                f"pixel_values of shape {list(images_nCHW.shape)} are no images of whole {p}x{p} patches; resize them,"
                " or pass patches with image_grid_thw as the folder's image processor returns them"
            )
        tiles = images_nCHW.unfold(2, p, p).unfold(3, p, p)
        return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2), (tiles.shape[2], tiles.shape[3])

    def _encode(self, patches_NCPP: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """[N, D]. The layout is made with empty patches, so that pixels never leave their device."""
        shape = patches_NCPP.shape[1:]
        empty = [np.broadcast_to(np.uint8(0), (rows * columns, *shape)) for rows, columns in grids]
        samples = [EncodedSample(pixels, grid, (), ()) for pixels, grid in zip(empty, grids, strict=True)]
        rows = pack_rows([samples], len(patches_NCPP)).to(self.device)
        return self.genlip.hidden_BSD(replace(rows, patches_NCPP=patches_NCPP.to(self.device)))[0]


class GenLIPImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """`ImageProcessor` for AutoImageProcessor; its attributes are the keys of preprocessor_config.json."""

    model_input_names = ["pixel_values", "image_grid_thw"]

    def preprocess(self, images: Picture | Iterable[Picture], return_tensors: str = "pt") -> BatchFeature:
        """Patches of all images: `pixel_values` [N, C, p, p] in [-1, 1] and `image_grid_thw` [n, 3].

        Args:
            images: one or several PIL images, or uint8 arrays [height, width, 3].
            return_tensors: "pt" or "np".
        """
        processor = ImageProcessor.from_dict(vars(self))
        pictures = [images] if isinstance(images, Image.Image | np.ndarray) else images
        cut = [processor.patches(picture) for picture in pictures]
        if not cut:
            raise ModelError("image processor: no images; pass at least one")
        pixels = np.concatenate([patches for patches, _ in cut]).astype(np.float32)
        data = {
            "pixel_values": (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5),
            "image_grid_thw": np.array([(1, *grid) for _, grid in cut]),
        }
        return BatchFeature(data, tensor_type=return_tensors)


class GenLIPTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """`SentencePieceTokenizer` for AutoTokenizer: the same ids."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        self._processor = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        size: int = self._processor.get_piece_size()
        return size

    def get_vocab(self) -> dict[str, int]:
        """Id of every piece."""
        return {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces."""
        text: str = self._processor.decode_pieces(tokens)
        return text

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Writes tokenizer.model."""
        target = Path(save_directory) / "-".join(filter(None, [filename_prefix, "tokenizer.model"]))
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def _tokenize(self, text: str, **_kwargs: Any) -> list[str]:
        pieces: list[str] = self._processor.encode(text.strip(), out_type=str)
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        index: int = self._processor.piece_to_id(token)
        return index

    def _convert_id_to_token(self, index: int) -> str:
        # The model may have more ids than the tokenizer.
        piece: str = self._processor.id_to_piece(index) if index < self.vocab_size else ""
        return piece


def _grids(image_grid_thw: Tensor, pixel_values: Tensor) -> list[tuple[int, int]]:
    lines = image_grid_thw.tolist()
    if any(len(line) != 3 or line[0] != 1 or min(line) < 1 for line in lines):
        raise ModelError(f"image_grid_thw must hold (1, grid rows, grid columns) of every image, got {lines}")
    grids = [(line[1], line[2]) for line in lines]
    num_patches = sum(rows * columns for rows, columns in grids)
    if num_patches != len(pixel_values):
        raise ModelError(
            f"image_grid_thw {lines} means {num_patches} patches but pixel_values hold {len(pixel_values)}"
        )
    return grids
