"""Correct, re-embed, rank by cosine, keep the best, stop: inversion as search in embedding space.

Morris et al. (2023, section 3) repeat *correct -> re-embed* with a beam ranked by distance in embedding space; their
released code ranks it by language-model probability unless told otherwise, and returns the last round's best. Here
candidates are always ranked by the cosine of their embedding with the target, and the search is best-first: each
round expands the ``beam_width`` best guesses that were not expanded before, so no
query is spent twice on one text and the best guess so far is never lost. Explained in chapter 3.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from tutorial_lib.corrector import Corrector
from tutorial_lib.edits import LocalEdits
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import CheckpointError, TutorialError
from tutorial_lib.inverter import Inverter

#: A guess this close to the target is taken to be the text: float32 embeddings of one text differ by less.
SOLVED = 1 - 2e-6
_POOL = 4  # unexpanded guesses kept per text, in beam widths
_ELITE = 8  # best guesses kept per text, expanded or not, for local edits
_ROWS = 512  # guesses corrected at once
_EDITED = 64  # guesses whose edits are listed at once
_EXPLORE = 0.25  # share of rounds that edit another than the best guess
#: A gradient is one forward and one backward pass, as much work as three embedded texts, and is counted so.
GRADIENT_QUERIES = 3


@dataclass(frozen=True)
class Step:
    """The best guess for one text after a number of correction rounds."""

    step: int  # correction rounds so far; 0 is the inverter's guess
    text: str
    cosine: float  # of its embedding with the target
    queries: int  # texts embedded for this target so far


@dataclass(frozen=True)
class Inversion:
    """Result of :func:`invert` for n vectors."""

    texts: list[str]  # best guess each
    cosines: np.ndarray  # float32 [n], of the best guess's embedding with the target
    queries: np.ndarray  # int64 [n], texts embedded per target
    steps: np.ndarray  # int64 [n], correction rounds until the text was solved or the search ended
    trace: list[list[Step]]  # per text, one row per round in which it took part

    def at(self, step: int) -> list[str]:
        """Best guess of each text after at most ``step`` correction rounds."""
        return [self._row(rows, step).text for rows in self.trace]

    def cosines_at(self, step: int) -> np.ndarray:
        """float32 [n]: cosine of :meth:`at`."""
        return np.array([self._row(rows, step).cosine for rows in self.trace], dtype=np.float32)

    def queries_at(self, step: int) -> np.ndarray:
        """int64 [n]: queries spent per text after at most ``step`` rounds."""
        return np.array([self._row(rows, step).queries for rows in self.trace], dtype=np.int64)

    @staticmethod
    def _row(rows: list[Step], step: int) -> Step:
        return next(row for row in reversed(rows) if row.step <= step)


@dataclass
class _Guess:
    text: str
    cosine: float
    embedding: torch.Tensor  # [d]
    edits: Iterator[str] | None = None  # local edits of it not tried yet, best first; None until they were listed


@dataclass
class _Search:
    """The search for one text."""

    seen: set[str] = field(default_factory=set)
    pool: list[_Guess] = field(default_factory=list)  # not expanded yet, best first
    elite: list[_Guess] = field(default_factory=list)  # best of all so far
    queries: int = 0
    trace: list[Step] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=np.random.default_rng)  # which guess to edit

    def add(self, guess: _Guess, keep: int) -> None:
        self.pool.append(guess)
        self.pool.sort(key=lambda other: -other.cosine)
        del self.pool[keep:]
        self.elite.append(guess)
        self.elite.sort(key=lambda other: -other.cosine)
        del self.elite[_ELITE:]

    @property
    def best(self) -> _Guess | None:
        return self.elite[0] if self.elite else None

    def record(self, step: int) -> None:
        assert self.best is not None
        self.trace.append(Step(step, self.best.text, self.best.cosine, self.queries))


def invert(
    embeddings: np.ndarray,
    embedder: Embedder,
    inverter: Inverter,
    corrector: Corrector | None = None,
    *,
    steps: int = 50,
    beam_width: int = 8,
    branch: int | None = None,
    edits: int = 0,
    max_queries: int | None = None,
    progress: bool | None = None,
    on_step: Callable[[int, list[Step]], None] | None = None,
) -> Inversion:
    """Recover the texts behind ``embeddings`` (float32 [n, d]).

    ``steps`` correction rounds at most (0: the inverter alone); each expands ``beam_width`` guesses into
    ``branch`` candidates (default: as many as the beam is wide), and tries up to ``edits`` local edits of one of
    the best guesses (see :mod:`tutorial_lib.edits`). A text leaves the search when
    its cosine is about 1, when it has no guess left to expand, or when its next round could exceed ``max_queries``.
    ``on_step(step, rows)`` is called after every round with the best guess of each text. Deterministic.

    With a table for an embedder (``parquet:FILE``) nobody can be asked: ``steps`` is 0, and cosines are NaN.

    Raises :class:`VectorError` for wrong shapes, NaN, infinity and zero vectors, :class:`CheckpointError` when
    the models were made for another embedder, and :class:`TutorialError` for parameters out of range.
    """
    branch = branch or beam_width
    if (
        steps < 0
        or beam_width < 1
        or branch < 1
        or edits < 0
        or (max_queries is not None and max_queries < beam_width)
    ):
        raise TutorialError(
            f"steps={steps}, beam_width={beam_width}, branch={branch}, edits={edits}, max_queries={max_queries}: "
            "steps and edits cannot be negative, widths are at least 1, and max_queries at least the beam width."
        )
    closed = getattr(embedder, "closed", False)
    if closed and steps:
        raise TutorialError(
            f"{embedder.name} is a table with nobody to ask for a guess's vector, so only first guesses can be had; "
            "pass steps=0, or an embedder that answers."
        )
    if steps and corrector is None:
        raise TutorialError(
            f"{steps} correction steps were asked for without a corrector; pass one, or steps=0."
        )
    for model in (inverter, corrector):
        if model is not None and model.config.embedder_name != embedder.name:
            raise CheckpointError(
                f"The {model.kind} was made for {model.config.embedder_name} and the embedder is {embedder.name}; "
                "load the pair that belongs together."
            )
    target = inverter.check_vectors(embeddings)
    if closed:
        return _unasked(target, embedder, inverter, beam_width)
    # Seeded by its own vector, a text's search does not depend on the texts beside it.
    searches = [_Search(rng=np.random.default_rng(zlib.crc32(row.tobytes()))) for row in target.cpu().numpy()]
    if not searches:
        return _result(searches)
    unit = torch.nn.functional.normalize(target, dim=1)

    proposals = [
        row
        for chunk in target.split(max(1, _ROWS // beam_width))
        for row in _texts(
            inverter, inverter.propose(chunk, candidates=beam_width, beams=beam_width).ids, embedder
        )
    ]
    _embed_new(dict(enumerate(proposals)), searches, unit, embedder, _POOL * beam_width)
    _finish_round(0, range(len(searches)), searches, on_step)

    local = LocalEdits(embedder, inverter, corrector) if edits and corrector is not None else None
    spend = round_queries(corrector, beam_width, branch, edits)
    bar = tqdm(range(1, steps + 1), desc="Correcting", unit="round", disable=not progress)
    for step in bar:
        active = [
            index
            for index, search in enumerate(searches)
            if (search.pool or local)
            and search.best is not None
            and search.best.cosine < SOLVED
            and (max_queries is None or search.queries + spend <= max_queries)
        ]
        if not active:
            break
        assert corrector is not None
        rows = _expand(active, searches, target, embedder, corrector, beam_width, branch)
        if local is not None:
            _add_edits(rows, active, searches, target, embedder, local, edits)
        _embed_new(rows, searches, unit, embedder, _POOL * beam_width)
        _finish_round(step, active, searches, on_step)
        bar.set_postfix(open=len(active))
    bar.close()
    return _result(searches)


def round_queries(corrector: Corrector | None, beam_width: int, branch: int, edits: int) -> int:
    """Queries that a round of :func:`invert` costs at most, per text."""
    each = branch + (GRADIENT_QUERIES if corrector is not None and corrector.reads_slopes else 0)
    return beam_width * each + edits


def _unasked(target: torch.Tensor, embedder: Embedder, inverter: Inverter, beam_width: int) -> Inversion:
    """First guesses without an embedder to ask: the likeliest of each beam, for no query, at an unknown cosine."""
    guesses: list[str] = []
    for chunk in target.split(max(1, _ROWS // beam_width)):
        ids = inverter.propose(chunk, candidates=1, beams=beam_width).ids
        guesses += (row[0] for row in _texts(inverter, ids, embedder))
    return _result([_Search(trace=[Step(0, guess, float("nan"), 0)]) for guess in guesses])


def _expand(
    active: list[int],
    searches: list[_Search],
    target: torch.Tensor,
    embedder: Embedder,
    corrector: Corrector,
    beam_width: int,
    branch: int,
) -> dict[int, list[str]]:
    """Correct the best unexpanded guesses of every active text: {text index: candidate texts}."""
    owners: list[int] = []
    guesses: list[_Guess] = []
    for index in active:
        pool = searches[index].pool
        owners += [index] * min(beam_width, len(pool))
        guesses += pool[:beam_width]
        del pool[:beam_width]
    rows: dict[int, list[str]] = {index: [] for index in active}
    if not guesses:
        return rows
    tokens = embedder.token_ids([guess.text for guess in guesses])
    ids = corrector.to_model_ids(tokens)
    embeddings = torch.stack([guess.embedding for guess in guesses])
    size = max(1, _ROWS // branch)
    for offset in range(0, len(guesses), size):
        part = slice(offset, offset + size)
        wanted = target[owners[part]]
        slope = None
        if corrector.reads_slopes:
            slope = slopes(embedder, tokens[part], wanted, ids.shape[1])
            embedder.queries += GRADIENT_QUERIES * len(tokens[part])
            for owner in owners[part]:
                searches[owner].queries += GRADIENT_QUERIES
        proposed = corrector.propose(
            wanted, ids[part], embeddings[part], slope, candidates=branch, beams=branch
        )
        for owner, texts in zip(owners[part], _texts(corrector, proposed.ids, embedder), strict=True):
            rows[owner] += texts
    return rows


def slopes(
    embedder: Embedder, tokens: list[list[int]], target: torch.Tensor, length: int
) -> torch.Tensor:
    """Slopes of n guesses (embedder ids) towards targets [n, d], as the corrector reads them: [n, length, width].

    Zero where a guess has no piece. The caller counts the queries (:data:`GRADIENT_QUERIES` each).
    """
    rows = embedder.gradients(tokens, target)
    out = torch.zeros(len(rows), length, rows[0].shape[1], device=rows[0].device)
    for row, slope in enumerate(rows):
        out[row, : len(slope)] = slope
    return out


def _add_edits(
    rows: dict[int, list[str]],
    active: list[int],
    searches: list[_Search],
    target: torch.Tensor,
    embedder: Embedder,
    local: LocalEdits,
    edits: int,
) -> None:
    """Add up to ``edits`` untried edits of one good guess per text to its candidates.

    The best guess in most rounds, one of the other good ones in some, lest the search circle one optimum.
    """
    chosen: list[tuple[int, _Guess]] = []
    for index in active:
        search = searches[index]
        pick = int(search.rng.integers(len(search.elite))) if search.rng.random() < _EXPLORE else 0
        chosen.append((index, search.elite[pick]))
    new = [(index, guess) for index, guess in chosen if guess.edits is None]
    for offset in range(0, len(new), _EDITED):
        part = new[offset : offset + _EDITED]
        proposals = local.propose(
            embedder.token_ids([guess.text for _, guess in part]),
            torch.stack([guess.embedding for _, guess in part]),
            target[[index for index, _ in part]],
            [searches[index].rng for index, _ in part],
        )
        for (_, guess), texts in zip(part, proposals, strict=True):
            guess.edits = iter(texts)
    for index, guess in chosen:
        assert guess.edits is not None
        tried = searches[index].seen.union(rows[index])
        rows[index] += itertools.islice((text for text in guess.edits if text not in tried), edits)


def _texts(model: Inverter | Corrector, ids: torch.Tensor, embedder: Embedder) -> list[list[str]]:
    """Candidate ids [n, m, t] -> n lists of m texts."""
    n, m, _ = ids.shape
    flat = embedder.decode(model.to_embedder_ids(ids.reshape(n * m, -1)))
    return [flat[row * m : (row + 1) * m] for row in range(n)]


def _embed_new(
    rows: dict[int, list[str]], searches: list[_Search], unit: torch.Tensor, embedder: Embedder, keep: int
) -> None:
    """Embed the candidates not met before in this search, and add them to their pools."""
    owners: list[int] = []
    texts: list[str] = []
    for index, candidates in rows.items():
        search = searches[index]
        fresh = [text for text in dict.fromkeys(candidates) if text.strip() and text not in search.seen]
        if search.best is None and not fresh:
            fresh = ["."]  # an inverter that writes nothing at all still needs a guess to correct
        search.seen.update(fresh)
        search.queries += len(fresh)
        owners += [index] * len(fresh)
        texts += fresh
    if not texts:
        return
    vectors = torch.from_numpy(embedder.encode(texts, truncate=True, progress=False)).to(unit.device)
    cosines = (torch.nn.functional.normalize(vectors, dim=1) * unit[owners]).sum(1).tolist()
    for owner, text, vector, cosine in zip(owners, texts, vectors, cosines, strict=True):
        searches[owner].add(_Guess(text, cosine, vector), keep)


def _finish_round(
    step: int,
    active: list[int] | range,
    searches: list[_Search],
    on_step: Callable[[int, list[Step]], None] | None,
) -> None:
    for index in active:
        searches[index].record(step)
    if on_step is not None:
        on_step(step, [search.trace[-1] for search in searches])


def _result(searches: list[_Search]) -> Inversion:
    last = [search.trace[-1] for search in searches]
    return Inversion(
        texts=[row.text for row in last],
        cosines=np.array([row.cosine for row in last], dtype=np.float32),
        queries=np.array([row.queries for row in last], dtype=np.int64),
        steps=np.array([row.step for row in last], dtype=np.int64),
        trace=[search.trace for search in searches],
    )
