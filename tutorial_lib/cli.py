"""The command line: one function per subcommand adds its parser and says what it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from .errors import TutorialError


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tutorial-lib`; returns 0 for fine, 1 when a check failed, 2 for bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(
        prog="tutorial-lib", description="Invert text embeddings; build the book."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add_parser in (add_book, add_check):
        add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except TutorialError as error:
        print(f"tutorial-lib {arguments.command}: {error}", file=sys.stderr)
        return 2


def add_book(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib book`: execute what changed, check, publish, render."""
    parser = commands.add_parser("book", help="execute the chapters that changed and build the HTML")
    parser.add_argument("--profile", help="smoke, cpu (the default, published), gpu or paper")
    parser.add_argument("--chapters", nargs="+", default=[], metavar="NN", help="only these, e.g. 02 03")
    parser.add_argument("--force", action="store_true", help="execute even what did not change")
    parser.add_argument("--no-html", action="store_true", help="notebooks only")
    parser.add_argument(
        "--html-only", action="store_true", help="strict HTML of the published notebooks, nothing executed"
    )
    parser.add_argument(
        "--open", action="store_true", help="open the book in a browser where there is a display"
    )
    parser.set_defaults(run=_book)


def _book(arguments: argparse.Namespace) -> int:
    from . import build
    from .book import Book

    def echo(line: str) -> None:
        print(line, file=sys.stderr)

    book = Book.find()
    if arguments.html_only:
        page: object = build.render(book, echo)
    else:
        page = build.build_book(
            book,
            profile=arguments.profile,
            chapters=arguments.chapters,
            force=arguments.force,
            html=not arguments.no_html,
            echo=echo,
        )
    if page:
        print(page)
    if page and arguments.open:
        _open(str(page))
    return 0


def _open(page: str) -> None:
    import os
    import webbrowser

    # without a display a text browser would take over the terminal
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(f"file://{page}")


def add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib check`: numbers against claims, notebooks against sources; executes nothing."""
    parser = commands.add_parser("check", help="verify every number of the book against claims.yml")
    parser.add_argument(
        "--fix", action="store_true", help="first bring generated text (prose, README, tables) up to date"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from . import verify
    from .book import Book

    book = Book.find()
    if arguments.fix:
        for path in verify.bring_up_to_date(book):
            print(f"refreshed {path.relative_to(book.root)}", file=sys.stderr)
    problems, notes = verify.check(book)
    if arguments.json:
        print(json.dumps({"problems": problems, "notes": notes}, indent=1))
    else:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        print(
            "\n".join(problems)
            or f"{len(book.claims.claims)} claims, {len(book.sources)} chapters: all hold."
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
