"""`genlip plan`: what a recipe comes to, with its arithmetic, as far as the stages before it exist."""

import os
from pathlib import Path

from jobs.console import say
from jobs.recipe import Recipe
from pipeline.annotate.columns import address, annotated_units
from pipeline.curate.hamming import plan_tables
from pipeline.dataset_files import index_file
from pipeline.funnel import read_funnel
from pipeline.inputs.committed import committed
from pipeline.inputs.numbers import BYTES_PER_URL
from pipeline.inputs.plan import PlanNumbers, plan_numbers
from pipeline.store import Store, check_store
from train.recipe import TOKENIZER_FOLDER


def plan_run(recipe: Recipe) -> int:
    """Print the plan of each stage. Starts nothing, and writes nothing but caption lengths that are not counted yet."""
    lines = [*_ingest_lines(recipe), *_curate_lines(recipe), *_shard_lines(recipe), *_train_lines(recipe)]
    for line in lines:
        say(line)
    return 0


def _ingest_lines(recipe: Recipe) -> list[str]:
    spec = recipe.ingest
    store = check_store(recipe.store, spec.content())
    numbers = plan_numbers(store, spec.source, spec.unit_samples)
    num_committed = len(committed(store))
    lines = [
        f"ingest     {numbers.num_rows:,} rows in {numbers.num_files:,} files ÷ {spec.unit_samples:,} rows a unit"
        f" = {numbers.num_units:,} units; {num_committed:,} committed, {numbers.num_units - num_committed:,} to do",
        *_source_lines(numbers),
        f"fetch      {spec.fetch.in_flight} downloads at a time in a unit, {spec.fetch.per_host} from one host,"
        f" {spec.fetch.timeout_s:g} s each and {spec.fetch.retries} retries; a unit of time-outs alone takes"
        f" {spec.unit_samples:,} ÷ {spec.fetch.in_flight} × {spec.fetch.timeout_s:g} s"
        f" = {spec.unit_samples / spec.fetch.in_flight * spec.fetch.timeout_s:,.0f} s",
    ]
    if num_committed:
        funnel = read_funnel(store)
        lines.append(
            f"so far     {funnel.seen:,} seen = {funnel.success:,} success + {funnel.num_rejected:,} rejected"
            f" + {funnel.num_failed:,} failed; {funnel.success / max(funnel.seen, 1):.1%} kept"
        )
    return lines


def _source_lines(numbers: PlanNumbers) -> list[str]:
    about = {name: "about " if name in numbers.estimates else "" for name in ("distinct_hosts", "expected_bytes")}
    size = f"{about['expected_bytes']}{numbers.expected_bytes / 1e9:,.1f} GB"
    lines = []
    if numbers.distinct_hosts:
        lines.append(
            f"web        {about['distinct_hosts']}{numbers.distinct_hosts:,} hosts; {size} to download"
            f" = {numbers.num_rows:,} URLs × {BYTES_PER_URL / 1000:.0f} kB"
        )
    else:
        lines.append(f"source     {size} of images, nothing to download")
    if numbers.is_staged:
        how = "grouped by host" if numbers.is_grouped else "as they come"
        lines.append(f"rows       of {numbers.num_new_files:,} new files are copied into the store, {how}")
    return lines


def _curate_lines(recipe: Recipe) -> list[str]:
    store, spec = Store(recipe.store), recipe.curate
    units = committed(store)
    lines = []
    for one in spec.build_annotators():
        annotated = annotated_units(store, address(one))
        num_done = sum(number in annotated for number in units)
        lines.append(f"annotate   {', '.join(one.columns())}: {num_done:,} of {len(units):,} units have them")
    if spec.select.where:
        lines.append("select     " + "; ".join(f"{name}: {rule}" for name, rule in spec.select.where.items()))
    if units and spec.select.dedup.near_bits is not None:
        num_stored = read_funnel(store).success
        tables = plan_tables(num_stored, spec.select.dedup.near_bits)
        lines += [f"near       {tables.describe()}", *filter(None, [tables.warning()])]
    return lines


def _shard_lines(recipe: Recipe) -> list[str]:
    spec = recipe.shards
    where = f"shards/{spec.name}"
    guarded = spec.holdout and spec.holdout_near_bits is not None
    if Store(recipe.store).exists(index_file(spec.name)):
        return [f"shards     {where} is written ({spec.shard_samples:,} samples a shard, {spec.holdout:.0%} held out)"]
    return [
        f"shards     {where}: {spec.shard_samples:,} samples a shard,"
        f" {spec.holdout:.0%} of the distinct images held out"
        + (f", none trained on within {spec.holdout_near_bits} bits" if guarded else "")
    ]


def _train_lines(recipe: Recipe) -> list[str]:
    if not recipe.train.sources and not Store(recipe.store).exists(index_file(recipe.shards.name)):
        return ["train      known when the shards are written: genlip ingest RECIPE"]
    run_dir = recipe.run_dir
    if not (run_dir / TOKENIZER_FOLDER).exists():
        return ["train      known when the captions are counted: genlip tokenizer RECIPE"]
    return _planned_training(recipe, run_dir)


def _planned_training(recipe: Recipe, run_dir: Path) -> list[str]:
    # Here, because these load torch, which the stages before do not need.
    import torch

    from train.plan import plan_lines
    from train.recipe import TrainJob
    from train.setup import set_up

    workers = recipe.run.workers or torch.cuda.device_count() or os.cpu_count() or 1
    job = TrainJob.model_validate(recipe.model_dump(mode="json"))
    return plan_lines(set_up(run_dir, job), workers, run_dir, recipe.run.min_workers)


def plan_scale(recipe: Recipe, scale: str) -> int:
    """Print what the recipe takes at a scale: machines, hours, storage, requests and money. Returns the exit code."""
    from jobs.capacity.page import scale_lines

    for line in scale_lines(recipe, scale):
        say(line)
    return 0
