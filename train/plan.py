"""Every derived number of a training run, with its arithmetic, before anything starts."""

from collections.abc import Mapping

from model import count_parameters
from train.setup import RunSetup, check_world_size


def plan_lines(setup: RunSetup, world_size: int) -> list[str]:
    """The training plan as lines of text.

    Raises:
        UserError: The lanes cannot be dealt to that many processes.
    """
    spec, config, costs = setup.job.train, setup.config, setup.costs_at(0)
    check_world_size(spec.lanes, spec.micro_rows, world_size)
    num_samples, tokens = len(setup.samples), int(costs.tokens_N.sum())
    tokens_per_sample, flops_per_sample = tokens / num_samples, float(costs.flops_N.mean())
    steps_per_epoch = setup.stream.num_steps(0)
    samples_per_step = num_samples / steps_per_epoch
    num_steps = spec.length / samples_per_step
    accumulation = spec.lanes // (world_size * spec.micro_rows)
    text_tokens = tokens_per_sample - float(costs.patches_N.mean())
    return [
        f"model      {setup.job.model.preset}: {config.num_hidden_layers} layers × {config.hidden_size} wide,"
        f" {count_parameters(config):,} parameters with a vocabulary of {config.vocab_size:,}",
        f"sample     {float(costs.patches_N.mean()):.1f} image + {text_tokens:.1f} text tokens"
        f" = {tokens_per_sample:.1f} tokens (mean)",
        *_caption_lines(spec.captions),
        f"epoch      {num_samples:,} samples × {tokens_per_sample:.1f} tokens = {tokens:,} tokens,"
        f" packed into rows of {spec.row_tokens:,}: {setup.stream.fill(0):.2%} full",
        f"step       {spec.lanes} lanes × {spec.row_tokens:,} tokens = {spec.lanes * spec.row_tokens:,} tokens"
        f" ≈ {samples_per_step:.1f} samples",
        f"processes  {spec.lanes} lanes = {world_size} processes × {spec.micro_rows} rows"
        f" × {accumulation} accumulated; ZeRO stage {spec.zero_stage}, {spec.precision}",
        f"length     {spec.length:,} samples ÷ {num_samples:,} = {spec.length / num_samples:.2f} epochs;"
        f" ÷ {samples_per_step:.1f} ≈ {num_steps:,.0f} steps",
        f"warm-up    {spec.optim.warmup:,} samples ÷ {samples_per_step:.1f}"
        f" ≈ {spec.optim.warmup / samples_per_step:,.0f} steps, to lr {spec.optim.lr:g}; then cosine to"
        f" {spec.optim.min_lr:g}",
        f"compute    {spec.length:,} samples × {flops_per_sample / 1e9:.2f} GFLOP"
        f" = {spec.length * flops_per_sample:.3g} FLOP (forward + backward, labelled-only head)",
        f"checkpoint every {spec.checkpoint.every:,} samples"
        f" ≈ {spec.checkpoint.every / samples_per_step:,.0f} steps, the last {spec.checkpoint.keep_last} kept",
    ]


def _caption_lines(shares: Mapping[str, float]) -> list[str]:
    """Which captions are read, where that is a choice."""
    if len(shares) == 1:
        return []
    drawn = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return [f"captions   {drawn}, drawn anew in each epoch; the numbers here are those of the first"]
