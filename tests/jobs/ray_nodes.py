"""Machines that join a test's Ray cluster and leave it: each is a `ray start`, killed with all its processes."""

from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.jobs.ray_head import Head, end_tree, free_ports, start_ray, wait_for_ray


@dataclass
class Nodes:
    """The nodes of a cluster beside its head. Give each test a short folder: the paths of sockets are limited."""

    head: Head
    folder: Path
    processes: list[psutil.Popen] = field(default_factory=list)

    def add(self) -> psutil.Popen:
        """A node of one core, once it has joined."""
        name = f"n{len(self.processes)}"
        (agent_port,) = free_ports(1)
        options = {
            "address": self.head.gcs,
            "dashboard-agent-listen-port": agent_port,
            "num-cpus": 1,
            "object-store-memory": 80_000_000,
            "temp-dir": self.folder / name,
        }
        log = self.folder / f"{name}.log"
        process = start_ray(log, self.head.env, *(f"--{k}={v}" for k, v in options.items()))
        self.processes.append(process)
        wait_for_ray(process, log)
        return process

    def end(self) -> None:
        for process in self.processes:
            end_tree(process)
