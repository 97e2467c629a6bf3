"""Errors a reader of the book can act on.

Every message is one sentence that says what was given, what was expected and what to do; the command
line prints it alone (no stack trace) and exits with status 2.
"""

from __future__ import annotations


class TutorialError(ValueError):
    """A problem with what the caller gave: text, vectors, a name, a file or a parameter."""


class TextError(TutorialError):
    """A text the embedder cannot take as it is: empty, too long, or not a string."""


class VectorError(TutorialError):
    """Vectors of the wrong shape or dtype, or with values that are not finite."""


class CheckpointError(TutorialError):
    """Weights that are missing, truncated, tampered with, or made for another embedder."""


class CorpusError(TutorialError):
    """A corpus that cannot give what was asked of it."""


class ClaimError(TutorialError):
    """A reported number that the book does not claim, or a claim that no longer holds."""


class StoreError(TutorialError):
    """A vector store that is missing, cannot be opened, or holds no vectors where they were expected."""
