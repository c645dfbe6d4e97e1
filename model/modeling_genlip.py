"""GenLIP: one Transformer over image patches followed by caption tokens.

Shape legend: B rows, S tokens of a row, N = B * S flat tokens, D hidden width, t text width, V vocabulary entries,
K channels of a head, L labelled tokens, P image tokens of one image, C channels and p side of a patch.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import BackendChoice, choose_backend, plan_attention, prefix_attention
from .batch import EncodedSample, PackedRows, Patches, pack_rows
from .checkpointing import checkpoint_contexts
from .configuration_genlip import GenLIPConfig
from .errors import ModelError
from .layers import Attend, Block, FeedForward, LayerScale, PatchEmbedding, SelfAttention, VisionEmbeddings
from .loss import cross_entropy
from .rope import rope_cos_sin

# Patches [P, C, p, p] and their grid (rows, columns), as ImageProcessor.patches returns them.
ImagePatches = tuple[Patches, tuple[int, int]]
# Block, x, cos, sin, attend, drop group to the block's output.
RunBlock = Callable[[nn.Module, Tensor, Tensor, Tensor, Attend, Tensor | None], Tensor]


class LossOutput(NamedTuple):
    """The loss of packed rows: of GenLIP, the cross entropies of the L labelled tokens."""

    loss_sum: Tensor
    """float32 scalar."""
    num_labels: Tensor
    """int64 scalar."""
    token_losses_L: Tensor | None
    """The summands, at the positions `rows.label_index_L`; float32, without gradient, for the log. None where the loss
    is not one of tokens."""


class BlockStack(nn.Module):
    """Holder of the blocks, for their official names."""

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))


class GenLIP(nn.Module):
    """The model. Fresh parameters follow the official initialisation with seed 0; see `init_weights`.

    Attributes:
        gradient_checkpointing: recompute every block in the backward pass instead of keeping its activations.
        recompute: what that means: "all" of a block, or what is "cheap", keeping matrix products and attention.
        drop_path_per: "sample" drops branches per sample; "row" per packed row, as the official code does.
        attention: back end of packed rows. "auto" is variable-length flash attention on CUDA in bfloat16 or float16
            and "sdpa" elsewhere; "varlen", "flex" and "sdpa" ask for one.
        objective: what the model is trained for; see `model.baselines` for the others.
        loss_per: the loss sum of the global batch is divided by its number of labels or of samples.
        needs_whole_batch: whether the loss of a sample depends on the other samples of the batch.
    """

    objective: ClassVar = "genlip"
    loss_per: ClassVar[Literal["label", "sample"]] = "label"
    needs_whole_batch: ClassVar = False

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.recompute: Literal["all", "cheap"] = "all"
        self.drop_path_per: Literal["sample", "row"] = "sample"
        self.attention: BackendChoice = "auto"
        self._run_training_block: RunBlock = _run_block
        d, t = config.hidden_size, config.text_embed_dim
        self.vision_embeddings = VisionEmbeddings(config)
        self.visual = BlockStack(config)
        self.ln_post = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.embeddings = nn.Embedding(config.vocab_size, t)
        self.in_proj = nn.Identity() if t == d else nn.Linear(t, d)
        self.proj = nn.Identity() if t == d else nn.Linear(d, t)
        self.lm_head = nn.Linear(t, config.vocab_size, bias=False)
        if not self.embeddings.weight.is_meta:
            self.init_weights(seed=0)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.ln_post.weight.device

    def forward(self, rows: PackedRows) -> LossOutput:
        """Summed caption loss of packed rows; divide by the label count of the global batch to get the mean.

        Only labelled positions reach the LM head. Without any label the sum is 0 and still has a gradient graph.

        Raises:
            ModelError: `rows` do not fit the model (token id, patch shape), or `attention` names a back end that
                cannot run here.
        """
        x_ND = self._run_rows(rows)
        targets_L = rows.input_ids_BS.flatten()[rows.label_index_L]
        # The token before a label predicts it; it is in the same sample because no sample starts with a label.
        hidden_LD = x_ND.index_select(0, rows.label_index_L - 1)
        losses_L = cross_entropy(self.project(hidden_LD), targets_L, self.lm_head, self.config.vocab_size)
        num_labels = torch.tensor(rows.num_labels, device=losses_L.device)
        return LossOutput(losses_L.sum(), num_labels, losses_L.detach())

    def hidden_BSD(self, rows: PackedRows) -> Tensor:
        """`ln_post` output at every position of packed rows."""
        hidden: Tensor = self.ln_post(self._run_rows(rows))
        return torch.unflatten(hidden, 0, rows.input_ids_BS.shape)

    def logits(self, rows: PackedRows) -> Tensor:
        """Next-token logits at every position, [B, S, V]; materialised, so for tests and small inputs."""
        logits: Tensor = self.lm_head(self.proj(self.hidden_BSD(rows)))
        return logits

    def encode_image(self, patches: Patches, grid: tuple[int, int]) -> Tensor:
        """Vision features of one image, [P, D]: `ln_post` output, full attention, no text."""
        return self.encode_images([(patches, grid)])[0]

    def encode_images(self, images: Sequence[ImagePatches]) -> list[Tensor]:
        """Vision features [P, D] of every image, computed in one pass."""
        if not images:
            return []
        samples = [EncodedSample(patches, grid, prompt_ids=(), caption_ids=()) for patches, grid in images]
        num_tokens = [sample.num_tokens for sample in samples]
        rows = pack_rows([samples], sum(num_tokens)).to(self.device)
        return list(torch.split(self.hidden_BSD(rows)[0], num_tokens))

    def embed_text(self, ids: Tensor) -> Tensor:
        """Token ids of any shape to the block input, [..., D]."""
        embedded: Tensor = self.in_proj(self.embeddings(ids))
        return embedded

    def project(self, x_D: Tensor) -> Tensor:
        """Block output [..., D] to the input of the LM head [..., t]."""
        projected: Tensor = self.proj(self.ln_post(x_D))
        return projected

    def embed_rows(self, rows: PackedRows) -> Tensor:
        """Input of the first block, [N, D]: text embeddings with the patch embeddings laid over them, in order."""
        check_fit(rows, self.config)
        text_ND = self.embed_text(rows.input_ids_BS.flatten())
        image_ND = self.vision_embeddings(rows.patches_NCPP)
        return text_ND.index_copy(0, rows.image_index_N, image_ND.to(text_ND.dtype))

    def run_blocks(
        self, x_ND: Tensor, position_ids_B3S: Tensor, attends: Sequence[Attend], drop_group_N: Tensor | None = None
    ) -> Tensor:
        """Runs all blocks; the output is not yet normed.

        Args:
            x_ND: [N, D] with N = B * S, or [B, S, D].
            position_ids_B3S: positions of the same tokens.
            attends: the attention function of every block.
            drop_group_N: which tokens DropPath treats alike; None switches it off.
        """
        cos, sin = rope_cos_sin(position_ids_B3S, self.config, x_ND.dtype)
        if x_ND.dim() == 2:
            cos, sin = cos.flatten(0, 1), sin.flatten(0, 1)
        run = self._run_training_block if self.training else _run_block
        for block, attend in zip(self.visual.layers, attends, strict=True):
            if self.gradient_checkpointing and self.training:
                contexts = checkpoint_contexts(self.recompute)
                x_ND = checkpoint(
                    run, block, x_ND, cos, sin, attend, drop_group_N, use_reentrant=False, context_fn=contexts
                )
            else:
                x_ND = run(block, x_ND, cos, sin, attend, drop_group_N)
        return x_ND

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles the block, one graph for all layers, for passes in training mode; evaluation stays eager.

        The first step is slow, and so is the first one with another number of samples, which compiles for any number.
        Parameter names and results do not change, to rounding; DropPath draws the numbers of eager mode.

        Args:
            backend: of `torch.compile`; "inductor" needs a C++ compiler on a CPU.
        """
        options: dict[str, Any] | None = {"fallback_random": True} if backend == "inductor" else None
        self._run_training_block = torch.compile(_run_block, fullgraph=True, backend=backend, options=options)

    def packed_attend(self, rows: PackedRows) -> Attend:
        """The prefix-LM attention of these rows, planned once for all blocks."""
        num_rows, row_tokens = rows.input_ids_BS.shape
        device = rows.input_ids_BS.device
        backend = choose_backend(self.attention, device, self._compute_dtype(), self.config.head_dim)
        plan = plan_attention(rows.segments_M4, num_rows, row_tokens, device, backend)
        return lambda q, k, v: prefix_attention(q, k, v, plan)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """The official initialisation, drawn on the CPU so that it is the same on every device.

        q/k/v/out, and fc1/fc2 without SwiGLU: Xavier uniform on the stored matrix (so the fused query and gate have
        bound sqrt(6 / 3d)); every other matrix, the patch embedding and the token table: normal with
        `initializer_range`; biases 0; norms 1 and 0; LayerScale `ls_init_value`.
        """
        init_parameters(self, self.config, torch.Generator().manual_seed(seed))

    def _compute_dtype(self) -> torch.dtype:
        """What queries, keys and values are computed in."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.lm_head.weight.dtype

    def _run_rows(self, rows: PackedRows) -> Tensor:
        attends = [self.packed_attend(rows)] * self.config.num_hidden_layers
        drop_group_N = self._drop_groups(rows) if self.training else None
        return self.run_blocks(self.embed_rows(rows), rows.position_ids_B3S, attends, drop_group_N)

    def _drop_groups(self, rows: PackedRows) -> Tensor:
        """A number per token, shared by the tokens that DropPath treats alike: [N], values below N."""
        num_rows, row_tokens = rows.sample_ids_BS.shape
        row_start_B1 = torch.arange(num_rows, device=rows.sample_ids_BS.device).unsqueeze(1) * row_tokens
        if self.drop_path_per == "row":
            return row_start_B1.expand(-1, row_tokens).flatten()
        # Padding joins sample 0 of its row: nobody reads it.
        return (row_start_B1 + rows.sample_ids_BS.clamp(min=0)).flatten()


def check_fit(rows: PackedRows, config: GenLIPConfig) -> None:
    """Refuses token ids and patches that a model of this shape does not have.

    Raises:
        ModelError: with what to change.
    """
    if rows.max_token_id >= config.vocab_size:
        raise ModelError(
            f"token id {rows.max_token_id} does not exist in a model with vocab_size {config.vocab_size};"
            " build the model with the vocab_size of the tokenizer that encoded the captions"
        )
    side = config.patch_size
    expected = (config.num_channels, side, side)
    if len(rows.patches_NCPP) and rows.patches_NCPP.shape[1:] != expected:
        raise ModelError(
            f"patches of shape {list(rows.patches_NCPP.shape[1:])} do not fit a model of {list(expected)};"
            " use an ImageProcessor with the model's patch_size"
        )


@torch.no_grad()
def init_parameters(module: nn.Module, config: GenLIPConfig, generator: torch.Generator) -> None:
    """Draws the parameters of a module as `GenLIP.init_weights` says, one pass of the CPU generator."""
    std = config.initializer_range
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding | PatchEmbedding):
            part.weight.copy_(torch.empty(part.weight.shape).normal_(std=std, generator=generator))
            if not isinstance(part, nn.Embedding) and part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, LayerScale):
            part.lambda1.fill_(config.ls_init_value)
    for linear in (child for part in module.modules() if _is_xavier(part) for child in part.children()):
        if isinstance(linear, nn.Linear):
            bound = (6 / sum(linear.weight.shape)) ** 0.5
            linear.weight.copy_(torch.empty(linear.weight.shape).uniform_(-bound, bound, generator=generator))


def _is_xavier(module: nn.Module) -> bool:
    """Whether the official code draws the module's matrices by Xavier's rule."""
    return isinstance(module, SelfAttention) or (isinstance(module, FeedForward) and module.gate_fc is None)


def _run_block(
    block: nn.Module, x_ND: Tensor, cos_NK: Tensor, sin_NK: Tensor, attend: Attend, drop_group_N: Tensor | None
) -> Tensor:
    out_ND: Tensor = block(x_ND, cos_NK, sin_NK, attend, drop_group_N)
    return out_ND
