"""Where the parts of the book are, and what is already known about each chapter.

    Book                 a clone of the repository: sources, pages, profiles, claims, manifest, fingerprints
    published_numbers    what the published chapters report
    republished          the notebook file that a chapter's source and its outputs give

`tutorial_lib.build` changes these files, `tutorial_lib.verify` checks them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from . import notebooks
from .claims import Claims, Reported, read_yaml, reported, union
from .errors import TutorialError
from .reach import bare, reached
from .runtime import PROFILES

# Modules that decide how a chapter is built or started, or what is written beside weights, but not what is computed.
_RUNNER = {
    "book.py", "build.py", "cards.py", "cli.py", "cli_common.py", "cli_data.py", "cli_reproduce.py", "cli_train.py",
    "notebooks.py", "prose.py", "reach.py", "verify.py",
}  # fmt: skip


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
        repository = read_yaml(self.root / "_config.yml").get("repository")
        if not isinstance(repository, dict) or "url" not in repository:
            raise TutorialError("_config.yml names no repository; give it as repository: {url: ...}.")
        return str(repository["url"]).rstrip("/")

    @cached_property
    def profiles(self) -> dict[str, Any]:
        content = read_yaml(self.folder / "profiles.yml")
        unknown = set(content) - {"published", "common", "chapters"}
        if unknown or content.get("published") not in PROFILES:
            raise TutorialError(
                "book/profiles.yml takes 'published' (one of the profiles), 'common' and 'chapters'."
            )
        for profile, values in _mapping("common", content.get("common")).items():
            _mapping(profile, values)
        for stem, entry in _mapping("chapters", content.get("chapters")).items():
            for profile, values in _mapping(stem, entry).items():
                _mapping(f"{stem}: {profile}", values)
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
        entries = read_json(self.manifest_path)
        for stem, entry in entries.items():
            if not isinstance(entry, dict):
                raise TutorialError(
                    f"manifest.json has no object for {stem}; fetch it again, or delete it and run make book."
                )
        return entries

    def library_hash(self, source: NotebookNode) -> str:
        """sha256 of what a chapter computes and draws with (the installed library is this clone's).

        Of modules, those it reaches, without comments and docstrings; of the package's other files, all.
        """
        package = self.root / "tutorial_lib"
        modules = reached(package, notebooks.code_of(source), _RUNNER)
        digest = hashlib.sha256()
        for path in sorted(package.rglob("*")):
            name = path.relative_to(package)
            if not path.is_file() or {"weights", "__pycache__"} & {*name.parts} or path.suffix == ".md":
                continue
            content = path.read_bytes()
            if path.suffix == ".py":
                if path not in modules:
                    continue
                content = bare(content.decode()).encode()
            digest.update(name.as_posix().encode() + b"\0" + hashlib.sha256(content).digest())
        return digest.hexdigest()

    @cached_property
    def weights_hash(self) -> str:
        """sha256 of the shipped weights; what was said or measured of them afterwards changes no chapter."""
        folder = self.root / "tutorial_lib" / "weights"
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return _hash_files(self.root, [path for path in files if path.suffix != ".md" and path.name != "scores.json"])

    def fingerprint(self, source: NotebookNode, profile: str) -> dict[str, str]:
        """What must be equal for the outputs of an earlier run to count as those of this one."""
        return {
            "profile": profile,
            "code": notebooks.code_hash(source),  # parameters included: they are written into their cell
            "library": self.library_hash(source),
            "weights": self.weights_hash,
        }


def _mapping(name: str, value: Any) -> dict[str, Any]:
    """A part of profiles.yml, empty where nothing is said. Raises TutorialError when it is anything else."""
    if value is not None and not isinstance(value, dict):
        raise TutorialError(f"book/profiles.yml: '{name}' is {value!r}; it should be a mapping, key: value.")
    return value or {}


def published_numbers(book: Book) -> dict[str, Reported]:
    return union(
        reported(notebooks.read(book.notebook(stem))) for stem in book.sources if book.notebook(stem).exists()
    )


def republished(book: Book, stem: str, numbers: Mapping[str, Reported]) -> str:
    """The file that book/NN.ipynb should be, given its source and its outputs."""
    executed = notebooks.read(book.notebook(stem))
    profile = book.manifest().get(stem, {}).get("profile", book.published)
    source = book.source(stem, profile)
    return notebooks.dumps(notebooks.publish(source, executed, numbers, book.claims.claims))


def _hash_files(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty when there is none. Raises TutorialError naming the file and the line."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except ValueError as error:  # not JSON, or not even text
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = getattr(error, "lineno", data.count(b"\n", 0, start) + 1)
        raise TutorialError(
            f"{path.name}, line {line}, is not valid JSON; fetch it again, or delete it and run make book."
        ) from error
    if not isinstance(content, dict):
        raise TutorialError(
            f"{path.name}, line 1, begins no JSON object; fetch it again, or delete it and run make book."
        )
    return content


def write(path: Path, text: str) -> None:
    """Replace a file in one step, so that an interrupted build leaves the old one whole."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
