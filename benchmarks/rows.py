"""The CSV that a benchmark's rows are kept in, and that a table of the book is held to."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def keep(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a CSV, with its header if it is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
