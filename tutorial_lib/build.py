"""The runner: text chapters -> executed notebooks -> claims checked -> notebooks published -> HTML.

    build_book       execute what changed, check, publish, render: `tutorial-lib book`, `make book`
    render           the strict HTML build alone

Only the profile `published` in book/profiles.yml (cpu) writes book/*.ipynb; all others leave their notebooks
under _build/runs/, to be looked at. Nothing is published while a claim does not hold.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nbformat import NotebookNode

from . import notebooks
from .book import Book, published_numbers, read_json, write
from .claims import SMOKE, Reported, compare, reported, union
from .errors import ClaimError, TutorialError
from .runtime import PROFILES
from .verify import bring_up_to_date

Echo = Callable[[str], None]


def build_book(
    book: Book,
    *,
    profile: str | None = None,
    chapters: Sequence[str] = (),
    force: bool = False,
    html: bool = True,
    echo: Echo = print,
) -> Path | None:
    """Execute the chapters that changed, check the claims, publish, and render the HTML.

    profile: default is the published one. chapters: stems or their beginnings ("03"); default all.
    force: execute even what did not change. Returns the index page, or None where no HTML was built.
    Raises TutorialError for an unknown profile, chapter or parameter and for a chapter that stops;
    ClaimError, with every disagreement, when numbers and claims disagree.
    """
    profile = profile or book.published
    if profile not in PROFILES:
        raise TutorialError(f"the profile '{profile}' does not exist; choose one of {', '.join(PROFILES)}.")
    chosen = _choose(book, chapters)
    publishing = profile == book.published
    runs = book.root / "_build" / "runs" / profile
    # a smoke run tests what is there now: no memory of earlier ones
    executed = {
        stem: _executed(book, stem, profile, runs, force or profile == SMOKE, echo) for stem in chosen
    }
    numbers = {stem: reported(notebook) for stem, (notebook, _) in executed.items()}
    problems = compare(numbers, book.claims, profile, partial=bool(chapters))
    if publishing:
        problems += _between(book, union(numbers.values()), profile)
    if problems:
        raise ClaimError("\n".join([*problems, f"The notebooks are under {runs}."]))
    known = union([published_numbers(book), *numbers.values()])
    finished = {
        stem: notebooks.publish(book.source(stem, profile), notebook, known, book.claims.claims)
        for stem, (notebook, _) in executed.items()
    }
    if not publishing:
        held = "their numbers are not compared" if profile == SMOKE else "every claim and order among them holds"
        echo(f"{len(finished)} chapters ran in the profile '{profile}'; {held}.")
        return None
    manifest = {stem: entry for stem, entry in book.manifest().items() if stem in book.sources}
    for stem, notebook in finished.items():
        write(book.notebook(stem), notebooks.dumps(notebook))
        # of what was executed, even if it was changed while it ran
        manifest[stem] = executed[stem][1] | {"outputs": notebooks.outputs_hash(notebook)}
    write(book.manifest_path, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    bring_up_to_date(book)
    return render(book, echo) if html else None


def _choose(book: Book, chapters: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    for wanted in chapters or list(book.sources):
        found = [stem for stem in book.sources if stem.startswith(Path(wanted).stem)]
        if not found:
            raise TutorialError(
                f"there is no chapter '{wanted}'; there are {', '.join(book.sources) or 'none yet'}."
            )
        chosen += [stem for stem in found if stem not in chosen]
    return chosen


def _between(book: Book, new: Mapping[str, Reported], profile: str) -> list[str]:
    """What fails of the orders between numbers of chapters built now and of those published before."""
    known, found = published_numbers(book) | dict(new), []
    for order in book.claims.orders:
        operands = [operand.partition(".")[0].strip() for operand in re.split("[<>]=?", order.rule)]
        names = {operand for operand in operands if not re.fullmatch(r"-?\d*", operand)}
        if names <= known.keys() and names & new.keys() and names - new.keys():
            found.append(order.disagreement(known, profile))
    return [problem for problem in found if problem]


def _executed(
    book: Book, stem: str, profile: str, runs: Path, force: bool, echo: Echo
) -> tuple[NotebookNode, dict[str, str]]:
    """The chapter's outputs and what they were computed from: those published, those of an interrupted build, or those
    of a run made now."""
    source = book.source(stem, profile)
    fingerprint = book.fingerprint(source, profile)
    kept = runs / f"{stem}.ipynb"
    record = kept.with_suffix(".json")
    if not force:
        entry = book.manifest().get(stem, {})
        published = book.notebook(stem)
        if published.exists() and {key: entry.get(key) for key in fingerprint} == fingerprint:
            notebook = notebooks.read(published)
            if notebooks.outputs_hash(notebook) == entry.get("outputs"):  # not edited by hand since
                return notebook, fingerprint
        if kept.exists() and read_json(record) == fingerprint:
            return notebooks.read(kept), fingerprint
    echo(f"{stem}: executing (profile {profile})")
    runs.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    scratch = runs / f"{stem}.partial.ipynb"
    offline = profile in (SMOKE, "cpu")
    # a cell of the real reproduction takes hours on a T4; the longest elsewhere (chapter 5) took half an hour
    # on one fast core and may take hours on old ones
    limit = 86_400 if profile == "paper" else 18_000
    notebook = notebooks.execute(source, scratch, book.folder, offline=offline, timeout=limit)
    notebooks.tidy(notebook, stem)
    write(kept, notebooks.dumps(notebook))
    write(record, json.dumps(fingerprint, sort_keys=True))
    scratch.unlink(missing_ok=True)
    return notebooks.read(kept), fingerprint


def render(book: Book, echo: Echo = print) -> Path:
    """Strict HTML build (every warning an error, every reference resolved) from the published notebooks.

    Returns the index page. Raises TutorialError when jupyter-book finds anything to complain about.
    """
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(book.root), "-W", "-n", "--keep-going"]
    # UTF-8 whatever the locale says
    done = subprocess.run(
        command,
        cwd=book.root,
        env=os.environ | {"PYTHONUTF8": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
        complaints = [line for line in said.splitlines() if re.search("WARNING|ERROR|Error", line)]
        raise TutorialError(
            "the HTML build is strict and found:\n" + "\n".join(complaints[:40] or said.splitlines()[-20:])
        )
    page = book.root / "_build" / "html" / "index.html"
    echo(f"The book: {page.as_uri()}")
    return page
