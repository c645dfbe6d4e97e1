"""Plug-in points: classes that recipes name, with their parameters; filters and annotators are two of them."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Plugin = TypeVar("Plugin", bound=BaseModel)


def register_in(registry: dict[str, type[Plugin]], kind: str, name: str) -> Callable[[type[Plugin]], type[Plugin]]:
    """A decorator that makes a class available to recipes under `name`; a name has one owner."""

    def add(plugin_class: type[Plugin]) -> type[Plugin]:
        if registry.get(name, plugin_class).__qualname__ != plugin_class.__qualname__:
            raise ValueError(f"the {kind} name {name!r} is taken by {registry[name].__qualname__}")
        registry[name] = plugin_class
        return plugin_class

    return add


def build_from(registry: dict[str, type[Plugin]], kind: str, name: str, parameters: dict[str, Any]) -> Plugin:
    """The plug-in called `name`; a wrong name or parameter is a ValueError with a suggestion."""
    if name not in registry:
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known {kind}s: {', '.join(sorted(registry))}"
        raise ValueError(f"unknown {kind} {name!r}; {hint}")
    try:
        return registry[name](**parameters)
    except ValidationError as error:
        fields = ", ".join(registry[name].model_fields)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{kind} {name!r}: {where}: {first['msg']} (parameters: {fields})") from None


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules that register plug-ins; a module that cannot be imported is a ValueError."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python -m` has it, the installed command has not
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, SyntaxError) as error:
            raise ValueError(f"the plug-in {module!r} cannot be imported: {error}") from error
