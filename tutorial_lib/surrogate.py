"""A surrogate: variants chosen by a model of the embedder that learns from every answer it gave for this target.

The search of :mod:`tutorial_lib.variants` knows what a *piece* does to a vector, and leaves the order of the pieces to
the inverter's sense of what people write. But a transformer's vector has the order in it: what stands beside what moves
it, and the texts embedded so far are examples of that too. :class:`Surrogate` learns both, by ridge regression of the
vectors on the shares of pieces, of pairs of neighbours and of pairs with a gap, a string kernel as in the Bayesian
optimisation of texts (Moss et al. 2020, *BOSS*). So a round of :func:`surrogate_search` foresees which of more than a
thousand variants, new orders among them, will lie near the target, and embeds those. It spends no query on that, asks
for no gradient and needs no other network. Explained in chapter 6; measured on the page *What we tried*.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import linalg, sparse
from torch import Tensor
from tqdm.auto import tqdm

from tutorial_lib.corrector import Corrector
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import CheckpointError, TutorialError
from tutorial_lib.inverter import Inverter
from tutorial_lib.neighbours import NEAREST, Neighbours, PieceValues, Read, runs, score
from tutorial_lib.neighbours import _best as best_of
from tutorial_lib.search import SOLVED, Inversion, Step
from tutorial_lib.variants import BEAM, Guess, Population, Variants

_LEARNT = 1000  # nearest texts that are learnt from
_RIDGE = 1e-3
_SHARPNESS = 12.0  # a text farther by 0.01 of cosine counts less by a factor of e^-0.12 ...
_LEAST = 0.02  # ... but never less than so much of the nearest one
_PAIRS = 0.3  # weight of pairs in the kernel, beside 1 for pieces
_GAPS = (2, 3)  # distances of the pieces of other pairs, which weigh less by their square
_BEGIN, _END = -1, -2  # beside the first piece and the last one
_RANDOM = 24  # random variants read for sense in a round ...
_CHANGED = 48  # ... texts with one other piece ...
_ORDERS = 24  # ... and texts in another order, ...
_SIFTED = 16  # ... each chosen by the surrogate among so many times as many
_NOISE = 0.3  # Gumbel noise on the worth of those it chooses among
_POOL = 600  # pieces that may be put in: those proposed most often
SLACK = 4  # pieces a variant may be longer than what the weights were trained for

Feature = int | tuple[int, int, int]  # a piece, or two pieces and their distance


def features(ids: tuple[int, ...]) -> Mapping[Feature, float]:
    """What a text is to the surrogate: shares of its pieces, of its neighbours (ends included) and of other pairs."""
    return _features(ids, _GAPS, _PAIRS)


@functools.lru_cache(maxsize=8192)  # the texts learnt from come again in every round
def _features(ids: tuple[int, ...], gaps: tuple[int, ...], pairs: float) -> Mapping[Feature, float]:
    found: dict[Feature, float] = {}
    share = 1 / max(1, len(ids))
    for piece in ids:
        found[piece] = found.get(piece, 0.0) + share
    for distance in (1, *gaps):
        row = (_BEGIN, *ids, _END) if distance == 1 else ids
        weight = pairs**0.5 * share / distance
        for first, second in zip(row, row[distance:], strict=False):
            pair = (first, second, distance)
            found[pair] = found.get(pair, 0.0) + weight
    return found


class Surrogate(PieceValues):
    """What pieces and pairs of pieces do to the vector, learnt from the texts embedded so far for one target.

    Ridge regression of unit embeddings [d] on :meth:`features`, near texts counting most, in its dual form, the smaller
    one with many more features than texts.
    """

    def features(self, ids: tuple[int, ...]) -> Mapping[Feature, float]:
        """What a text is to this model; a subclass may know more or less of it."""
        return features(ids)

    def fit(self) -> None:
        """Learn from the nearest texts remembered."""
        kept = np.argsort(-np.array(self._cosines), kind="stable")[:_LEARNT]
        texts, cosines = [self._texts[i] for i in kept], np.array([self._cosines[i] for i in kept])
        vectors = np.stack([self._vectors[i] for i in kept]).astype(np.float64)
        rows = [self.features(text) for text in texts]
        self._column = {}
        for row in rows:
            for feature in row:
                self._column.setdefault(feature, len(self._column))  # type: ignore[arg-type]
        shares = self._matrix(rows)
        weights = np.exp(_SHARPNESS * (cosines - cosines.max())) + _LEAST
        mean = weights / weights.sum()
        kernel = (shares @ shares.T).toarray().astype(np.float64)
        level = kernel @ mean
        kernel += mean @ level - level[:, None] - level  # of centred features
        kernel[np.diag_indices_from(kernel)] += _RIDGE / weights
        dual = linalg.solve(kernel, vectors - mean @ vectors, assume_a="pos")
        self._effects = shares.T @ dual.astype(np.float32)  # [features, d]

    def moved(
        self, texts: Sequence[tuple[int, ...]], parents: Sequence[tuple[int, ...]], known: np.ndarray
    ) -> np.ndarray:
        """Expected unit embeddings [n, d] of texts, each made from a parent whose embedding [n, d] is known."""
        row = {parent: number for number, parent in enumerate(dict.fromkeys(parents))}
        before = self._foreseen(list(row))[[row[parent] for parent in parents]]
        known = known / np.linalg.norm(known, axis=1, keepdims=True)
        expected = known + self._foreseen(texts) - before
        return expected / np.linalg.norm(expected, axis=1, keepdims=True)

    def _foreseen(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n, d], up to a constant."""
        return self._matrix([self.features(text) for text in texts]) @ self._effects

    def _matrix(self, rows: Sequence[Mapping[Feature, float]]) -> sparse.csr_array:
        """[n, features]: rows of features, those never met left out."""
        columns: Mapping[Feature, int] = self._column  # type: ignore[assignment]
        known = [[(columns[feature], value) for feature, value in row.items() if feature in columns] for row in rows]
        starts = np.cumsum([0, *(len(row) for row in known)])
        flat = [entry for row in known for entry in row]
        indices, values = (
            np.array([i for i, _ in flat], dtype=np.int64),
            np.array([v for _, v in flat], dtype=np.float32),
        )
        return sparse.csr_array((values, indices, starts), shape=(len(rows), len(columns)))


