"""The runner: text chapters -> executed notebooks -> claims checked -> notebooks published -> HTML.

    Book             where the parts of the book are, and its profiles, claims and manifest
    build_book       execute what changed, check, publish, render: `tutorial-lib book`, `make book`
    check            everything that can be verified without executing: `tutorial-lib check`
    refresh_pages    numbers, tables and addresses in README.md and the pages that are not executed

Only the profile `published` in book/profiles.yml (cpu) writes book/*.ipynb; all others leave their notebooks
under _build/runs/, to be looked at. Nothing is published while a claim does not hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from nbformat import NotebookNode

from . import notebooks
from .claims import SMOKE, Claims, Reported, compare, reported, union
from .errors import ClaimError, TutorialError
from .prose import refresh, typed_by_hand
from .runtime import PROFILES

# Modules that decide how a chapter is built or started but not what it computes.
_RUNNER = {"build.py", "cli.py", "notebooks.py", "prose.py"}
_RAW = re.compile(r"^(?::{3,}|`{3,}\{).*|\{[a-z][a-z:_-]*\}`[^`]*`", re.M)
Echo = Callable[[str], None]


@dataclass(frozen=True)
class Book:
    """A clone of the repository, seen as a book."""

    root: Path  # the folder with _config.yml

    @classmethod
    def find(cls, start: Path | None = None) -> Book:
        """The book around a folder (default: where we are). Raises TutorialError outside a clone."""
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            if (folder / "_config.yml").is_file() and (folder / "book" / "profiles.yml").is_file():
                return cls(folder)
        raise TutorialError(
            f"{here} is not inside a clone of the book (no _config.yml above it); change into one."
        )

    @property
    def folder(self) -> Path:
        return self.root / "book"

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @cached_property
    def sources(self) -> dict[str, Path]:
        """Chapter stem -> its text source, in reading order."""
        return {path.stem: path for path in sorted(self.folder.glob("*.md")) if notebooks.is_chapter(path)}

    @cached_property
    def pages(self) -> list[Path]:
        """README.md and the pages that are not executed."""
        plain = [path for path in sorted(self.folder.glob("*.md")) if path.stem not in self.sources]
        readme = self.root / "README.md"
        return ([readme] if readme.exists() else []) + plain

    @cached_property
    def repository(self) -> str:
        """The address of the repository, from the one place that holds it: _config.yml."""
        config = yaml.safe_load((self.root / "_config.yml").read_text(encoding="utf-8"))
        return str(config["repository"]["url"]).rstrip("/")

    @cached_property
    def profiles(self) -> dict[str, Any]:
        content = yaml.safe_load((self.folder / "profiles.yml").read_text(encoding="utf-8")) or {}
        unknown = set(content) - {"published", "common", "chapters"}
        if unknown or content.get("published") not in PROFILES:
            raise TutorialError(
                "book/profiles.yml takes 'published' (one of the profiles), 'common' and 'chapters'."
            )
        for stem, entry in (content.get("chapters") or {}).items():
            bad = set(entry or {}) - {*PROFILES, "minutes"}
            if bad:
                raise TutorialError(f"book/profiles.yml: {stem} has the unknown entry '{min(bad)}'.")
        return content

    @property
    def published(self) -> str:
        return self.profiles["published"]

    @cached_property
    def claims(self) -> Claims:
        return Claims.read(self.folder / "claims.yml")

    def parameters(self, stem: str, profile: str) -> dict[str, Any]:
        """What a profile sets in a chapter: its own name, the common values, the chapter's values."""
        common = (self.profiles.get("common") or {}).get(profile) or {}
        chapter = ((self.profiles.get("chapters") or {}).get(stem) or {}).get(profile) or {}
        return {"profile": profile, **common, **chapter}

    def source(self, stem: str, profile: str) -> NotebookNode:
        return notebooks.read_source(self.sources[stem], self.parameters(stem, profile), self.repository)

    def notebook(self, stem: str) -> Path:
        return self.folder / f"{stem}.ipynb"

    def manifest(self) -> dict[str, dict[str, str]]:
        return _read_json(self.manifest_path)

    @cached_property
    def library_hash(self) -> str:
        """sha256 of the modules that chapters compute with (the installed library is this clone's)."""
        files = [
            path for path in sorted((self.root / "tutorial_lib").rglob("*.py")) if path.name not in _RUNNER
        ]
        return _hash_files(self.root, files)

    @cached_property
    def weights_hash(self) -> str:
        folder = self.root / "tutorial_lib" / "weights"
        return _hash_files(
            self.root, [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".md"]
        )

    def fingerprint(self, source: NotebookNode, profile: str) -> dict[str, str]:
        """What must be equal for the outputs of an earlier run to count as those of this one."""
        return {
            "profile": profile,
            "code": notebooks.code_hash(source),  # parameters included: they are written into their cell
            "library": self.library_hash,
            "weights": self.weights_hash,
        }


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
    with tempfile.TemporaryDirectory(prefix="tutorial-lib-") as temporary:
        if profile == SMOKE:  # a smoke run tests what is there now: no memory of earlier ones
            runs = Path(temporary)
        executed = {stem: _executed(book, stem, profile, runs, force, echo) for stem in chosen}
    numbers = {stem: reported(notebook) for stem, notebook in executed.items()}
    problems = compare(numbers, book.claims, profile, partial=bool(chapters))
    if problems:
        raise ClaimError(
            "\n".join(problems) + ("" if profile == SMOKE else f"\nThe notebooks are under {runs}.")
        )
    known = union([_published_numbers(book), *numbers.values()])
    finished = {
        stem: notebooks.publish(book.source(stem, profile), notebook, known, book.claims.claims)
        for stem, notebook in executed.items()
    }
    if not publishing:
        echo(f"{len(finished)} chapters ran in the profile '{profile}'; every claim and order holds.")
        return None
    manifest = {stem: entry for stem, entry in book.manifest().items() if stem in book.sources}
    for stem, notebook in finished.items():
        _write(book.notebook(stem), notebooks.dumps(notebook))
        fingerprint = book.fingerprint(book.source(stem, profile), profile)
        manifest[stem] = fingerprint | {"outputs": notebooks.outputs_hash(notebook)}
    _write(book.manifest_path, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    if chapters:
        _refill_others(book, set(chosen))
    refresh_pages(book)
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


def _executed(book: Book, stem: str, profile: str, runs: Path, force: bool, echo: Echo) -> NotebookNode:
    """The chapter's outputs: those published, those of an interrupted build, or those of a run made now."""
    source = book.source(stem, profile)
    fingerprint = book.fingerprint(source, profile)
    kept = runs / f"{stem}.ipynb"
    record = kept.with_suffix(".json")
    if not force:
        entry = book.manifest().get(stem, {})
        published = book.notebook(stem)
        if published.exists() and {key: entry.get(key) for key in fingerprint} == fingerprint:
            return notebooks.read(published)
        if kept.exists() and _read_json(record) == fingerprint:
            return notebooks.read(kept)
    echo(f"{stem}: executing (profile {profile})")
    runs.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    scratch = runs / f"{stem}.partial.ipynb"
    offline = profile in (SMOKE, "cpu")
    notebook = notebooks.execute(source, scratch, book.folder, offline=offline)
    notebooks.tidy(notebook, stem)
    _write(kept, notebooks.dumps(notebook))
    _write(record, json.dumps(fingerprint, sort_keys=True))
    scratch.unlink(missing_ok=True)
    return notebooks.read(kept)


def _published_numbers(book: Book) -> dict[str, Reported]:
    return union(
        reported(notebooks.read(book.notebook(stem))) for stem in book.sources if book.notebook(stem).exists()
    )


def _refill_others(book: Book, done: set[str]) -> None:
    """Chapters that were not chosen may cite numbers that just changed: fill their prose again."""
    for stem in book.sources:
        path = book.notebook(stem)
        if stem not in done and path.exists():
            try:
                _write(path, _republished(book, stem, _published_numbers(book)))
            except TutorialError:
                continue  # its code changed as well: `check` says so, and the next full build executes it


def _republished(book: Book, stem: str, numbers: Mapping[str, Reported]) -> str:
    """The file that book/NN.ipynb should be, given its source and its outputs."""
    executed = notebooks.read(book.notebook(stem))
    profile = book.manifest().get(stem, {}).get("profile", book.published)
    source = book.source(stem, profile)
    return notebooks.dumps(notebooks.publish(source, executed, numbers, book.claims.claims))


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
        env=os.environ | {"PYTHONUTF8": "1", "NO_COLOR": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if re.search("WARNING|ERROR|Error", line)]
        raise TutorialError(
            "the HTML build is strict and found:\n"
            + "\n".join(complaints[:40] or done.stderr.splitlines()[-20:])
        )
    page = book.root / "_build" / "html" / "index.html"
    echo(f"The book: {page.as_uri()}")
    return page


def check(book: Book) -> tuple[list[str], list[str]]:
    """(problems, notes), one sentence each: claims, tampered or outdated notebooks, digits typed by hand,
    text that should have been generated, directives that Colab would show raw. Executes nothing."""
    problems: list[str] = []
    notes: list[str] = []
    manifest = book.manifest()
    numbers: dict[str, dict[str, Reported]] = {}
    for stem in book.sources:
        try:
            notebook = notebooks.read(book.notebook(stem))
            numbers[stem] = reported(notebook)
            entry = manifest.get(stem, {})
            if notebooks.outputs_hash(notebook) != entry.get("outputs"):
                problems.append(
                    f"{stem}.ipynb: its outputs are not those of the run that published it; run make book."
                )
            wanted = book.fingerprint(book.source(stem, book.published), book.published)
            changed = [key for key in ("library", "weights") if entry.get(key) != wanted[key]]
            if changed:
                notes.append(
                    f"{stem}: the {' and '.join(changed)} changed since it was executed; run make book."
                )
        except TutorialError as error:
            problems.append(str(error))
    try:
        problems += compare(numbers, book.claims, book.published)
        known = union(numbers.values())
        for stem in numbers:
            problems += _check_chapter(book, stem, known)
        for path in book.pages:
            problems += _typed(path.name, path.read_text(encoding="utf-8"), known, book)
        problems += [
            f"{path.name}: generated text is out of date; run 'tutorial-lib check --fix'."
            for path, text in _refreshed(book).items()
            if path.read_text(encoding="utf-8") != text
        ]
    except ClaimError as error:
        problems.append(str(error))
    return problems, notes


def _check_chapter(book: Book, stem: str, numbers: Mapping[str, Reported]) -> list[str]:
    problems = []
    path = book.notebook(stem)
    try:
        if _republished(book, stem, numbers) != path.read_text(encoding="utf-8"):
            problems.append(
                f"{path.name} is not what {stem}.md and its outputs give; run make book, edit only the .md."
            )
    except TutorialError as error:
        problems.append(f"{stem}: {error}")
    for cell in notebooks.read(path).cells:
        if cell.cell_type == "markdown":
            raw = [match.group() for match in _RAW.finditer(cell.source)]
            problems += [
                f"{path.name}: Colab would show '{text[:60]}' raw; write plain Markdown." for text in raw
            ]
    for cell in book.source(stem, book.published).cells:
        if cell.cell_type == "markdown":
            problems += _typed(f"{stem}.md", cell.source, numbers, book)
    return problems


def _typed(where: str, text: str, numbers: Mapping[str, Reported], book: Book) -> list[str]:
    return [
        f"{where}: '{typed}' is typed by hand, but {name} is reported; write {{report}}`{name}` (or code: `{typed}`)."
        for typed, name in typed_by_hand(text, numbers, book.claims.claims)
    ]


def refresh_pages(book: Book) -> list[Path]:
    """Bring generated text up to date; returns the files that changed."""
    changed = [path for path, text in _refreshed(book).items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        _write(path, _refreshed(book)[path])
    return changed


def _refreshed(book: Book) -> dict[Path, str]:
    numbers = _published_numbers(book)
    blocks = {
        "badges": lambda: _badges(book),
        "chapters": lambda: _chapter_table(book, "book/"),  # as README.md links to them
        "book_chapters": lambda: _chapter_table(book, ""),
    }
    pages = {
        path: refresh(path.read_text(encoding="utf-8"), numbers, book.claims.claims, blocks)
        for path in book.pages
    }
    # the two files whose formats have no place for a reference to _config.yml
    lines = {
        "pyproject.toml": r'(?m)^(Repository = ").*(")$',
        "CITATION.cff": r'(?m)^(repository-code: ").*(")$',
    }
    for name, pattern in lines.items():
        path = book.root / name
        if path.exists():
            pages[path] = re.sub(pattern, rf"\g<1>{book.repository}\g<2>", path.read_text(encoding="utf-8"))
    return pages


def _colab(book: Book, stem: str) -> str:
    path = re.sub(r"^https://github\.com/", "", book.repository)
    return f"https://colab.research.google.com/github/{path}/blob/main/book/{stem}.ipynb"


def _badges(book: Book) -> str:
    workflow = f"{book.repository}/actions/workflows/checks.yml"
    return f"[![checks]({workflow}/badge.svg)]({workflow}) [repository]({book.repository})\n"


def _chapter_table(book: Book, folder: str) -> str:
    rows = ["| chapter | two CPU cores | T4 | |", "|---|---|---|---|"]
    for stem, path in book.sources.items():
        title = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.M)
        minutes = ((book.profiles.get("chapters") or {}).get(stem) or {}).get("minutes") or {}
        times = [f"{minutes[key]} min" if key in minutes else "" for key in ("cpu", "t4")]
        name = f"[{title.group(1) if title else stem}]({folder}{stem}.ipynb)"
        rows.append(f"| {name} | {times[0]} | {times[1]} | [Colab]({_colab(book, stem)}) |")
    return "\n".join(rows) + "\n"


def _hash_files(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that an interrupted build leaves the old one whole."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
