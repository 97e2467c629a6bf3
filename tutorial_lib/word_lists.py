"""Word lists: what an attacker reads out of vectors with a list of words, an inverter or none.

An inverter spells a name it has never met in word pieces, without any help from language, and mostly fails. But a
thief need not spell: names are on public lists. And a vector says which of them it holds. The embedding of a short text
behaves roughly as if it were a weighted mean of those of its words, so what a guess does not explain of the target
points at the word that is missing. :func:`fill_in` takes a guess, leaves out each short run of words in turn, and ranks
the whole list by how near a mixture of the rest and the word comes to the target (:func:`plane_cosines`): a step of
orthogonal least squares (Chen, Billings and Luo 1989), a relative of matching pursuit, with weights that are not
negative. The few words that rank first are put in and embedded, and the nearest text is the next guess.

The list is embedded once, word by word, for all targets: :attr:`WordList.queries`. Ranking it costs none. The embedder
is a black box, but one that, as uncased WordPiece embedders do, makes nothing of spaces around punctuation. Explained
in chapter 4; what else was tried stands on the page *What we tried*.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
from tqdm.auto import tqdm

from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import TextError, TutorialError, VectorError
from tutorial_lib.search import SOLVED, Inversion, Step

_RUN = 3  # words left out at once, at most
_EACH = 3  # words of the list tried in the place of each run ...
_PUT_IN = 2  # ... and tried in every gap
_PATIENCE = 4  # rounds without progress after which a target is given up ...
_PROGRESS = 0.9  # ... which is 1 - cosine falling to so much of what it was: any word more brings it down a little
_TOGETHER = 2048  # words of guesses searched at once, lest memory fill with a vector for every text that was tried
_ROWS = 64  # contexts compared with the list at once
_APART = 1e-4  # of a context and a word: below this the numbers of their plane are rounding errors
_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")

Words = tuple[str, ...]


class WordList:
    """Words and their embeddings, each word embedded by itself.

    ``words``: n strings, lower case as the embedder writes them. ``vectors``: unit vectors float32 [n, d]. ``queries``:
    what embedding them cost, once for all targets.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray) -> None:
        if len(words) != len(vectors) or not len(words):
            raise TextError(f"{len(words)} words and {len(vectors)} vectors were given: give one for each word.")
        self.words = [tuple(_WORD.findall(word)) for word in words]
        self.vectors = _unit(vectors)
        self.queries = len(words)

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def embed(cls, words: Iterable[str], embedder: Embedder, *, progress: bool | None = None) -> WordList:
        """Embed words, each once however often and in whatever case it is given.

        Raises :class:`TextError` when no word has anything to embed.
        """
        given = [word for word in words if word.strip()]
        found = [word for word in dict.fromkeys(embedder.normalise(given)) if _WORD.search(word)]
        if not found:
            raise TextError("The word list has no word in it: give at least one.")
        return cls(found, embedder.encode(found, truncate=True, progress=progress))


def census_names(surnames: int = 20_000, first_names: int = 5000) -> list[str]:
    """The commonest first names and surnames of the United States census of 1990, lower case, each once.

    From the package ``names``, which has 88,799 surnames, and first names of 4,275 women and 1,219 men: up to
    ``first_names`` of each. Raises :class:`TutorialError` when the package is missing, or for a number out of range.
    """
    try:
        folder = resources.files("names")
        first = [_column(folder / f"dist.{sex}.first") for sex in ("female", "male")]
        last = _column(folder / "dist.all.last")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise TutorialError("The census names come from the package names: pip install names.") from error
    if not 0 <= surnames <= len(last):
        raise TutorialError(f"{surnames} surnames were asked for and the list has {len(last)}; ask for 0 to that many.")
    if first_names < 0:
        raise TutorialError(f"{first_names} first names were asked for; ask for 0 or more.")
    return list(dict.fromkeys([*first[0][:first_names], *first[1][:first_names], *last[:surnames]]))


def _column(file: resources.abc.Traversable) -> list[str]:
    return [line.split()[0].lower() for line in file.read_text(encoding="ascii").splitlines() if line.strip()]


def whole_words(embedder: Embedder) -> list[str]:
    """Words, numbers and marks that are one piece of an embedder's vocabulary, no continuations.

    They come with the embedder, so that every attacker has them. (Of a byte-level vocabulary, whose words begin with a
    space, little passes.)
    """
    special = set(embedder.tokenizer.all_special_ids)
    ids = [number for number in sorted(embedder.tokenizer.get_vocab().values()) if number not in special]
    texts = embedder.decode([[number] for number in ids])
    alone = [
        text for number, text, back in zip(ids, texts, embedder.token_ids(texts), strict=True) if back == [number]
    ]
    return [text for text in alone if _WORD.fullmatch(text)]


