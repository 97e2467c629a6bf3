"""What the subcommands share: argument types, search options, lists in text files, examples, JSON, quiet libraries."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import strict_json
from .errors import TutorialError

if TYPE_CHECKING:
    from .embedder import Embedder


def at_least(minimum: int) -> Callable[[str], int]:
    """Argument type: a whole number of at least `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
        return value

    return parse


def positive(text: str) -> float:
    """Argument type: a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return value


def share(text: str) -> float:
    """Argument type: a share between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value


def read_lines(path: str, what: str) -> list[str]:
    """Lines of a text file that are not empty; TutorialError for one that cannot be read or is not UTF-8."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TutorialError(f"the {what} in {path!r} are not UTF-8 text: convert the file first") from error
    except OSError as error:
        raise TutorialError(f"the {what} in {path!r} cannot be read ({error.strerror}): give a text file") from error
    return [line.strip() for line in lines if line.strip()]


def read_words(source: str | None, embedder: Embedder) -> list[str]:
    """What `--words` names, `census` or a file of `read_lines`, and the embedder's whole words; else nothing."""
    if not source:
        return []
    from .word_lists import census_names, whole_words

    return (census_names() if source == "census" else read_lines(source, "words")) + whole_words(embedder)


def corrector_beside(inverter: str) -> str:
    """Where the corrector of these weights is sought: beside RUN/inverter in RUN/corrector, else under their name."""
    folder = Path(inverter)
    beside = folder.parent / "corrector"
    pair = folder.name == "inverter" and all((each / "config.json").is_file() for each in (folder, beside))
    return str(beside) if pair else inverter


def add_variants(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Options of the searches that recombine guesses (chapters 5 and 6)."""
    parser.add_argument(
        "--variants",
        type=at_least(0),
        default=0,
        help="recombinations of guesses tried a round, instead of corrections and edits: for texts of more than twelve "
        "word pieces (with --surrogate, of more than eight); try --variants 32 --steps 120 (default 0: none)",
    )
    parser.add_argument(
        "--surrogate",
        action="store_true",
        help="let a model that learns from the embedder's answers choose among the variants, for far fewer queries, "
        "with no rounds shown on the way; on a CPU as many texts at a time as there are cores; reaches a little beyond "
        "the length that the weights were trained for; try --steps 30",
    )
    parser.add_argument(
        "--ahead",
        type=at_least(1),
        default=1,
        metavar="N",
        help="look N changes ahead in that model, and first embed every word of the embedder's vocabulary by itself, "
        "once for all vectors: finds more, in about twice the time; try --ahead 3 --steps 90 (default 1)",
    )


def example(*lines: str) -> str:
    """The end of a help text."""
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)


def hush() -> None:
    """No bars and no advice from the libraries while weights load: stderr is for what the user asked."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def print_json(value: Any) -> None:
    """JSON on stdout; a number that is not finite (the interval of one text) becomes null."""
    print(strict_json.dumps(value, indent=1))
