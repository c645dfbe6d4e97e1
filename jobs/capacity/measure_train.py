"""How fast a GPU of this machine, or else a core, trains the recipe's model: steps of a micro-batch, data included."""

import time
from contextlib import closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from jobs.recipe import Recipe
from pipeline.dataset_files import index_file
from pipeline.errors import EXIT_ENVIRONMENT, UserError
from pipeline.store import Store
from train.recipe import TOKENIZER_FOLDER, TrainJob

_STEPS = 6
_WARM_UP_STEPS = 2
"""The first makes the optimiser's state, and on a GPU the second still meets new shapes."""
_MOST_CPU_FLOPS = 3e11
"""Of one step where there is no GPU: about ten seconds on a core."""


def train_steps(recipe: Recipe, run_dir: Path) -> tuple[dict[str, float], str, str]:
    """Take a few steps on one device and forget them.

    A step here is one micro-batch and one update. The run's own steps accumulate several for each update, so they are
    no slower.

    Returns:
        The numbers, in words what they were measured with, and the GPU's name, which is empty where there is none.

    Raises:
        UserError: A stage before it is missing, or this machine is too small for the model.
    """
    if not (run_dir / TOKENIZER_FOLDER).exists():
        raise UserError("this run has no tokenizer", next_step="run: genlip tokenizer RECIPE")
    if not recipe.train.sources and not Store(recipe.store).exists(index_file(recipe.shards.name)):
        raise UserError("there are no shards yet", next_step="run: genlip ingest RECIPE")
    # Here, because these load torch, which the other stages do not need.
    import torch

    from train.data.loader import Loader
    from train.loop import train_step
    from train.main import begin
    from train.plan import measure
    from train.setup import set_up

    spec = recipe.train.model_copy(update={"lanes": recipe.train.micro_rows, "init_from": "", "ema": None})
    job = TrainJob.model_validate(recipe.model_dump(mode="json")).model_copy(update={"train": spec})
    setup = set_up(run_dir, job)
    means = measure(setup.stream)
    samples_per_row = means.num_samples / means.num_rows
    _refuse_large(samples_per_row * spec.micro_rows * means.flops, torch.cuda.is_available())
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # as in the workers of `genlip train`, of which there is one a core
    taken: list[float] = []
    num_samples = 0
    with TemporaryDirectory() as folder:
        ranks, engine = begin(setup, Path(folder))
        with closing(iter(Loader(setup, Path(folder)))) as steps:
            for number in range(_STEPS):
                began = time.perf_counter()
                batch = next(steps)
                train_step(engine, batch, spec.optim.lr, ranks, seed=number)  # ends when the device has its loss
                taken.append(time.perf_counter() - began)
                num_samples += batch.num_samples
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    numbers = {
        "samples_per_s_device": num_samples / _STEPS / median(taken[_WARM_UP_STEPS:]),
        "samples_per_row": samples_per_row,
        "tokens_per_sample": means.tokens,
        "flops_per_sample": means.flops,
        "num_parameters": float(setup.network.num_parameters),
    }
    about = f"{_STEPS - _WARM_UP_STEPS} steps of {num_samples / _STEPS:.0f} samples on {gpu or 'one core'}"
    return numbers, about, gpu


def _refuse_large(step_flops: float, has_gpu: bool) -> None:
    if not has_gpu and step_flops > _MOST_CPU_FLOPS:
        raise UserError(
            f"this machine has no GPU, and a micro-batch takes {step_flops:.2g} FLOP",
            next_step="run: genlip bench RECIPE --only train, on a machine with one",
            exit_code=EXIT_ENVIRONMENT,
        )