Priced = dict[tuple[int, ...], tuple[int, float]]  # texts, with the guess each comes from and roughly their nats


def changed(beside: Neighbours, read: Sequence[Read], longest: int, count: int, rng: np.random.Generator) -> Priced:
    """About ``count`` texts with one piece replaced, put in or left out, drawn by what pieces and joins promise."""
    parts, origin = [], []
    for number, guess in enumerate(read):
        pool = beside.pool[beside.pool < guess.places.pieces.shape[1]]
        kinds = {"replace": beside.replacing(guess, pool)}
        if len(guess.ids) < longest:
            kinds["insert"] = beside.inserting(guess, pool)
        if len(guess.ids) > 1:
            kinds["drop"] = beside.dropping(guess)
        for kind, expected in kinds.items():
            parts.append(expected)
            origin.append((number, kind, pool))
    found: Priced = {}
    for part, (place, column) in best_of([worth for worth, _ in parts], count, _NOISE, rng):
        number, kind, pool = origin[part]
        ids = read[number].ids
        new = () if kind == "drop" else (int(beside.pieces[pool[column]]),)
        worth, cosine = parts[part][0][place, column], parts[part][1][place, column]
        text = (*ids[:place], *new, *ids[place + (kind != "insert") :])
        found.setdefault(text, (number, _nats(worth, cosine, beside.sense)))
    return found


def reordered(beside: Neighbours, read: Sequence[Read], count: int, rng: np.random.Generator) -> Priced:
    """The same of texts in which two neighbouring runs of pieces have changed places."""
    longer = [(number, guess) for number, guess in enumerate(read) if len(guess.ids) > 1]
    parts = [beside.exchanging(guess)[None] for _, guess in longer]
    found: Priced = {}
    for part, (_, at) in best_of(parts, count, _NOISE, rng):
        number, guess = longer[part]
        i, j, k = (int(places[at]) for places in runs(len(guess.ids)))
        text = guess.ids[:i] + guess.ids[j:k] + guess.ids[i:j] + guess.ids[k:]
        found.setdefault(text, (number, _nats(parts[part][0, at], guess.cosine, beside.sense)))
    return found


def _nats(worth: float, cosine: float, sense: float) -> float:
    """What :func:`tutorial_lib.neighbours.score` took off for sense."""
    return float(score(cosine, 0.0) - worth) / sense


