"""Text files with places for values. Every value is quoted for the language of the file, so it stays a value."""

import json
import math
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "templates"
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def fill_yaml(name: str, values: Mapping[str, object], blocks: Mapping[str, str] | None = None) -> str:
    """Fill a YAML template: `{{name}}` becomes the value, on one line.

    Args:
        name: Of the file in templates/.
        values: Strings, and whatever else JSON has.
        blocks: YAML for the places that have a line to themselves; it is indented as its place is. An empty one leaves
            no line.

    Raises:
        KeyError: The template has a place for which there is no value.
    """
    return _fill(name, values, quote_yaml, blocks or {})


def fill_shell(name: str, values: Mapping[str, str | list[str]], blocks: Mapping[str, str] | None = None) -> str:
    """Fill a shell template: `{{name}}` becomes one word, a list several words. See `fill_yaml`."""
    return _fill(name, values, quote_shell, blocks or {})


def quote_yaml(value: Any) -> str:
    """A value as YAML reads it, on one line. JSON is YAML, but for characters beyond 16 bits in a string."""
    if isinstance(value, str):
        return str(yaml.safe_dump(value, default_style='"', width=math.inf)).strip()
    return json.dumps(value)


def quote_shell(value: str | list[str]) -> str:
    """A value as one word of the shell, a list as several."""
    return shlex.quote(value) if isinstance(value, str) else shlex.join(value)


def _fill(name: str, values: Mapping[str, Any], quote: Callable[[Any], str], blocks: Mapping[str, str]) -> str:
    lines = []
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        alone = _PLACE.fullmatch(line.strip())
        if alone and alone[1] in blocks:
            indent = line[: len(line) - len(line.lstrip())]
            lines += textwrap.indent(blocks[alone[1]], indent).splitlines()
        else:
            lines.append(_PLACE.sub(lambda place: quote(values[place[1]]), line))
    return "\n".join(lines) + "\n"
