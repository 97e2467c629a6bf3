"""A surrogate: variants chosen by a model of the embedder that learns from every answer it gave for this target.

The search of :mod:`tutorial_lib.variants` knows what a *piece* does to a vector, and leaves the order of the pieces to
the inverter's sense of what people write. But the texts embedded so far say more: a
:class:`~tutorial_lib.surrogate_model.Surrogate` learns from them what pairs of pieces do. So a round of
:func:`surrogate_search` foresees which of more than a thousand variants, new orders among them, will lie near the
target, and embeds those. It spends no query on that, asks for no gradient and needs no other network.

Told what each word says alone, the model is good enough to be asked again before the embedder is: the search goes on
from texts that nobody has embedded, where the model foresees them, and leaps several changes in one query, out of
places where no single change is better. Explained in chapter 6; measured on the page *What we tried*.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tutorial_lib import parallel
from tutorial_lib.corrector import Corrector
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import TutorialError, VectorError
from tutorial_lib.inverter import Inverter
from tutorial_lib.neighbours import NEAREST, Neighbours, Read, score
from tutorial_lib.search import SOLVED, Inversion, Step
from tutorial_lib.surrogate_model import Surrogate, WordsAlone
from tutorial_lib.variants import SLACK, Guess, Population, Variants, check_arguments, inversion
from tutorial_lib.word_lists import WordList

_RANDOM = 24  # random variants read for sense in a round ...
_CHANGED = 48  # ... texts with one other piece ...
_ORDERS = 24  # ... and texts in another order, ...
_SIFTED = 16  # ... each chosen by the surrogate among so many times as many
_NOISE = 0.3  # Gumbel noise on the worth of those it chooses among
_POOL = 600  # pieces that may be put in: those proposed most often
_ASKED = 8  # best guesses in which a place is sought ...
_CONSIDERED = 2000  # ... for so many words, those that lead farthest towards the target by themselves, ...
_OFFERED = 24  # of which so many a round join the pieces that may be put in
_WIDE = 8  # texts from which a search looks a change farther
LONGER = 2  #: A text may be so many times as long as those that the weights were trained to write.

Beside = dict[tuple[int, ...], tuple[Guess, float]]  # texts, with the guess each comes from and the cosine foreseen


class Guided(Variants):
    """Variants whose cosines a :class:`~tutorial_lib.surrogate_model.Surrogate` foresees, up to ``ahead`` changes away
    from what was embedded. With ``words`` it knows what they say alone, and puts on offer those that would come nearest
    in the place of some piece of a good guess. For one target after the other, not for several at once."""

    def __init__(
        self,
        embedder: Embedder,
        inverter: Inverter,
        corrector: Corrector,
        *,
        ahead: int = 1,
        words: WordsAlone | None = None,
    ) -> None:
        super().__init__(embedder, inverter, corrector)
        self.ahead, self.words = ahead, words
        self._nats: dict[tuple[int, ...], float] = {}  # of the texts read for looking ahead in this round

    def begin(self, target: Tensor) -> Population:
        """A population for a target [d], still empty, with a surrogate."""
        population = super().begin(target)
        population.values = Surrogate(self.words)
        return population

    def next(self, population: Population, count: int, longest: int) -> list[str]:
        """The next ``count`` texts to embed, with words on offer once there is a model to choose them by."""
        if self.words is not None and population.rounds:
            offer(population)
        return super().next(population, count, longest)

    def propose(self, population: Population, longest: int) -> list[str]:
        """As without a surrogate, but learning anew in every round, so that the last answers count at once."""
        population.rounds = 0  # of which every fourth fits the values: here each does
        found = super().propose(population, longest)
        self._nats = {}  # they are this target's
        return found

    def nats(self, population: Population, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """As without a surrogate, but what was read to look ahead is not read again in that round."""
        if not self._nats:
            return super().nats(population, texts)
        new = [text for text in texts if tuple(text) not in self._nats]
        read = dict(zip(map(tuple, new), super().nats(population, new), strict=True))
        return np.array([read[tuple(text)] if tuple(text) in read else self._nats[tuple(text)] for text in texts])

    def promising(self, population: Population, made: Mapping[tuple[int, ...], Guess]) -> dict[tuple[int, ...], float]:
        """Of random variants those to read, with the cosines expected of them."""
        return sift(population, dict(made), np.zeros(len(made)), _RANDOM, 0.0)

    def near(
        self, population: Population, parents: Sequence[Guess], longest: int, sense: float
    ) -> dict[tuple[int, ...], float]:
        """Of all texts one change away from the parents those to read, of all one change from the best of these, and so
        on, with the cosines expected of them."""
        out: dict[tuple[int, ...], float] = {}
        for level in range(self.ahead):
            found = self.beside(population, parents, longest, sense, out)
            out |= {text: cosine for text, (_, cosine) in found.items()}
            if not found or level + 1 == self.ahead:
                break  # found nothing: there is nothing to look on from
            parents = self.foresee(population, found, sense)
        return out

    def beside(
        self,
        population: Population,
        parents: Sequence[Guess],
        longest: int,
        sense: float,
        known: Mapping[tuple[int, ...], float],
    ) -> Beside:
        """Texts one change away from the parents, none of them ``known``.

        Pieces and joins price them all at once (:mod:`tutorial_lib.neighbours`); of the thousand or so that seem best
        the surrogate chooses.
        """
        parents = [parent for parent in parents if parent.places is not None]
        counts = np.array([population.pieces[piece] for piece in population.known])
        pool = np.argsort(-counts, kind="stable")[:_POOL]
        prices = Neighbours(population.values, population.unit, population.known, pool, sense)
        read = [Read(p.ids, p.unit, p.cosine, p.places) for p in parents if p.places is not None]
        out: Beside = {}
        for found, count in (
            (prices.changed(read, longest, _SIFTED * _CHANGED, _NOISE, population.rng), _CHANGED),
            (prices.reordered(read, _SIFTED * _ORDERS, _NOISE, population.rng), _ORDERS),
        ):
            fresh = [text for text in found if not (text in population.tried or text in out or text in known)]
            nats = np.array([found[text].nats for text in fresh])
            origin = {text: parents[found[text].origin] for text in fresh}
            chosen = sift(population, origin, nats, count, sense)
            out |= {text: (origin[text], cosine) for text, cosine in chosen.items()}
        return out

    def foresee(self, population: Population, found: Beside, sense: float) -> list[Guess]:
        """The best of texts, read as if they had been embedded where they are foreseen."""
        texts = list(found)
        nats = self.nats(population, texts)
        self._nats |= dict(zip(texts, nats.tolist(), strict=True))
        worth = score(np.minimum([found[text][1] for text in texts], NEAREST), nats, sense)
        best = [texts[index] for index in np.argsort(-worth, kind="stable")[:_WIDE]]
        parents = [found[text][0] for text in best]
        known = np.stack([parent.unit for parent in parents])
        vectors = population.values.moved(best, [parent.ids for parent in parents], known).astype(np.float32)
        embeddings = torch.from_numpy(vectors).to(population.target.device)
        written = self.embedder.decode(best)
        cosines = (vectors @ population.unit).tolist()
        ahead = [Guess(*row) for row in zip(written, cosines, embeddings, best, strict=True)]
        self.read(population, ahead)
        return ahead


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


def offer(population: Population) -> None:
    """Let words be put in: of those that lead farthest towards the target the ones that would come nearest to it in the
    place of some piece of a good guess."""
    values, asked = population.values, [guess for guess in population.best[:_ASKED] if guess.ids]
    assert isinstance(values, Surrogate)
    if not asked:
        return
    lengths = [len(guess.ids) for guess in asked]
    share = np.repeat([1 / length for length in lengths], lengths).astype(np.float32)[:, None]
    without = np.repeat([guess.unit for guess in asked], lengths, axis=0)
    without = without - share * values.of([piece for guess in asked for piece in guess.ids])  # [m, d]
    pieces = values.words_towards(population.unit, _CONSIDERED)
    effects = values.of(pieces)  # [n, d]
    nearer = (without @ population.unit)[:, None] + share * (effects @ population.unit)
    square = (without**2).sum(1)[:, None] + 2 * share * (without @ effects.T) + share**2 * (effects**2).sum(1)
    cosines = (nearer / np.sqrt(np.maximum(square, 1e-6))).max(0)
    for index in np.argsort(-cosines, kind="stable")[:_OFFERED]:
        population.pieces[pieces[index]] += 1


def surrogate_search(
    embeddings: np.ndarray,
    embedder: Embedder,
    inverter: Inverter,
    corrector: Corrector,
    *,
    steps: int = 60,
    variants: int = 32,
    ahead: int = 1,
    words: WordList | None = None,
    max_queries: int | None = None,
    progress: bool | None = None,
) -> Inversion:
    """Recover the texts behind ``embeddings`` (float32 [n, d]) by recombining guesses that a surrogate chooses.

    The search of :func:`tutorial_lib.breed` with another judge: begins with up to :data:`~tutorial_lib.variants.BEAM`
    first guesses, and each of up to ``steps`` rounds embeds ``variants`` new texts for every target, half of them
    sampled first guesses until these are used up. A text leaves the search when its cosine is about 1, when nothing new
    can be made of its guesses, or when its next round could exceed ``max_queries``. On a CPU as many targets are
    searched for at a time as PyTorch has threads, each on one core (:func:`tutorial_lib.parallel.each`); elsewhere one
    after the other. Deterministic, and it does not matter how many there are, or which stand beside one another.

    First guesses are no longer than the texts that the weights were trained to write; what is made of them may grow to
    :data:`LONGER` times that length and :data:`~tutorial_lib.variants.SLACK` pieces more, as far as the embedder reads.

    ``ahead``: changes away from what was embedded up to which texts are foreseen. ``words``: embedded once for all
    targets, from which the surrogate begins, best those of :func:`~tutorial_lib.word_lists.whole_words`; what embedding
    them cost, their ``queries``, is not in the result's. Either without the other adds little: give 3, and words.

    Raises :class:`VectorError` for wrong shapes, NaN, infinity and zero vectors, :class:`CheckpointError` when the
    models were made for another embedder, :class:`TextError` when no word is one piece of the embedder's vocabulary,
    and :class:`TutorialError` for parameters out of range, and for a table, which has nobody to ask.
    """
    if ahead < 1:
        raise TutorialError(f"ahead={ahead}: a search looks at least one change ahead.")
    check_arguments(embedder, inverter, corrector, steps=steps, variants=variants, max_queries=max_queries)
    if words is not None and words.vectors.shape[1] != embedder.dimension:
        raise VectorError(
            f"The words' vectors have {words.vectors.shape[1]} dimensions and {embedder.name}'s {embedder.dimension}; "
            "embed the list with this embedder."
        )
    known = None if words is None else WordsAlone(words, embedder)
    budget = np.inf if max_queries is None else max_queries
    shared = parallel.one_at_a_time(embedder)

    def search(target: Tensor) -> Iterator[Step]:
        guided = Guided(shared, inverter, corrector, ahead=ahead, words=known)
        return _rounds(guided, target, steps, variants, budget)

    targets = list(inverter.check_vectors(embeddings))
    return inversion(parallel.each(search, targets, inverter.device, progress=progress))


def _rounds(guided: Guided, target: Tensor, steps: int, variants: int, budget: float) -> Iterator[Step]:
    """The best guess for one target after each round."""
    population, queries = guided.begin(target), 0
    new = guided.first(population)
    longest = min(LONGER * guided.inverter.config.max_tokens + SLACK, guided.embedder.max_tokens)
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
