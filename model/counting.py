"""Parameters and floating point operations of a model by arithmetic, without building it."""

from .configuration_genlip import GenLIPConfig


def count_parameters(config: GenLIPConfig) -> int:
    """Number of trainable parameters, equal to the sum over the state dict."""
    d, t = config.hidden_size, config.text_embed_dim
    patch = d * config.num_channels * config.patch_size**2 + d
    bridges = 0 if t == d else (d * t + d) + (t * d + t)
    tables = 2 * config.vocab_size * t
    return patch + config.num_hidden_layers * _block_parameters(config) + 2 * d + bridges + tables


def _block_parameters(config: GenLIPConfig) -> int:
    d, i = config.hidden_size, config.intermediate_size
    square_matrices = 5 if config.gated_attention else 4
    attention = square_matrices * (d * d + d)
    mlp = (3 * d * i + 2 * i + d) if config.use_swiglu_ffn else (2 * d * i + i + d)
    layer_scales = 2 * d if config.has_layer_scale else 0
    return attention + mlp + 4 * d + layer_scales


def flops_per_sample(
    config: GenLIPConfig, num_image_tokens: int, num_text_tokens: int, num_labelled_tokens: int
) -> int:
    """Floating point operations to train on one sample: forward plus backward, a multiply-add counts as 2.

    With P image tokens, X text tokens and Y labelled tokens, for N layers of width d and feed-forward width I:

        pairs   = P^2 + X*P + X*(X+1)/2                      (query, key) pairs that the prefix mask allows
        trunk   = 2*N*(5d^2 + 3dI)*(P+X) + 4*N*d*pairs       4d^2 without the gate, 2dI without SwiGLU
        edges   = 2*P*d*channels*patch^2 + 2*X*d*t + 2*Y*d*t the last two only where the text width t differs from d
        head    = 2*Y*t*vocabulary                           labelled positions only
        total   = 3*(trunk + edges + head)                   backward = 2 x forward

    Norms, activations and rotary positions are left out, as is usual for model FLOP utilisation.
    """
    d, t, layers = config.hidden_size, config.text_embed_dim, config.num_hidden_layers
    squares = 5 if config.gated_attention else 4
    mlp_matrices = 3 if config.use_swiglu_ffn else 2
    pairs = num_image_tokens**2 + num_text_tokens * num_image_tokens + num_text_tokens * (num_text_tokens + 1) // 2
    per_token = 2 * layers * (squares * d * d + mlp_matrices * d * config.intermediate_size)
    trunk = per_token * (num_image_tokens + num_text_tokens) + 4 * layers * d * pairs
    edges = 2 * num_image_tokens * d * config.num_channels * config.patch_size**2
    if t != d:
        edges += 2 * d * t * (num_text_tokens + num_labelled_tokens)
    head = 2 * num_labelled_tokens * t * config.vocab_size
    return 3 * (trunk + edges + head)
