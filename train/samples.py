"""Numbers of samples, the only clock, as people write them."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def parse_samples(value: Any) -> Any:
    """`8B samples`, `56M samples`, `24_000 samples` or a plain number -> a number of samples."""
    if isinstance(value, bool):
        raise ValueError("write a number of samples, such as 8B samples")
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)\s*([kmb]?)\s*(?:samples)?", value.strip(), re.IGNORECASE)
    if not match:
        raise ValueError("write a number of samples, such as '8B samples', '24k samples' or 24000")
    return round(float(match[1].replace("_", "")) * _MULTIPLES[match[2].lower()])


Samples = Annotated[int, BeforeValidator(parse_samples), Field(ge=0)]
