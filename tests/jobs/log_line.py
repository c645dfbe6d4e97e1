"""A line of a training's log, for tests of what reads it."""

from train.metrics import StepMetrics

LINE = StepMetrics(
    step=10,
    samples=230,
    passes={"train": 0.1},
    loss=3.5,
    source_losses={},
    grad_norm=1.25,
    lr=1e-3,
    samples_per_s=20.0,
    tokens_per_s=900.0,
    flops_per_s=1e9,
    mfu=0.4,
    time_shares={"data": 0.07},
    checkpoint_stall_s=0.5,
    num_bad_samples=2,
    read={},
    memory_gib=2.0,
    uptime_s=60.0,
    unix_s=1_000.0,
    eta_s=30.0,
)
