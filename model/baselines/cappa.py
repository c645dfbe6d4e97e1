"""Cap and CapPa: captions by a decoder that attends to the patches (Tschannen et al. 2023,
https://arxiv.org/abs/2306.07915).

Shape legend: M samples, P patches of the largest image, T tokens of the longest caption, L labelled tokens, D hidden
width, G images with equal numbers of patches, n candidates, E and S tokens of a tree of candidates (see `text_tree.py`;
S are the begin token and the inner ones).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..batch import PackedRows
from ..cache import check_ids, group_by, inference
from ..configuration_genlip import GenLIPConfig
from ..errors import ModelError
from ..loss import cross_entropy, token_log_probs
from ..modeling_genlip import ImagePatches, LossOutput
from ..scoring import TREE_TOKENS
from ..text_tree import TextTree, plan_trees
from .baseline import Baseline
from .caption_decoder import CaptionDecoder
from .parts import key_mask
from .unpack import TextBatch, unpack_images, unpack_texts


class CapPa(Baseline):
    """The captioner.

    In training a share of the samples is predicted in parallel: the decoder is given mask tokens alone and looks both
    ways, so that everything must come from the image. In evaluation none is.
    """

    objective = "cappa"
    loss_per = "label"
    needs_whole_batch = False

    def __init__(self, config: GenLIPConfig, parallel: float) -> None:
        super().__init__(config)
        self.parallel = parallel
        self.decoder = CaptionDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def options(self) -> dict[str, float]:
        """The share of samples predicted in parallel."""
        return {"parallel": self.parallel}

    def forward(self, rows: PackedRows) -> LossOutput:
        """See `Baseline`: cross entropy of the caption's tokens and its ending."""
        images, texts = unpack_images(rows, self.config), unpack_texts(rows)
        is_parallel_M = torch.rand(rows.num_samples, device=self.device) < (self.parallel if self.training else 0.0)
        hidden_MTD = self.decoder(
            ids_MT=texts.ids_MT[:, :-1],
            place_T=torch.arange(texts.ids_MT.shape[1], device=self.device),
            sees=_sees(texts, is_parallel_M),
            z_MPD=self.encode(images),
            sees_patch=key_mask(images.is_patch_MP),
            is_parallel_M=is_parallel_M,
            recompute=self.recompute_now,
        )
        targets_L = texts.ids_MT[texts.sample_L, texts.place_L]
        hidden_LD = hidden_MTD[texts.sample_L, texts.place_L]
        losses_L = cross_entropy(hidden_LD, targets_L, self.lm_head, self.config.vocab_size)
        num_labels = torch.tensor(rows.num_labels, device=losses_L.device)
        return LossOutput(losses_L.sum(), num_labels, losses_L.detach())

    def score_captions(
        self, images: Sequence[ImagePatches], candidates: Sequence[Sequence[int]], max_tokens: int = 16384
    ) -> Tensor:
        """Summed log P(candidate tokens | image), float32 [images, candidates] on the CPU.

        Every image is encoded once, and every beginning that candidates share is run once for it.

        Args:
            images: (patches, grid) pairs from ImageProcessor.patches.
            candidates: token ids of every caption; whether they contain the ending is the caller's choice.
            max_tokens: bounds memory: patches and candidate tokens held at a time. A single image may exceed it.

        Raises:
            ModelError: an empty candidate, or ids that the model does not have.
        """
        for number, candidate in enumerate(candidates):
            if not len(candidate):
                raise ModelError(f"candidate {number} has no tokens; add the ending ids or drop it")
            check_ids(f"candidate {number}", candidate, self.config.vocab_size)
        trees = plan_trees(candidates, TREE_TOKENS)
        largest = max((tree.num_inner for tree in trees), default=0)
        scores = torch.empty(len(images), len(candidates))
        with inference(self):
            for batch, z_GPD in self._encode_alike(images, max_tokens, 1 + largest):
                for tree in trees:
                    # In float64 on the CPU, because float32 products may be rounded (TF32, autocast).
                    log_probs_GE = self._score_tokens(z_GPD, tree).cpu().double()
                    scores[torch.tensor(batch)[:, None], tree.texts] = (
                        log_probs_GE @ tree.is_part_nE.T.double()
                    ).float()
        return scores

    def generate_ids(
        self, images: Sequence[ImagePatches], ending_ids: Sequence[int], max_new_tokens: int = 64
    ) -> list[list[int]]:
        """Greedy captions: token ids per image, up to the first of `ending_ids` and without it.

        Raises:
            ModelError: `max_new_tokens` is below 1.
        """
        if max_new_tokens < 1:
            raise ModelError(f"max_new_tokens ({max_new_tokens}) must be at least 1")
        generated: list[list[int]] = [[] for _ in images]
        with inference(self):
            for batch, z_GPD in self._encode_alike(images, 16384, max_new_tokens):
                for index, ids in zip(batch, self._decode_greedily(z_GPD, ending_ids[0], max_new_tokens), strict=True):
                    generated[index] = ids[: ids.index(ending_ids[0])] if ending_ids[0] in ids else ids
        return generated

    def _encode_alike(
        self, images: Sequence[ImagePatches], max_tokens: int, num_others: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Numbers and features [G, P, D] of images with equally many patches, as many as fit beside the text."""
        for group in group_by([len(patches) for patches, _ in images]):
            batch_size = max(1, max_tokens // (len(images[group[0]][0]) + num_others))
            for begin in range(0, len(group), batch_size):
                batch = group[begin : begin + batch_size]
                yield batch, torch.stack(self.encode_images([images[i] for i in batch]))

    def _score_tokens(self, z_GPD: Tensor, tree: TextTree) -> Tensor:
        """log P of every token of the tree, [G, E]."""
        device, num_images = self.device, len(z_GPD)
        sees_SS = torch.ones(1 + tree.num_inner, 1 + tree.num_inner, dtype=torch.bool).tril()
        sees_SS[1:, 1:] = tree.sees_MM
        place_S = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + tree.inner_depth_M]).to(device)
        ids_GM = tree.inner_ids_M.to(device).expand(num_images, -1)
        hidden_GSD = self.decoder(ids_GM, place_S, sees_SS.to(device), z_GPD, None)
        sources = hidden_GSD[:, tree.source_E.to(device)].flatten(0, 1)
        targets = tree.token_ids_E.to(device).repeat(num_images)
        return token_log_probs(sources, targets, self.lm_head, self.config.vocab_size).view(num_images, -1)

    def _decode_greedily(self, z_GPD: Tensor, stop_id: int, max_new_tokens: int) -> list[list[int]]:
        """Runs the whole caption for every new token: captions are short, and the image is not run again."""
        ids_GT = torch.zeros(len(z_GPD), 0, dtype=torch.int64, device=self.device)
        while ids_GT.shape[1] < max_new_tokens and not bool((ids_GT == stop_id).any(dim=1).all()):
            place_T = torch.arange(1 + ids_GT.shape[1], device=self.device)
            hidden_GTD = self.decoder(ids_GT, place_T, place_T <= place_T.unsqueeze(1), z_GPD, None)
            next_G = self.lm_head(hidden_GTD[:, -1]).argmax(dim=-1)
            ids_GT = torch.cat([ids_GT, next_G.unsqueeze(1)], dim=1)
        token_ids: list[list[int]] = ids_GT.tolist()
        return token_ids


def _sees(texts: TextBatch, is_parallel_M: Tensor) -> Tensor:
    """What a place sees: itself and those before it; if its sample is predicted in parallel all others too."""
    place_T = torch.arange(texts.ids_MT.shape[1], device=texts.ids_MT.device)
    is_token_MT = place_T < texts.num_ids_M.unsqueeze(1)
    sees_MTT = (place_T <= place_T.unsqueeze(1)) | (is_parallel_M.unsqueeze(1) & is_token_MT).unsqueeze(1)
    return sees_MTT.unsqueeze(1)
