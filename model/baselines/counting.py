"""Floating point operations of every objective by arithmetic, in the manner of `model.counting`."""

from ..configuration_genlip import GenLIPConfig
from ..counting import flops_per_sample as genlip_flops_per_sample
from ..errors import ModelError
from .caption_decoder import decoder_depth
from .parts import mae_decoder_config, num_visible, text_config


def flops_per_sample(
    objective: str,
    config: GenLIPConfig,
    num_image_tokens: int,
    num_text_tokens: int,
    num_labelled_tokens: int,
    mask_ratio: float = 0.75,
) -> int:
    """Operations to train on one sample: forward plus backward, a multiply-add counts as 2.

    With P image tokens, Y labelled tokens, K = (1 - mask_ratio) * P visible ones, F values of a patch, V vocabulary, N
    blocks of width d and feed-forward width I, and

        blocks(N, d, I, s, n, pairs) = 2*N*(s*d^2 + 3dI)*n + 4*N*d*pairs     s = 5 with the gate, else 4; 2dI without
                                                                            SwiGLU
        encoder(n)                   = 2*P*d*F + blocks(N, d, I, 5, n, n^2)

    forward operations are, for a text tower or decoder of N' blocks of width w and feed-forward width I':

        clip, siglip  encoder(P) + pooling + blocks(N', w, I', 4, Y, Y*(Y+1)/2) + 2dw + 2w^2
                      pooling = 4*P*d^2 + 4d^2 + 6dI + 4*d*P
        mae           encoder(K) + 2*K*d*w + blocks(N', w, I', 4, P, P^2) + 2*(P-K)*w*F
        cappa         encoder(P) + blocks(N', d, I, 6, Y, Y*(Y+1)/2 + Y*P) + 4*N'*d^2*P + 2*Y*d*V

    and three times as many with the backward pass. Comparing the pairs of a batch is left out, as are norms and
    activations; so is the prompt, which only GenLIP reads.

    Args:
        objective: of `build_model`.
        config: the backbone.
        num_image_tokens: P.
        num_text_tokens: X of `model.flops_per_sample`, prompt included; read for "genlip" only.
        num_labelled_tokens: Y: the caption and its ending.
        mask_ratio: of "mae".

    Raises:
        ModelError: there is no such objective.
    """
    match objective:
        case "genlip":
            return genlip_flops_per_sample(config, num_image_tokens, num_text_tokens, num_labelled_tokens)
        case "clip" | "siglip":
            return 3 * _contrastive(config, num_image_tokens, num_labelled_tokens)
        case "mae":
            return 3 * _mae(config, num_image_tokens, mask_ratio)
        case "cappa":
            return 3 * _cappa(config, num_image_tokens, num_labelled_tokens)
        case _:
            raise ModelError(f"there is no objective {objective!r}")


def _contrastive(config: GenLIPConfig, p: int, y: int) -> int:
    d, text = config.hidden_size, text_config(config)
    w = text.hidden_size
    pooling = 4 * p * d**2 + 4 * d**2 + 2 * _mlp(config) + 4 * d * p
    projections = 2 * d * w + 2 * w**2
    return _encoder(config, p, p) + pooling + _blocks(text, y, y * (y + 1) // 2) + projections


def _mae(config: GenLIPConfig, p: int, mask_ratio: float) -> int:
    k, decoder = num_visible(p, mask_ratio), mae_decoder_config(config)
    w = decoder.hidden_size
    edges = 2 * k * config.hidden_size * w + 2 * (p - k) * w * _values(config)
    return _encoder(config, p, k) + edges + _blocks(decoder, p, p**2)


def _cappa(config: GenLIPConfig, p: int, y: int) -> int:
    d, layers = config.hidden_size, decoder_depth(config)
    per_token = 2 * layers * (6 * d**2 + _mlp(config))
    pairs = y * (y + 1) // 2 + y * p
    keys = 4 * layers * d**2 * p
    head = 2 * y * d * config.vocab_size
    return _encoder(config, p, p) + per_token * y + 4 * layers * d * pairs + keys + head


def _encoder(config: GenLIPConfig, num_patches: int, num_seen: int) -> int:
    edge = 2 * num_patches * config.hidden_size * _values(config)
    return edge + _blocks(config, num_seen, num_seen**2)


def _blocks(config: GenLIPConfig, num_tokens: int, num_pairs: int) -> int:
    squares = 5 if config.gated_attention else 4
    per_token = 2 * (squares * config.hidden_size**2 + _mlp(config))
    return config.num_hidden_layers * (per_token * num_tokens + 4 * config.hidden_size * num_pairs)


def _mlp(config: GenLIPConfig) -> int:
    """Weights of a feed-forward branch."""
    return (3 if config.use_swiglu_ffn else 2) * config.hidden_size * config.intermediate_size


def _values(config: GenLIPConfig) -> int:
    return config.num_channels * config.patch_size**2
