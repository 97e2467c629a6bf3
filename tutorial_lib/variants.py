"""Variants: good guesses recombined, for texts too long to be mended one edit at a time.

A guess of sixteen pieces has most of the right words, some wrong ones, and no order that one edit would restore; the
texts one edit away are mostly no nearer. So the search keeps a population, as a genetic algorithm does (Holland 1975):
sampled first guesses beside the beam's, the best of all that was embedded since, and new texts made from them, some by
moving a run of pieces, putting in or replacing a piece, or crossing two guesses at random, some as the best of all
texts one change away (:mod:`tutorial_lib.neighbours`). Two cheap judges choose which of them to embed:

* *content*: how a piece moves the vector is learnt from the texts embedded so far for this very target, by ridge
  regression of their vectors on the shares of their pieces (:class:`PieceValues`), so most wrong pieces are never sent;
* *sense*: the inverter's likelihood p(x | e), as for local edits.

Both make one score, :func:`score`, which also ranks what was embedded: by cosine alone the population fills with the
right words in no order, since a mean over tokens hardly minds. No gradient is asked for; the embedder is a black box.
Explained in chapter 5; measured on the page *What we tried*.
"""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from tutorial_lib import parallel
from tutorial_lib.corrector import Corrector
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import CheckpointError, TutorialError
from tutorial_lib.inverter import Inverter
from tutorial_lib.neighbours import NEAREST, SENSE, Neighbours, PieceValues, Places, Read, score
from tutorial_lib.search import SOLVED, Inversion, Step

BEAM = 4  # first guesses of the beam
SAMPLES = 128  # first guesses sampled beside it: nearly every piece of a text is in one of them
SLACK = 4  # pieces a variant may be longer than what the weights were trained for
PARENTS = 96  # best guesses kept ...
_BRED = 24  # ... of which so many, by what the round asks for, have variants made of them
_TEMPERATURE = 0.8  # of the samples
_MADE = 600  # tries at a random variant in a round ...
_READ = 40  # ... of which so many, the most promising by content, are read for sense
_MOVED = 8  # ... and so many more that differ from their parent in order alone
_CHANGED = 72  # neighbours of the parents that are read too: of those with one other piece ...
_ORDERS = 24  # ... and of those in another order
_NOISE = 0.3  # Gumbel noise on the worth of neighbours, by which those to read are drawn
_POOL = 600  # pieces that neighbours may put in: those proposed most often
_SPREAD = 0.5  # how far the weight of sense strays from round to round, as a share of it
_FIRST = 3.0  # parents are drawn by rank, with this mean: the best most often
_PLACED = 8  # parents read at every place in a round: most of the new ones
_LIKELY = 8  # the corrector's likeliest pieces at each place of a guess join those to put in
_REFIT = 4  # rounds between two fits
_FREQUENT = 2048  # commonest pieces in the softmax by which sense is judged, beside the population's own
_ROWS = 128  # texts read at once: more fall out of a processor's caches


@dataclass
class Guess:
    """A guess that was embedded; ids, nats and rank are filled in by :meth:`Variants.judge`."""

    text: str
    cosine: float  # with the target
    embedding: Tensor  # [d]
    ids: tuple[int, ...] = ()  # the embedder's
    nats: float = 0.0  # under the inverter, in all
    rank: float = 0.0  # what cosine and sense make together, :func:`score`
    places: Places | None = None  # what the inverter says of each place, once it was read

    @functools.cached_property  # asked for in every round by every variant made of it
    def unit(self) -> np.ndarray:
        """float32 [d]: its embedding, of length 1."""
        return functional.normalize(self.embedding.float(), dim=0).cpu().numpy()


class Population:
    """What the search for one text knows: pieces to put in, sampled guesses, and what pieces do to the vector."""

    def __init__(self, target: Tensor, encoded: Tensor, columns: Tensor, rng: np.random.Generator) -> None:
        self.target = target  # [d]
        self.columns = columns  # bool [V], pieces in the softmax of its nats: frequent ones, then the samples' too
        self.encoded = encoded  # the inverter's encoder states [1, k, width]
        self.unit = functional.normalize(target.float(), dim=0).cpu().numpy()
        self.rng = rng
        self.values = PieceValues()
        self.sampled: list[list[int]] = []  # first guesses to take pieces and runs from ...
        self.samples: list[str] = []  # ... and those not embedded yet, as texts
        self.pieces: Counter[int] = Counter()  # how often a piece was proposed
        self.tried: set[tuple[int, ...]] = set()
        self.nats: dict[str, float] = {}  # of the variants read in this round
        self.known: dict[int, int] = {}  # all pieces met so far, in that order: columns of readings
        self.rounds = 0
        self.seen: set[str] = set()
        self.best: list[Guess] = []  # of all that was embedded, by rank
        self.nearest: Guess | None = None

    def add(self, guess: Guess) -> None:
        """Keep a judged guess among the best."""
        self.best.append(guess)
        self.best.sort(key=lambda other: -other.rank)
        del self.best[PARENTS:]
        if self.nearest is None or guess.cosine > self.nearest.cosine:
            self.nearest = guess


