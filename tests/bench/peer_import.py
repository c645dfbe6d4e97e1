"""Loads single modules of a peer's checkout, without its packages' `__init__` files and what those import."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from tests.bench.harness import BenchError


def bare_package(name: str, folder: Path) -> None:
    """Makes `name` a package of the modules in `folder` whose own `__init__` never runs."""
    if not folder.is_dir():
        raise BenchError(f"{folder} does not exist; point the option at the root of the peer's checkout")
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


def missing_package(name: str, **content: object) -> None:
    """Stands in for an optional dependency that is not installed; `content` is all that is asked of it."""
    parent = name.partition(".")[0]
    if importlib.util.find_spec(parent):
        return
    for module_name in (parent, name):
        module = ModuleType(module_name)
        module.__spec__ = ModuleSpec(module_name, None)
        sys.modules[module_name] = module
    sys.modules[name].__dict__.update(content)
