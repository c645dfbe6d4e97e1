"""The environment for commands that a test starts."""

import os

_GROUP = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def without_group() -> dict[str, str]:
    """This process's environment, less what describes a process group: tests that train in here leave it behind."""
    return {name: value for name, value in os.environ.items() if name not in _GROUP}