def breed(
    embeddings: np.ndarray,
    embedder: Embedder,
    inverter: Inverter,
    corrector: Corrector,
    *,
    steps: int = 120,
    variants: int = 32,
    max_queries: int | None = None,
    progress: bool | None = None,
    on_step: Callable[[int, list[Step]], None] | None = None,
) -> Inversion:
    """Recover the texts behind ``embeddings`` (float32 [n, d]) by recombining guesses.

    Begins with :data:`BEAM` first guesses. Each of up to ``steps`` rounds embeds ``variants`` new texts for every
    target: half of them sampled first guesses until :data:`SAMPLES` are used up, the rest variants of the best texts
    met so far. A text leaves the search when its cosine is about 1, when nothing new can be made of its guesses,
    or when its next round could exceed ``max_queries``. ``on_step(step, rows)`` is called after every round with the
    best guess of each text. On a CPU as many texts are bred at a time as PyTorch has threads, each on one core
    (:func:`tutorial_lib.parallel.cores`). Deterministic. Every text still searched holds about 6 MB.

    For texts of more than twelve pieces; of shorter ones :func:`tutorial_lib.invert` with local edits finds as many.

    Raises :class:`VectorError` for wrong shapes, NaN, infinity and zero vectors, :class:`CheckpointError` when the
    models were made for another embedder, and :class:`TutorialError` for parameters out of range.
    """
    check_arguments(embedder, inverter, corrector, steps=steps, variants=variants, max_queries=max_queries)
    target = inverter.check_vectors(embeddings)
    recombining = Variants(parallel.one_at_a_time(embedder), inverter, corrector)
    populations = {index: recombining.begin(row) for index, row in enumerate(target)}  # of the texts still searched
    trace: list[list[Step]] = [[] for _ in populations]
    new = {index: recombining.first(population) for index, population in populations.items()}
    longest = min(inverter.config.max_tokens + SLACK, embedder.max_tokens)
    bar = tqdm(range(steps + 1 if populations else 0), desc="Breeding", unit="round", disable=not progress)
    for step in bar:
        embedded = recombining.embedded(populations, new)
        with parallel.cores(inverter.device) as spread:
            list(spread(recombining.judge, *zip(*embedded, strict=True)))
        for index, population in list(populations.items()):
            nearest, spent = population.nearest, trace[index][-1].queries if trace[index] else 0
            assert nearest is not None
            trace[index].append(Step(step, nearest.text, nearest.cosine, spent + len(new[index])))
            next_spent = trace[index][-1].queries + variants
            if nearest.cosine >= SOLVED or (max_queries is not None and next_spent > max_queries):
                del populations[index]
        if on_step is not None:
            on_step(step, [rows[-1] for rows in trace])
        bar.set_postfix(open=len(populations))
        if step < steps:
            following = functools.partial(recombining.next, count=variants, longest=longest)
            with parallel.cores(inverter.device) as spread:
                new = dict(zip(populations, spread(following, populations.values()), strict=True))
            populations = {index: population for index, population in populations.items() if new[index]}
        if not populations:
            break
    bar.close()
    return inversion(trace)


def check_arguments(
    embedder: Embedder,
    inverter: Inverter,
    corrector: Corrector,
    *,
    steps: int,
    variants: int,
    max_queries: int | None,
) -> None:
    """Raise what a search that embeds variants says of arguments it cannot work with."""
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


def inversion(trace: list[list[Step]]) -> Inversion:
    """A search's result from its best guess for each text after each round."""
    last = [rows[-1] for rows in trace]
    return Inversion(
        texts=[row.text for row in last],
        cosines=np.array([row.cosine for row in last], dtype=np.float32),
        queries=np.array([row.queries for row in last], dtype=np.int64),
        steps=np.array([row.step for row in last], dtype=np.int64),
        trace=trace,
    )


