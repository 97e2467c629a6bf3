"""`tutorial-lib data`: general English for training, out of Debian packages."""

from __future__ import annotations

import argparse
import sys

from .cli_common import example, print_json


def add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib data`: fetch, clean, deduplicate and hash training text."""
    from .general_text import SOURCES

    parser = commands.add_parser(
        "data",
        help="fetch general English for training from Debian packages",
        description="Fetch English prose from Debian packages, clean it, drop what repeats or stands in a test set,\n"
        "and write it as text files with a manifest of versions, licences and hashes. Needs apt-get and\n"
        "dpkg-deb (Debian, Ubuntu), a network, and no root. What cannot be fetched is left out with a sentence.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=example(
            "tutorial-lib data",
            "tutorial-lib data --output data --only wordnet jargon",
            "tutorial-lib train inverter --corpus sotu files:data/general --max-tokens 32 --max-minutes 60",
        ),
    )
    names = [source.name for source in SOURCES]
    parser.add_argument("--output", default="data", help="folder (default data)")
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", action="store_true", help="the manifest as JSON")
    parser.set_defaults(run=_data)


def _data(arguments: argparse.Namespace) -> int:
    from .general_text import collect
    from .held_out import every_passage

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    manifest = collect(arguments.output, arguments.only, tests=every_passage(), say=say)
    if arguments.json:
        print_json(manifest)
        return 0
    training = [entry for entry in manifest["sources"] if not entry["foreign"]]
    total = sum(entry["words"] for entry in training)
    print(f"{arguments.output}: {total:,} words from {len(training)} packages; train with --corpus ", end="")
    print(f"sotu files:{arguments.output}/general")
    return 0
