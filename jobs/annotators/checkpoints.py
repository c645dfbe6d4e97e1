"""Our own model as annotators use it: found in a run, loaded once in each process, asked for pairs.

Shape legend: N samples, L tokens with a label.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset_files import index_file
from pipeline.errors import UserError
from pipeline.shards import iter_samples
from pipeline.store import Store

if TYPE_CHECKING:
    from model import EncodedSample, GenLIP, LoadedModel

NUM_PRIOR_IMAGES = 8
"""Each costs one more pass over the caption. After 150 steps of `nano8` on the fixtures, the gain ranks a pair it was
trained on above a mismatched one in 90 % of cases with 8, 91 % with 32, 71 % with the image masked out instead."""
PAIRS_PER_PASS = 32
_WEIGHTS = "*.safetensors"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def weights_fingerprint(checkpoint: str) -> str:
    """sha256 of a checkpoint's weights; read once for each state of the files.

    Raises:
        UserError: There is no model.
    """
    stats = [(str(path), path.stat()) for path in _weights(model_folder(checkpoint))]
    return _digest(tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))


def load_checkpoint(checkpoint: str) -> "LoadedModel":
    """The model with tokenizer and processor, on the GPU that this process has, else on the CPU.

    Raises:
        UserError: There is no model, or it does not load.
    """
    return _load(model_folder(checkpoint), weights_fingerprint(checkpoint))


def model_folder(checkpoint: str) -> Path:
    """The folder with the weights in a run folder (its newest checkpoint), a checkpoint folder or a model folder.

    Raises:
        UserError: There is none.
    """
    from train.recipe import RECIPE_FILE

    folder = Path(checkpoint)
    if (folder / "checkpoints").is_dir() or (folder / RECIPE_FILE).exists():
        from train.checkpoints import latest_checkpoint

        folder = latest_checkpoint(folder)
    if (folder / "model").is_dir():
        folder = folder / "model"
    if not _weights(folder):
        raise UserError(
            "there is no model to annotate with",
            where=checkpoint,
            why=f"no {_WEIGHTS} in {folder}",
            next_step="name a run folder, one of its checkpoints, or a Hugging Face folder",
        )
    return folder.resolve()


@lru_cache(maxsize=8)
def read_prior_images(checkpoint: str, folder: str) -> tuple[bytes, ...]:
    """Image files that stand for any image: of a folder, or the first training images of the checkpoint's run.

    Raises:
        UserError: The folder holds none; or there is no folder and the run or its data are not where they were.
    """
    if folder:
        paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
        images = [path.read_bytes() for path in paths[:NUM_PRIOR_IMAGES]]
    else:
        images = _training_images(model_folder(checkpoint))
    if not images:
        raise UserError(
            "there are no images to take P(caption) from",
            where=folder or checkpoint,
            why="a folder of images is asked for" if folder else "it is not in the run folder that trained it",
            next_step="name a folder of some typical images: prior_images: FOLDER",
        )
    return tuple(images)


def _training_images(model: Path) -> list[bytes]:
    from train.recipe import RECIPE_FILE, TrainJob

    run_dir = next((parent for parent in model.parents if (parent / RECIPE_FILE).exists()), None)
    if run_dir is None:
        return []
    job = TrainJob.read(run_dir)
    store, index = Store(job.store), index_file(job.shards.name)
    if not store.exists(index):
        return []
    # One shard holds enough, and shards are shuffled; the whole index of a large dataset is not read for this.
    with store.reading(store.read_table(index, ["path"])["path"][0].as_py()) as stream:
        return [sample.image for sample in islice(iter_samples(stream), NUM_PRIOR_IMAGES)]


def pair_log_probs(model: "GenLIP", samples: Sequence["EncodedSample"]) -> NDArray[np.float64]:
    """log P(caption tokens | image, prompt) of each pair in nats, summed, [N]."""
    passes = [samples[begin : begin + PAIRS_PER_PASS] for begin in range(0, len(samples), PAIRS_PER_PASS)]
    return np.concatenate([_packed_log_probs(model, some) for some in passes])


def _packed_log_probs(model: "GenLIP", samples: Sequence["EncodedSample"]) -> NDArray[np.float64]:
    import torch

    from model import pack_rows
    from model.loss import token_log_probs

    rows = pack_rows([samples], sum(sample.num_tokens for sample in samples)).to(model.device)
    with torch.inference_mode():
        hidden_LD = model.hidden_BSD(rows).flatten(0, 1)[rows.label_index_L - 1]
        targets_L = rows.input_ids_BS.flatten()[rows.label_index_L]
        log_probs_L = token_log_probs(model.proj(hidden_LD), targets_L, model.lm_head, model.config.vocab_size)
    ends_N = np.cumsum([len(sample.caption_ids) for sample in samples])
    return np.add.reduceat(log_probs_L.cpu().numpy().astype(np.float64), [0, *ends_N[:-1]])


def prior_log_probs(
    loaded: "LoadedModel", images: Sequence[bytes], captions: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """log P(caption tokens) in nats, [N]: the likelihood averaged over images, as in `train.evaluation.scorers`."""
    from model import load_rgb, score_captions
    from train.evaluation.ranking import log_mean_exp

    patches = [loaded.processor.patches(load_rgb(image)) for image in images]
    scores = score_captions(loaded.genlip, patches, loaded.tokenizer.prompt_ids, captions)
    return log_mean_exp(scores.numpy().astype(np.float64), axis=0)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob(_WEIGHTS))


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


@lru_cache(maxsize=2)
def _load(folder: Path, fingerprint: str) -> "LoadedModel":
    """The fingerprint is there so that other weights in the same folder are loaded anew."""
    import torch

    from model import ModelError, load_model

    try:
        loaded = load_model(folder, "cuda" if torch.cuda.is_available() else "cpu")
        _ = loaded.genlip  # the annotators score and write captions with it
    except ModelError as error:
        next_step = "name a folder that genlip train or save_model wrote"
        raise UserError("the model does not load", where=str(folder), why=str(error), next_step=next_step) from error
    return loaded
