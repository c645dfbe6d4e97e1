"""One training process, whoever started it: Ray Train, torchrun, deepspeed or SLURM."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train.checkpoints import Checkpoints, HuggingFaceExport, TrainState, committed_checkpoints
from train.data.loader import Loader
from train.engine import Ranks, build_engine, join_group
from train.evaluation.during import HeldoutEvaluation, open_heldout
from train.init_from import load_initial_weights
from train.loop import OnLog, Trainer
from train.metrics import Evaluation, StepMetrics
from train.sanity import check_equal_weights
from train.setup import RunSetup, check_world_size, set_up
from train.sinks import Sinks


def run_training(
    run_dir: Path,
    on_log: OnLog = lambda metrics: None,
    on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
    allowed: Sequence[str] = (),
    is_preempted: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train or resume the run in a folder, as one process of the group that the environment describes.

    Args:
        run_dir: Holds recipe.json and the tokenizer; checkpoints and metrics go here.
        on_log: Called on the first process for each logged step, after it was written to the metrics.
        on_evaluation: The same for each evaluation.
        allowed: Keys in which the checkpoint to resume from may be another's.
        is_preempted: Whether the launcher knows that this process will be taken away.

    Returns:
        The state at the end, with fewer samples than the recipe's length where the run was asked to stop.
    """
    setup = set_up(run_dir)
    job, spec = setup.job, setup.job.train
    heldout = open_heldout(job) if job.eval.every else None
    ranks, engine = begin(setup, run_dir)
    export = HuggingFaceExport(setup.network, setup.tokenizer, setup.processor, run_dir.resolve().name)
    checkpoints = Checkpoints(run_dir, spec.checkpoint, ranks, export, _made_of(setup), allowed)
    state = checkpoints.restore(engine)
    loader = Loader(setup, run_dir, ranks.rank, ranks.world_size)
    if state.stream:
        loader.load_state_dict(state.stream)
    sinks = Sinks(run_dir, spec.log, ranks, state.step, state.samples_seen)

    def log(metrics: StepMetrics) -> None:
        sinks.log(metrics)
        if ranks.is_first:
            on_log(metrics)

    def log_evaluation(evaluation: Evaluation) -> None:
        sinks.log_evaluation(evaluation)
        if ranks.is_first:
            on_evaluation(evaluation)

    evaluation = HeldoutEvaluation(setup, heldout, ranks, log_evaluation) if heldout else None
    trainer = Trainer(engine, loader, checkpoints, spec, ranks, run_dir, job.seed, log, evaluation, is_preempted)
    state = trainer.fit(state)
    sinks.close()
    return state


def begin(setup: RunSetup, run_dir: Path) -> tuple[Ranks, Any]:
    """Join the group that the environment describes, and build the engine with the weights that a run begins with.

    Args:
        setup: Of the run.
        run_dir: Where it is written down which weights of another run these are.

    Raises:
        UserError: The number of processes does not fit, or their weights differ.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    spec = setup.job.train
    ranks = join_group()
    network = setup.network
    check_world_size(spec.lanes, spec.micro_rows, ranks.world_size, network.skeleton().needs_whole_batch)
    model = network.build()
    if spec.init_from and not committed_checkpoints(run_dir):  # the other run may have moved on since
        load_initial_weights(model, setup.tokenizer, run_dir, spec.init_from)
    else:
        model.init_weights(setup.job.seed)
    check_equal_weights(model, ranks)
    return ranks, build_engine(model, spec, ranks.world_size)


def _made_of(setup: RunSetup) -> dict[str, Any]:
    """What a checkpoint of this run is of."""
    return {
        "objective": setup.network.name,
        "model": setup.config.to_dict(),
        "tokenizer": setup.tokenizer.fingerprint,
        "optimizer": "AdamW",
    }