def plane_cosines(
    target: np.ndarray, contexts: np.ndarray, vectors: np.ndarray, nearness: np.ndarray | None = None
) -> np.ndarray:
    """Largest cosine with ``target`` [d] of a c + b v, a and b not negative, for contexts c [m, d] and words v [n, d]:
    [m, n].

    All of unit length. Never less than either's own cosine. ``nearness``: the cosines of the words with the target,
    [n], where they are known already.
    """
    near_words = vectors @ target if nearness is None else nearness  # [n]
    near, between = (contexts @ target)[:, None], contexts @ vectors.T  # [m, 1], [m, n]
    ends = np.maximum(near, near_words)
    apart = 1 - between**2
    squared = (near**2 + near_words**2 - 2 * near * near_words * between) / np.maximum(apart, _APART)
    # The projection of the target lies between context and word, or the nearer of them is the best there is. So it is
    # where the two say the same, when there is no plane.
    inside = (near > near_words * between) & (near_words > near * between) & (apart > _APART)
    return np.where(inside, np.maximum(np.sqrt(np.clip(squared, 0, 1)), ends), ends)


@dataclass
class _Filling:
    """The search for one target."""

    target: np.ndarray  # [d], of length 1
    guess: Words  # as it was given
    trace: list[Step]  # of the search before this one, if any, and then its own
    nearness: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [n], cosines of the list's words
    cosines: dict[Words, float] = field(default_factory=dict)  # of every text embedded for this target
    vectors: dict[Words, np.ndarray] = field(default_factory=dict)
    expanded: set[Words] = field(default_factory=set)
    best: Words = ()
    distance: float = 2.0  # 1 - cosine at the last progress
    idle: int = 0  # rounds since then

    def __post_init__(self) -> None:
        self.before = self.trace[-1] if self.trace else Step(0, "", 0.0, 0)

    @property
    def queries(self) -> int:
        return self.before.queries + len(self.cosines)

    def open(self, budget: float) -> bool:
        """Is there something left to find, and a query to spend?"""
        return not self.trace or (self.before.cosine < SOLVED and self.before.queries < budget)

    def next(self) -> Words | None:
        """The nearest text whose words have not been left out yet."""
        waiting = [text for text in self.cosines if text not in self.expanded]
        if self.cosines[self.best] >= SOLVED or self.idle >= _PATIENCE or not waiting:
            return None
        return max(waiting, key=lambda text: self.cosines[text])

    def record(self, step: int) -> None:
        nearest = max(self.cosines, key=lambda text: self.cosines[text])
        self.best, distance = nearest, 1 - self.cosines[nearest]
        self.idle += 1
        if distance <= _PROGRESS * self.distance:
            self.distance, self.idle = distance, 0
        text, cosine = " ".join(nearest), self.cosines[nearest]
        if cosine < self.before.cosine:  # the text before may have held what no list of words can write
            text, cosine = self.before.text, self.before.cosine
        self.trace.append(Step(self.before.step + step, text, cosine, self.queries))


