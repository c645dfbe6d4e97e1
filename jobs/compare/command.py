"""`genlip compare`: plan, train, measure, and write the report."""

import torch

from jobs.compare.aggregate import aggregate
from jobs.compare.examples import example_keys, read_pictures
from jobs.compare.pace import Pace
from jobs.compare.plan import costs, say_plan, speed_here
from jobs.compare.report import write_report
from jobs.compare.runs import plan_runs, prepare
from jobs.compare.work import num_cores, work
from jobs.console import say
from jobs.recipe import Recipe
from pipeline.errors import EXIT_FAILED_UNITS, EXIT_PREEMPTED


def compare(recipe: Recipe) -> int:
    """Do what is missing of a comparison, and report. Returns the exit code."""
    runs = plan_runs(recipe)
    parallel = recipe.compare.parallel or (1 if torch.cuda.is_available() else num_cores())
    prepare(recipe, runs)
    found = costs(runs)
    pace = Pace({name: cost.flops_per_sample for name, cost in found.items()}, runs, speed_here(recipe))
    say_plan(recipe, runs, found, parallel, pace)
    if work(runs, parallel, pace):
        say("stopped on request; the same command goes on from there")
        return EXIT_PREEMPTED
    comparison = aggregate(recipe, runs, found)
    write_report(comparison, recipe.run_dir, read_pictures(recipe, example_keys(comparison)))
    for run in comparison.missing:
        say(f"missing: {run.title}; why: {run.command}")
    return EXIT_FAILED_UNITS if comparison.missing else 0
