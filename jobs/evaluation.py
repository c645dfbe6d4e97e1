"""`genlip eval`: the newest checkpoint of a run on the held-out shards; numbers to the screen and to eval.json."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.console import duration, say, table
from jobs.runs import read_run
from model import LoadedModel, load_model
from pipeline.dataset_files import index_file
from pipeline.sharding.dataset import HELDOUT_SUFFIX
from pipeline.store import Store
from train.checkpoints import latest_checkpoint, read_state
from train.data.dataset import open_dataset
from train.evaluate import MAX_SCANNED, Labelled, evaluate, read_labelled, require_heldout

EVAL_FILE = "eval.json"


def load_latest(run_dir: Path) -> tuple[LoadedModel, dict[str, Any]]:
    """The newest checkpoint's model, and the state it was saved in."""
    checkpoint = latest_checkpoint(run_dir)
    return load_model(checkpoint / "model"), asdict(read_state(checkpoint)) | {"checkpoint": str(checkpoint)}


def read_heldout(run_dir: Path, limit: int) -> list[Labelled]:
    """The first held-out samples of a run's dataset, in the shards' shuffled order."""
    recipe = read_run(run_dir)
    dataset = recipe.shards.name + HELDOUT_SUFFIX
    store = Store(recipe.store)
    heldout = read_labelled(open_dataset(store, dataset), limit) if store.exists(index_file(dataset)) else []
    require_heldout(heldout, dataset)
    return heldout


def evaluate_run(run_dir: Path) -> int:
    """Evaluate a run. Returns the exit code."""
    began = time.monotonic()
    recipe = read_run(run_dir)
    loaded, state = load_latest(run_dir)
    heldout = read_heldout(run_dir, recipe.eval.max_images)
    training = read_labelled(open_dataset(Store(recipe.store), recipe.shards.name), MAX_SCANNED)
    result = evaluate(loaded, heldout, training, recipe.eval, recipe.train.max_caption_tokens)
    result |= {"checkpoint": state["checkpoint"], "samples_seen": state["samples_seen"]}
    (run_dir / EVAL_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say(f"{state['checkpoint']}, {state['samples_seen']:,} samples seen, {len(heldout)} held-out images")
    say(table(eval_rows(result)))
    say(f"took {duration(time.monotonic() - began)}; numbers in {run_dir / EVAL_FILE}")
    return 0


def eval_rows(result: dict[str, Any]) -> list[list[str]]:
    """The result as a table: measure, value, chance, and how many times chance."""
    rows = [["measure", "value", "chance", "× chance"]]
    loss = result["caption_loss"]
    uniform = f"{loss['uniform_nats_per_token']:.3f}"
    rows.append(["caption loss, nats per token", f"{loss['nats_per_token']:.3f}", uniform, ""])
    rows.append(["caption loss, nats per byte", f"{loss['nats_per_byte']:.3f}", "", ""])

    def share(name: str, value: float, chance: float) -> None:
        rows.append([name, f"{value:.1%}", f"{chance:.1%}", f"{value / chance:.1f}"])

    zero_shot = result["zero_shot"]
    for source, title in (("names", "class names"), ("captions", "class captions")):
        for score, words in (("likelihood", "likelihood"), ("gain", "information gain")):
            if f"{source}_{score}_top1" in zero_shot:
                title_1 = f"zero-shot top-1 of {zero_shot['num_classes']}, {title}, {words}"
                share(title_1, zero_shot[f"{source}_{score}_top1"], zero_shot["chance"])
        if f"{source}_gain_top5" in zero_shot:
            share(f"zero-shot top-5, {title}", zero_shot[f"{source}_gain_top5"], 5 * zero_shot["chance"])
    if zero_shot:
        rows.append(["  (always the most frequent class)", f"{zero_shot['majority_class']:.1%}", "", ""])
    retrieval = result["retrieval"]
    for way, title in (("image_to_text", "image → text"), ("text_to_image", "text → image")):
        for k in (1, 5, 10):
            share(f"{title} R@{k}", retrieval[f"{way}_r{k}"], retrieval[f"{way}_r{k}_chance"])
    return rows
