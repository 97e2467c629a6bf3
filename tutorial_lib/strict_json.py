"""JSON as its standard has it: no NaN and no infinity, which browsers and databases refuse to read."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON text; a number that is not finite (the interval of one text) becomes null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _finite(child) for key, child in item.items()}
    if isinstance(item, list | tuple):
        return [_finite(child) for child in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item
