"""`genlip train` on a cluster that changes: a process is preempted, a node dies, another one comes."""

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from groups import MAX_WAIT_S, Group, is_saved
from test_training_ray import command, goes_on, options, wait_until
from train_runs import samples_of_steps

from jobs.elastic import RESTARTS
from pipeline.errors import EXIT_PREEMPTED
from tests.jobs.ray_head import end_tree, ray_head
from tests.jobs.ray_nodes import Nodes
from train.audit import audit_run
from train.jsonl import read_lines
from train.metrics import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@contextmanager
def cluster() -> Iterator[Nodes]:
    """A head without cores, for the driver alone; the test adds the nodes."""
    with ray_head(num_cpus=0) as head, tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path for sockets
        nodes = Nodes(head, Path(folder))
        try:
            yield nodes
        finally:
            nodes.end()


def worker_on(node: psutil.Popen) -> psutil.Process:
    (found,) = [one for one in node.children(recursive=True) if "TrainWorker" in "".join(one.cmdline()[:1])]
    return found


def test_a_run_survives_a_preemption_and_a_lost_node_and_grows_again(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "output.txt"
    every = samples_of_steps(make_run("name=count"), 4)
    overrides = ["train.length=1000000", f"train.checkpoint.every={every}"]
    moved = make_run("name=moved", *overrides)
    with cluster() as nodes:
        first, _ = nodes.add(), nodes.add()
        where = [f"run.ray_address={nodes.head.gcs}", "run.workers=2", "run.min_workers=1", "run.max_failures=1"]
        with command(recipe, output, *options("name=moved", *overrides, *where), env=nodes.head.env) as driver:

            def wait_for_step(after: dict[str, Any]) -> dict[str, Any]:
                wait_until(driver, output, lambda: goes_on(moved, after))
                return read_metrics(moved)[-1]

            wait_until(driver, output, is_saved(moved, 1, step=5))
            worker_on(first).send_signal(signal.SIGTERM)
            last = wait_for_step(read_metrics(moved)[-1])
            end_tree(first)
            wait_for_step(last)
            nodes.add()
            wait_until(driver, output, lambda: len(read_lines(moved / RESTARTS)) == 3)
            wait_for_step(read_metrics(moved)[-1])
            driver.send_signal(signal.SIGTERM)
            assert driver.wait(MAX_WAIT_S) == EXIT_PREEMPTED, output.read_text()
    found = [(entry["kind"], entry["processes"]) for entry in read_lines(moved / RESTARTS)]
    assert found == [("preemption", 2), ("failure", 1), ("more room", 2)]
    printed = output.read_text()
    assert "with 2 of 2 processes; left: 1 of 1 failures, 99 of 100 preemptions" in printed
    assert "with 1 of 2 processes; left: 0 of 1 failures, 99 of 100 preemptions" in printed
    assert audit_run(moved).problems == []

    entries = read_metrics(moved)
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    straight = make_run("name=straight", *overrides)
    group = Group(recipe, "name=straight", *overrides)
    group.wait_until(is_saved(straight, 1, step=len(entries)))
    group.kill()
    theirs = read_metrics(straight)[: len(entries)]
    for ours, undisturbed in zip(entries, theirs, strict=True):
        assert ours["samples"] == undisturbed["samples"]
        assert ours["loss"] == pytest.approx(undisturbed["loss"], rel=1e-5)
