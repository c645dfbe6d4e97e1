"""One training process, whoever started it: Ray Train, torchrun, deepspeed or SLURM."""

import logging
import warnings
from pathlib import Path

from model import GenLIP
from train.checkpoint import TrainState, load_checkpoint
from train.engine import build_engine, join_group
from train.loader import Loader
from train.loop import OnLog, fit
from train.metrics import StepMetrics, forget_after, log_metrics
from train.setup import check_world_size, set_up


def run_training(run_dir: Path, on_log: OnLog = lambda metrics: None) -> TrainState:
    """Train or resume the run in a folder, as one process of the group that the environment describes.

    Args:
        run_dir: Holds recipe.json and the tokenizer; checkpoints and metrics go here.
        on_log: Called on the first process for each logged step, after it was written to the metrics.

    Returns:
        The state at the end.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    setup = set_up(run_dir)
    job, spec = setup.job, setup.job.train
    ranks = join_group()
    check_world_size(spec.lanes, spec.micro_rows, ranks.world_size)

    model = GenLIP(setup.config)
    model.init_weights(job.seed)
    model.gradient_checkpointing = spec.gradient_checkpointing
    engine = build_engine(model, spec, ranks.world_size)
    state = load_checkpoint(engine, run_dir, ranks)
    loader = Loader(setup, run_dir, ranks.rank, ranks.world_size)
    if state.stream:
        loader.load_state_dict(state.stream)
    if ranks.is_first:
        forget_after(run_dir, state.step)

    def log(metrics: StepMetrics) -> None:
        log_metrics(run_dir, metrics)
        on_log(metrics)

    return fit(engine, loader, state, spec, ranks, run_dir, setup.tokenizer, setup.processor, job.seed, log)