class Guided(Variants):
    """Variants whose cosines a :class:`Surrogate` foresees."""

    def begin(self, target: Tensor) -> Population:
        """A population for a target [d], still empty, with a surrogate."""
        population = super().begin(target)
        population.values = Surrogate()
        return population

    def propose(self, population: Population, longest: int) -> list[str]:
        """As without a surrogate, but learning anew in every round, so that the last answers count at once."""
        population.rounds = 0  # of which every fourth fits the values: here each does
        return super().propose(population, longest)

    def promising(self, population: Population, made: Mapping[tuple[int, ...], Guess]) -> dict[tuple[int, ...], float]:
        """Of random variants those to read, with the cosines expected of them."""
        return self.sift(population, dict(made), np.zeros(len(made)), _RANDOM, 0.0)

    def near(
        self, population: Population, parents: Sequence[Guess], longest: int, sense: float
    ) -> dict[tuple[int, ...], float]:
        """Of all texts one change away from the parents those to read, with the cosines expected of them.

        Pieces and joins price them all at once (:mod:`tutorial_lib.neighbours`); of the thousand or so that seem best
        the surrogate chooses.
        """
        parents = [parent for parent in parents if parent.places is not None]
        counts = np.array([population.pieces[piece] for piece in population.known])
        pool = np.argsort(-counts, kind="stable")[:_POOL]
        beside = Neighbours(population.values, population.unit, population.known, pool, sense)
        read = [Read(p.ids, p.unit, p.cosine, p.places) for p in parents if p.places is not None]
        out: dict[tuple[int, ...], float] = {}
        for found, count in (
            (changed(beside, read, longest, _SIFTED * _CHANGED, population.rng), _CHANGED),
            (reordered(beside, read, _SIFTED * _ORDERS, population.rng), _ORDERS),
        ):
            fresh = [text for text in found if text not in population.tried and text not in out]
            nats = np.array([found[text][1] for text in fresh])
            out |= self.sift(population, {text: parents[found[text][0]] for text in fresh}, nats, count, sense)
        return out

    @staticmethod
    def sift(
        population: Population, texts: Mapping[tuple[int, ...], Guess], nats: np.ndarray, count: int, sense: float
    ) -> dict[tuple[int, ...], float]:
        """The ``count`` best of texts, each with the guess it was made from, and the cosines foreseen of them."""
        if not texts:
            return {}
        rows, parents = list(texts), list(texts.values())
        known = np.stack([parent.unit for parent in parents])
        cosines = population.values.moved(rows, [parent.ids for parent in parents], known) @ population.unit
        worth = score(np.minimum(cosines, NEAREST), nats, sense)
        return {rows[index]: float(cosines[index]) for index in np.argsort(-worth, kind="stable")[:count]}


def surrogate_search(
    embeddings: np.ndarray,
    embedder: Embedder,
    inverter: Inverter,
    corrector: Corrector,
    *,
    steps: int = 60,
    variants: int = 32,
    max_queries: int | None = None,
    progress: bool | None = None,
) -> Inversion:
    """Recover the texts behind ``embeddings`` (float32 [n, d]) by recombining guesses that a surrogate chooses.

    The search of :func:`tutorial_lib.breed` with another judge: begins with up to :data:`~tutorial_lib.variants.BEAM`
    first guesses, and each of up to ``steps`` rounds embeds ``variants`` new texts for every target, half of them
    sampled first guesses until these are used up. A text leaves the search when its cosine is about 1, when nothing new
    can be made of its guesses, or when its next round could exceed ``max_queries``. Deterministic; one target after the
    other, so that it does not matter which stand beside it.

    Raises :class:`VectorError` for wrong shapes, NaN, infinity and zero vectors, :class:`CheckpointError` when the
    models were made for another embedder, and :class:`TutorialError` for parameters out of range, and for a table,
    which has nobody to ask.
    """
    if steps < 0 or variants < 1 or (max_queries is not None and max_queries < BEAM):
        raise TutorialError(
            f"steps={steps}, variants={variants}, max_queries={max_queries}: steps cannot be negative, variants are at "
            f"least 1, and max_queries at least {BEAM}, the first guesses."
        )
    if getattr(embedder, "closed", False):
        raise TutorialError(f"{embedder.name} is a table with nobody to ask for a guess's vector, which variants need.")
    for model in (inverter, corrector):
        if model.config.embedder_name != embedder.name:
            raise CheckpointError(
                f"The {model.kind} was made for {model.config.embedder_name} and the embedder is {embedder.name}; "
                "load the pair that belongs together."
            )
    guided = Guided(embedder, inverter, corrector)
    budget = np.inf if max_queries is None else max_queries
    targets = tqdm(inverter.check_vectors(embeddings), desc="Searching", unit="text", disable=not progress)
    trace = [list(_rounds(guided, target, steps, variants, budget)) for target in targets]
    last = [rows[-1] for rows in trace]
    return Inversion(
        texts=[row.text for row in last],
        cosines=np.array([row.cosine for row in last], dtype=np.float32),
        queries=np.array([row.queries for row in last], dtype=np.int64),
        steps=np.array([row.step for row in last], dtype=np.int64),
        trace=trace,
    )


def _rounds(guided: Guided, target: Tensor, steps: int, variants: int, budget: float) -> Iterator[Step]:
    """The best guess for one target after each round."""
    population, queries = guided.begin(target), 0
    new, longest = guided.first(population), guided.inverter.config.max_tokens + SLACK
    for step in range(steps + 1):
        guided.embed({0: population}, {0: new})
        queries += len(new)
        nearest = population.nearest
        assert nearest is not None
        yield Step(step, nearest.text, nearest.cosine, queries)
        if nearest.cosine >= SOLVED or queries + variants > budget or step == steps:
            return
        new = guided.next(population, variants, longest)
        if not new:
            return