def fill_in(
    embeddings: np.ndarray,
    guesses: Sequence[str] | Inversion,
    embedder: Embedder,
    words: WordList,
    *,
    steps: int = 20,
    tries: int = 24,
    max_queries: int | None = None,
    progress: bool | None = None,
) -> Inversion:
    """Put words of a list into ``guesses`` (n texts), towards ``embeddings`` (float32 [n, d]).

    A guess may be anything: a similar text, or ``"."`` where there is nothing to begin with. From what another search
    returned this one goes on: steps and queries add up, and what it solved is left alone.

    Each of up to ``steps`` rounds takes the nearest text not taken before, leaves out every run of up to three words,
    and embeds what remains; puts words of the list in the place of runs (the ``tries`` most promising by
    :func:`plane_cosines`) and into gaps, the guess's own lost words into gaps, and exchanges neighbours. A target
    leaves the search when its cosine is about 1, when four rounds brought it hardly nearer, or when its next round
    could exceed ``max_queries``. Deterministic; a target's search does not depend on those beside it.

    Returns the nearest texts met; their ``queries`` leave out those of the list itself (:attr:`WordList.queries`).

    Raises :class:`VectorError` for wrong shapes, NaN, infinity and zero vectors, and for a list embedded in another
    dimension; :class:`TextError` for another number of guesses than of vectors; :class:`TutorialError` for parameters
    out of range, and for a table, which has nobody to ask.
    """
    if steps < 0 or tries < 1 or (max_queries is not None and max_queries < 1):
        raise TutorialError(
            f"steps={steps}, tries={tries}, max_queries={max_queries}: steps cannot be negative, the others are at "
            "least 1."
        )
    if getattr(embedder, "closed", False):
        raise TutorialError(f"{embedder.name} is a table with nobody to ask for a text's vector, as filling in does.")
    targets = _checked(embeddings, words)
    count = len(guesses.texts if isinstance(guesses, Inversion) else guesses)
    if count != len(targets):
        raise TextError(f"{len(targets)} vectors and {count} guesses were given: one guess for each is needed.")
    given = embedder.token_ids(guesses.texts if isinstance(guesses, Inversion) else list(guesses))
    given = [ids[: embedder.max_tokens] for ids in given]
    cut = embedder.decode(given)
    starts = [tuple(_WORD.findall(text)) or (".",) for text in cut]
    before = guesses.trace if isinstance(guesses, Inversion) else _as_given(targets, given, cut, starts, embedder)
    budget = np.inf if max_queries is None else max_queries
    trace: list[list[Step]] = []
    bar = tqdm(total=len(targets), desc="Filling in", unit="text", disable=not progress)
    size = max(1, _TOGETHER // max((len(start) for start in starts), default=1))
    for begin in range(0, len(targets), size):
        part = slice(begin, begin + size)
        fillings = [
            _Filling(target, start, list(rows))
            for target, start, rows in zip(targets[part], starts[part], before[part], strict=True)
        ]
        _fill([filling for filling in fillings if filling.open(budget)], embedder, words, steps, tries, budget)
        trace += [filling.trace for filling in fillings]
        bar.update(len(fillings))
    bar.close()
    last = [rows[-1] for rows in trace]
    return Inversion(
        texts=embedder.normalise([row.text for row in last]),
        cosines=np.array([row.cosine for row in last], dtype=np.float32),
        queries=np.array([row.queries for row in last], dtype=np.int64),
        steps=np.array([row.step for row in last], dtype=np.int64),
        trace=trace,
    )


def _as_given(
    targets: np.ndarray,
    ids: Sequence[Sequence[int]],
    texts: Sequence[str],
    starts: Sequence[Words],
    embedder: Embedder,
) -> list[list[Step]]:
    """A step for each guess that its words, put together again, do not spell, so that the result is no worse."""
    found: list[list[Step]] = [[] for _ in texts]
    again = embedder.token_ids([" ".join(start) for start in starts])
    rows = [row for row, text in enumerate(texts) if text.strip() and list(ids[row]) != again[row]]
    if not rows:
        return found
    vectors = _unit(embedder.encode([texts[row] for row in rows], truncate=True, progress=False))
    for row, vector in zip(rows, vectors, strict=True):
        found[row].append(Step(0, texts[row], float(vector @ targets[row]), 1))
    return found


def _fill(
    fillings: list[_Filling], embedder: Embedder, words: WordList, steps: int, tries: int, budget: float
) -> None:
    """Search for some targets, a round of all of them at a time."""
    for filling in fillings:
        filling.nearness = words.vectors @ filling.target
    _embed([[filling.guess] for filling in fillings], fillings, embedder)
    for filling in fillings:
        filling.record(0)
    for step in range(1, steps + 1):
        chosen = [filling.next() for filling in fillings]
        for index, (text, filling) in enumerate(zip(chosen, fillings, strict=True)):
            if text and filling.queries + _spend(text, filling.guess, words, tries) > budget:
                chosen[index] = None
        if not any(chosen):
            return
        rests = [left_out(text) if text else {} for text in chosen]
        _embed([list(found.values()) for found in rests], fillings, embedder)
        new = [
            proposals(filling, text, found, words, tries) if text else []
            for filling, text, found in zip(fillings, chosen, rests, strict=True)
        ]
        _embed(new, fillings, embedder)
        for filling, text in zip(fillings, chosen, strict=True):
            if text:
                filling.expanded.add(text)
                filling.record(step)


def left_out(text: Words) -> dict[tuple[int, int], Words]:
    """What remains of a text without its words i to i + k, by (i, k), for runs of none (a gap) to three words."""
    remains = {
        (i, k): text[:i] + text[i + k :] for k in range(min(_RUN, len(text)) + 1) for i in range(len(text) - k + 1)
    }
    return {place: rest for place, rest in remains.items() if rest}


def proposals(
    filling: _Filling, text: Words, rests: dict[tuple[int, int], Words], words: WordList, tries: int
) -> list[Words]:
    """Texts to embed next: words of the list in the place of runs and in gaps, lost words, neighbours exchanged."""
    contexts = list(dict.fromkeys([text, *rests.values()]))
    count = min(max(_EACH, _PUT_IN), len(words))
    tops, values = [], []  # [m, count] each: the words that rank first after each context, and their cosines
    for begin in range(0, len(contexts), _ROWS):
        rows = np.stack([filling.vectors[rest] for rest in contexts[begin : begin + _ROWS]])
        cosines = plane_cosines(filling.target, rows, words.vectors, filling.nearness)
        first = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        best = np.take_along_axis(cosines, first, 1)
        order = np.argsort(-best, axis=1, kind="stable")
        tops.append(np.take_along_axis(first, order, 1))
        values.append(np.take_along_axis(best, order, 1))
    top, value = np.concatenate(tops), np.concatenate(values)
    row = {rest: index for index, rest in enumerate(contexts)}
    replaced = {
        text[:i] + words.words[word] + text[i + k :]: cosine
        for (i, k), rest in rests.items()
        if k
        for word, cosine in zip(top[row[rest]][:_EACH], value[row[rest]], strict=False)
    }
    fresh = [new for new in replaced if new not in filling.cosines]
    found = sorted(fresh, key=lambda new: -replaced[new])[:tries]
    # A comma or a *was* ranks low on any list, and the guess had it for a reason.
    put_in = [words.words[word] for word in top[row[text]][:_PUT_IN]] + [(word,) for word in _lost(filling.guess, text)]
    found += [text[:i] + word + text[i:] for word in put_in for i in range(len(text) + 1)]
    found += [text[:i] + (text[i + 1], text[i]) + text[i + 2 :] for i in range(len(text) - 1)]
    return list(dict.fromkeys(found))


def _lost(guess: Words, text: Words) -> list[str]:
    """Words of the guess that the text has no longer, each once."""
    return list(Counter(guess) - Counter(text))


def _spend(text: Words, guess: Words, words: WordList, tries: int) -> int:
    """Queries that a round costs at most."""
    n = len(text)
    return len(left_out(text)) + tries + (min(_PUT_IN, len(words)) + len(_lost(guess, text))) * (n + 1) + n


def _embed(texts: Sequence[Sequence[Words]], fillings: Sequence[_Filling], embedder: Embedder) -> None:
    """Embed those texts of each target that were not met before."""
    rows = [
        (filling, text)
        for filling, mine in zip(fillings, texts, strict=True)
        for text in dict.fromkeys(mine)
        if text not in filling.cosines
    ]
    if not rows:  # an embedder behind a defence takes no empty list
        return
    vectors = _unit(embedder.encode([" ".join(text) for _, text in rows], truncate=True, progress=False))
    for (filling, text), vector in zip(rows, vectors, strict=True):
        filling.cosines[text] = float(vector @ filling.target)
        filling.vectors[text] = vector.copy()  # a copy, or each would keep the vectors of its whole round


def _checked(embeddings: np.ndarray, words: WordList) -> np.ndarray:
    """Targets as unit vectors float32 [n, d], or a :class:`VectorError` that says what is wrong."""
    try:
        array, d = np.asarray(embeddings), words.vectors.shape[1]
    except ValueError as error:  # rows of unequal length
        raise VectorError("Vectors must be one array of numbers, a row each; check what was given.") from error
    if array.dtype.kind not in "fiu":
        raise VectorError(f"Vectors of {array.dtype} were given; embeddings are real numbers.")
    if array.ndim != 2 or array.shape[1] != d:
        raise VectorError(f"Vectors of shape {array.shape} were given; the word list's have shape [n, {d}].")
    if not np.isfinite(array).all():
        raise VectorError(f"Vector {int(np.flatnonzero(~np.isfinite(array).all(1))[0])} holds NaN or infinity.")
    if len(array) and not (lengths := np.linalg.norm(array, axis=1)).all():
        raise VectorError(f"Vector {int(np.flatnonzero(lengths == 0)[0])} is all zeros and has no direction.")
    return _unit(array)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