class Variants:
    """Makes variants of good guesses and chooses among them, with the networks that made the guesses.

    Threads may share one, each with another population, if its embedder takes calls from several
    (:func:`tutorial_lib.parallel.one_at_a_time`).
    """

    def __init__(self, embedder: Embedder, inverter: Inverter, corrector: Corrector) -> None:
        self.embedder, self.inverter, self.corrector = embedder, inverter, corrector
        self._special = torch.tensor(corrector.special, device=corrector.device)

    @torch.inference_mode()
    def begin(self, target: Tensor) -> Population:
        """A population for a target [d], still empty.

        Every text has random numbers of its own and is read by itself, so that its neighbours do not matter.
        """
        with self.inverter.autocast():
            encoded = self.inverter.encode(self.inverter.encoder_inputs(target[None]))
        columns = torch.zeros(len(self.inverter.backbone.lm_head.weight), dtype=torch.bool, device=target.device)
        columns[:_FREQUENT] = True
        seed = zlib.crc32(target.cpu().numpy().tobytes())
        return Population(target, encoded.float(), columns, np.random.default_rng(seed))

    def first(self, population: Population) -> list[str]:
        """Up to :data:`BEAM` first guesses of a beam."""
        ids = self.inverter.propose(population.target[None], candidates=BEAM, beams=BEAM).ids[0]
        found = self.embedder.decode(self.inverter.to_embedder_ids(ids))
        # An inverter that writes nothing at all still needs a guess to recombine.
        return list(dict.fromkeys(text for text in found if text.strip())) or ["."]

    @torch.inference_mode()
    def sample(self, population: Population) -> None:
        """Draw :data:`SAMPLES` first guesses, which are not embedded yet."""
        target = population.target
        own = torch.Generator(target.device).manual_seed(int(population.rng.integers(2**31)))
        options: dict[str, Any] = {"temperature": _TEMPERATURE, "generator": own}
        ids = self.inverter.propose(target[None], candidates=SAMPLES, **options).ids[0]
        population.columns[ids.flatten()] = True
        population.sampled = [row for row in self.inverter.to_embedder_ids(ids) if row]
        population.samples = list(dict.fromkeys(self.embedder.decode(population.sampled)))
        for row in population.sampled:
            population.pieces.update(set(row))

    def next(self, population: Population, count: int, longest: int) -> list[str]:
        """The next ``count`` texts to embed: sampled first guesses at first, and variants."""
        if not population.rounds:
            self.sample(population)
        unread = [guess for guess in population.best[:_BRED] if guess.places is None][:_PLACED]
        if unread:
            self.read(population, unread)
        sampled: list[str] = []
        while population.samples and len(sampled) < -(-count // 2):
            text = population.samples.pop(0)
            if text.strip() and text not in population.seen:
                sampled.append(text)
        population.seen.update(sampled)
        found = [text for text in self.propose(population, longest) if text.strip()][: count - len(sampled)]
        population.seen.update(found)
        return sampled + found

    def embed(self, populations: Mapping[int, Population], texts: Mapping[int, list[str]]) -> None:
        """Embed new texts for each target, and let them join their populations."""
        for population, guesses in self.embedded(populations, texts):
            self.judge(population, guesses)

    def embedded(
        self, populations: Mapping[int, Population], texts: Mapping[int, list[str]]
    ) -> list[tuple[Population, list[Guess]]]:
        """Embed new texts for each target, at once: guesses that their populations have still to judge."""
        rows = [(populations[index], text) for index, mine in texts.items() if index in populations for text in mine]
        vectors = torch.from_numpy(self.embedder.encode([text for _, text in rows], truncate=True, progress=False))
        guesses: dict[int, tuple[Population, list[Guess]]] = {}
        for (population, text), vector in zip(rows, vectors, strict=True):
            cosine = float(functional.normalize(vector, dim=0).numpy() @ population.unit)
            # A copy, or every guess kept would keep the vectors of its whole round.
            guess = Guess(text, cosine, vector.clone().to(population.target.device))
            guesses.setdefault(id(population), (population, []))[1].append(guess)
            population.seen.add(text)
        return list(guesses.values())

    def judge(self, population: Population, guesses: Sequence[Guess]) -> None:
        """Rank newly embedded guesses, learn from their embeddings, and keep the best."""
        for guess, ids in zip(guesses, self.embedder.token_ids([guess.text for guess in guesses]), strict=True):
            guess.ids = tuple(ids)
        unread = [guess for guess in guesses if guess.text not in population.nats]
        read = self.nats(population, [guess.ids for guess in unread])
        for guess, nats in zip(unread, read.tolist(), strict=True):
            population.nats[guess.text] = nats
        for guess in guesses:
            guess.nats = population.nats[guess.text]
            guess.rank = float(score(guess.cosine, guess.nats))
            population.tried.add(guess.ids)
            population.values.add(guess.ids, guess.unit, guess.cosine)
            population.add(guess)

    @torch.inference_mode()
    def nats(self, population: Population, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Texts as embedder ids -> nats under the inverter, float64 [n]; lower makes more sense."""
        model, out = self.inverter, np.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for offset in range(0, len(order), _ROWS):
            part = order[offset : offset + _ROWS]
            labels = model.to_model_ids([texts[index] for index in part])
            columns = population.columns.index_fill(0, labels.flatten(), True)
            place = columns.cumsum(0) - 1  # of a piece among the columns
            with model.autocast():
                states = model.decoder_states(population.encoded.expand(len(labels), -1, -1), None, labels)
                logits = functional.linear(states, model.backbone.lm_head.weight[columns]).float()
            chosen = logits.gather(2, place[labels][:, :, None])[:, :, 0] - logits.logsumexp(2)
            kept = labels != model.pad
            out[part] = -(chosen * kept).sum(1).cpu().double().numpy()
        return out

    @torch.inference_mode()
    def read(self, population: Population, guesses: Sequence[Guess]) -> None:
        """Let the corrector name pieces for the places of guesses, and the inverter say how likely known ones are."""
        rows = [guess.ids for guess in guesses]
        ids = self.corrector.to_model_ids(rows)
        embeddings = torch.stack([guess.embedding for guess in guesses])
        likely = self.corrector.next_pieces(population.target.expand(len(rows), -1), ids, embeddings)  # [n, t, V]
        likely[:, :, self._special] = -torch.inf
        top = likely.topk(min(_LIKELY, likely.shape[2] - len(self._special)), dim=2)
        for row, indices, values in zip(rows, top.indices, top.values, strict=True):
            pieces = self.corrector.to_embedder_ids(indices[: len(row) + 1])
            for at, chances in zip(pieces, values[: len(row) + 1].exp().tolist(), strict=True):
                for piece, chance in zip(at, chances, strict=True):
                    population.pieces[piece] += 2 * chance  # type: ignore[assignment]
        for piece in (*population.pieces, *(piece for row in rows for piece in row)):
            population.known.setdefault(piece, len(population.known))
        model = self.inverter
        labels, known = model.to_model_ids(rows), model.to_model_ids([list(population.known)])[0, :-1]
        columns = population.columns.index_fill(0, labels.flatten(), True).index_fill(0, known, True)
        place = columns.cumsum(0) - 1  # of a piece among the columns
        with model.autocast():
            states = model.decoder_states(population.encoded.expand(len(labels), -1, -1), None, labels)
            logits = functional.linear(states, model.backbone.lm_head.weight[columns]).float()
        chances = logits.log_softmax(2)
        pieces, ends = chances[:, :, place[known]].cpu().numpy(), chances[:, :, place[model.end]].cpu().numpy()
        for guess, at, end in zip(guesses, pieces, ends, strict=True):
            t = len(guess.ids) + 1
            guess.places = Places(at[:t].copy(), end[:t].copy())  # copies, or they would keep all rows

    def propose(self, population: Population, longest: int) -> list[str]:
        """New variants of the best guesses, of up to ``longest`` pieces, the most promising first: at most
        ``_READ + _MOVED + _CHANGED + _ORDERS``. No query is spent."""
        # How much sense counts differs from round to round, lest the population become one text's relatives.
        sense = SENSE * population.rng.uniform(1 - _SPREAD, 1 + _SPREAD)
        worth = score(
            np.array([guess.cosine for guess in population.best]),
            np.array([guess.nats for guess in population.best]),
            sense,
        )
        parents = [population.best[index] for index in np.argsort(-worth, kind="stable")[:_BRED]]
        made = make(population, parents, longest)
        if population.rounds % _REFIT == 0:
            population.values.fit()
        population.rounds += 1
        expected = {**self.promising(population, made), **self.near(population, parents, longest, sense)}
        if not expected:
            return []
        texts, cosines = list(expected), np.minimum(list(expected.values()), NEAREST)
        new: dict[str, int] = {}
        for index, text in enumerate(self.embedder.decode(texts)):
            if text in population.seen:
                population.tried.add(texts[index])  # other pieces for a known text: not made again
            else:
                new.setdefault(text, index)
        rows = list(new.values())
        nats = self.nats(population, [texts[index] for index in rows])
        population.nats = dict(zip(new, nats.tolist(), strict=True))
        merit = score(cosines[rows], nats, sense)
        return [list(new)[index] for index in np.argsort(-merit, kind="stable")]

    def promising(self, population: Population, made: dict[tuple[int, ...], Guess]) -> dict[tuple[int, ...], float]:
        """Of random variants those to read, with the cosines expected of them."""
        if not made:
            return {}
        texts, parents = list(made), list(made.values())
        known = np.stack([parent.unit for parent in parents]).astype(np.float64)
        cosines = population.values.moved(texts, [parent.ids for parent in parents], known) @ population.unit
        # Of those that only change the order, whose content is their parent's, some are read whatever it is worth.
        same = np.array([sorted(text) == sorted(parent.ids) for text, parent in made.items()])
        moved = population.rng.permutation(np.flatnonzero(same))[:_MOVED]
        rest = np.setdiff1d(np.argsort(-np.minimum(cosines, NEAREST), kind="stable")[:_READ], moved, assume_unique=True)
        return {texts[index]: float(cosines[index]) for index in (*moved, *rest)}

    def near(
        self, population: Population, parents: Sequence[Guess], longest: int, sense: float
    ) -> dict[tuple[int, ...], float]:
        """Of all texts one change away from the parents those to read, with the cosines expected of them."""
        read = [Read(p.ids, p.unit, p.cosine, p.places) for p in parents if p.places is not None]
        counts = np.array([population.pieces[piece] for piece in population.known])
        pool = np.argsort(-counts, kind="stable")[:_POOL]
        beside = Neighbours(population.values, population.unit, population.known, pool, sense)
        out: dict[tuple[int, ...], float] = {}
        for found, count in (
            (beside.changed(read, longest, 4 * _CHANGED, _NOISE, population.rng), _CHANGED),
            (beside.reordered(read, 4 * _ORDERS, _NOISE, population.rng), _ORDERS),
        ):
            fresh = [text for text in found if text not in population.tried and text not in out][:count]
            out.update((text, found[text].cosine) for text in fresh)
        return out


def make(
    population: Population, parents: Sequence[Guess], longest: int, count: int = _MADE
) -> dict[tuple[int, ...], Guess]:
    """Variants as embedder ids, of up to ``longest`` pieces, each with the parent it was made from."""
    rng = population.rng
    pieces = list(population.pieces)
    weights = np.cumsum([population.pieces[piece] ** 0.5 for piece in pieces])
    made: dict[tuple[int, ...], Guess] = {}
    for _ in range(count):
        parent = parents[min(len(parents) - 1, int(rng.exponential(_FIRST)))]
        text = list(parent.ids)
        for _ in range(1 + (rng.random() < 0.25)):  # one change, or now and then two
            piece = pieces[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))] if pieces else None
            # Mostly from another good guess, sometimes from a sampled one, which holds what the good ones lost.
            others = [p.ids for p in parents] if rng.random() < 0.7 or not population.sampled else population.sampled
            text = changed(text, piece, others[int(rng.integers(len(others)))], rng)
        if 0 < len(text) <= longest and tuple(text) not in population.tried:
            made.setdefault(tuple(text), parent)
    return made


def changed(text: list[int], piece: int | None, other: Sequence[int], rng: np.random.Generator) -> list[int]:
    """One change of ``text``: a run moved, two pieces exchanged, one dropped, ``piece`` put in or in place of another,
    or a part taken from ``other``. May be empty, or no change at all."""
    n, kind = len(text), int(rng.integers(12))
    if not n:
        return list(other)
    if kind < 3:
        begin, end = sorted(rng.choice(n + 1, 2, replace=False))
        rest = text[:begin] + text[end:]
        at = int(rng.integers(len(rest) + 1))
        return rest[:at] + text[begin:end] + rest[at:]
    at = int(rng.integers(n))
    if kind == 3:
        beside = int(rng.integers(n))
        swapped = list(text)
        swapped[at], swapped[beside] = text[beside], text[at]
        return swapped
    if kind == 4:
        return text[:at] + text[at + 1 :]
    if kind < 7 and piece is not None:
        at = int(rng.integers(n + 1))
        return [*text[:at], piece, *text[at:]]
    if kind < 9 and piece is not None:
        return [*text[:at], piece, *text[at + 1 :]]
    other = list(other)
    if kind < 10:  # the beginning of one, the end of the other, of about the same length as before
        tail = max(0, n + int(rng.integers(-1, 2)) - at)
        return text[:at] + (other[-tail:] if tail else [])
    run, begin = int(rng.integers(5)), int(rng.integers(len(other)))
    taken = max(1, run + int(rng.integers(-1, 2)))
    return text[:at] + other[begin : begin + taken] + text[at + run :]
