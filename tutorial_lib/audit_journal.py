"""What a long run has finished, kept so that a kill at any moment loses nothing: audits (chapter 4), and the
paper's table (Reproduce the paper)."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import StoreError, TutorialError

if TYPE_CHECKING:
    from .audit_sample import Scan


def finished_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a journal; a last line that a kill cut short is left out."""
    entries = []
    # Only "\n" ends an entry: splitlines() would also split at the separators that a text itself may hold.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise TutorialError(
                f"line {number} of {str(path)!r} is damaged: delete the folder and begin again"
            ) from error
    return entries


class Journal:
    """Append-only log of a run: one JSON object a line, on the disk before `append` returns.

    what: the run in the words of its errors. settings: refused when they differ from those it was started with.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool, what: str = "audit") -> None:
        self.what = what
        self.path, self.sample = folder / "journal.jsonl", folder / "sample.npz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.entries = self._read()
        except OSError as error:
            raise StoreError(
                f"the {what} cannot write to {str(folder)!r} ({error.strerror}): choose another out folder"
            ) from error
        if self.entries and not resume:
            raise TutorialError(
                f"{str(folder)!r} already holds an {what}: pass resume=True (--resume), or choose "
                "another out folder"
            )
        if self.entries and self.entries[0].get("settings") != settings:
            old = self.entries[0].get("settings", {})
            changed = ", ".join(sorted(k for k in {**settings, **old} if old.get(k) != settings.get(k)))
            raise TutorialError(
                f"the {what} in {str(folder)!r} was started with another {changed}: choose another out folder"
            )
        if not self.entries:
            self.append({"settings": settings})

    def _read(self) -> list[dict[str, Any]]:
        """Finished lines; a last line cut short by a kill is dropped from the file as well."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        return finished_lines(self.path)

    def find(self, key: str) -> Any:
        """The value of the first entry with this key, None if there is none."""
        return next((entry[key] for entry in self.entries if key in entry), None)

    @property
    def rows_done(self) -> int:
        """Rows inverted so far."""
        return sum(len(entry.get("rows_done", ())) for entry in self.entries)

    def append(self, entry: dict[str, Any]) -> None:
        """Write an entry down, all of it or nothing. Raises StoreError when it cannot be written."""
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            length = os.fstat(descriptor).st_size
            try:
                left = memoryview(line)
                while left:  # a nearly full disk takes a part
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            except BaseException:
                with suppress(OSError):  # half a line would damage the next one
                    os.ftruncate(descriptor, length)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(
                f"the {self.what} cannot write {str(self.path)!r} ({error.strerror}): free space, then resume"
            ) from error
        self.entries.append(entry)

    def save_sample(self, found: Scan) -> None:
        """The sample, written beside its place and moved there, so that it is whole or absent.

        Raises StoreError when it cannot be written, and leaves no part of it behind.
        """
        part = self.sample.with_suffix(".part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                np.savez(
                    file,
                    vectors=found.vectors,
                    text=np.frombuffer(json.dumps([found.ids, found.texts]).encode(), dtype=np.uint8),
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.sample)
        except BaseException as error:
            with suppress(OSError):  # the sample is private, and nobody would look for it under this name
                part.unlink()
            if isinstance(error, OSError):
                raise StoreError(
                    f"the {self.what} cannot write {str(self.sample)!r} ({error.strerror}): free space, then resume"
                ) from error
            raise

    def load_sample(self, entry: dict[str, Any]) -> Scan:
        from .audit_sample import Scan  # it brings in all that an audit needs

        with np.load(self.sample, allow_pickle=False) as data:
            ids, texts = json.loads(data["text"].tobytes())
            return Scan(entry["rows"], entry["skipped"], tuple(entry["norm"]), ids, data["vectors"], texts)
