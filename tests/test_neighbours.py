"""Neighbours: all texts one change away, priced as they are one by one, and the values of pieces."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib import neighbours
from tutorial_lib.neighbours import NEAREST, Neighbours, PieceValues, Places, Read, runs, score

D, KNOWN = 8, 12  # dimensions; known pieces, 100 to 111


@given(st.floats(-1, 1), st.floats(0, 9), st.floats(0, 9))
def test_a_nearer_text_and_a_likelier_text_are_worth_more(cosine: float, nats: float, other: float) -> None:
    assert score(cosine, min(nats, other)) >= score(cosine, max(nats, other))
    assert score(1.0, nats) >= score(cosine, nats)
    assert np.isfinite(score(cosine, nats))
    assert score(0.98, nats) - score(0.96, nats) == pytest.approx(np.log(2))  # half the distance
    assert score(cosine, nats, sense=0.0) == score(cosine, other, sense=0.0)


def test_values_of_pieces_foresee_where_a_text_lands() -> None:
    """Vectors that are a mean over pieces: after 300 texts, a change of content is foreseen well."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(30, 16)) + 1.0

    def embed(ids: tuple[int, ...]) -> np.ndarray:
        mean = table[list(ids)].mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    values, target = PieceValues(), embed((1, 2, 3, 4, 5, 6))
    texts = [tuple(rng.integers(0, 30, 6).tolist()) for _ in range(300)]
    for text in texts:
        values.add(text, embed(text), float(embed(text) @ target))
    values.fit()
    children = [(*text[:5], int(rng.integers(30))) for text in texts[:100]]
    known = np.stack([embed(text) for text in texts[:100]])
    expected, real = values.moved(children, texts[:100], known), np.stack([embed(text) for text in children])
    missed = 1 - (expected * real).sum(1)
    unmoved = 1 - (known * real).sum(1)
    assert np.linalg.norm(expected, axis=1) == pytest.approx(1)
    assert missed.mean() < 0.2 * unmoved.mean()


def test_only_the_nearest_texts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_LEARNT", 4)
    values = PieceValues()
    for index in range(8):
        values.add((index,), np.eye(8, dtype=np.float32)[index], index / 8)
    values.fit()
    assert sorted(values._column) == [4, 5, 6, 7]


def test_a_piece_never_seen_is_expected_to_do_nothing() -> None:
    values = PieceValues()
    for text in ((1, 2), (1, 3), (2, 3)):
        values.add(text, np.eye(4, dtype=np.float32)[text[0]], 0.5)
    values.fit()
    assert values.moved([(8, 9)], [(7, 8)], np.eye(4)[1:2] * 3)[0] == pytest.approx(np.eye(4)[1])
    assert (values.of([9, 1]) != 0).any(1).tolist() == [False, True]


# ---- prices -----------------------------------------------------------------------------------------------


class Setting:
    """Random values of pieces and a random bigram inverter, for which a reading of a guess holds every join."""

    def __init__(self, seed: int, sense: float = 0.02) -> None:
        self.rng = np.random.default_rng(seed)
        self.columns = {100 + index: index for index in range(KNOWN)}
        self.values = PieceValues()
        for _ in range(60):
            text = tuple(self.rng.integers(100, 100 + KNOWN, 6).tolist())
            self.values.add(text, unit(self.rng.normal(size=D) + 1), 0.5)
        self.values.fit()
        self.target = unit(self.rng.normal(size=D) + 1)
        logits = self.rng.normal(size=(KNOWN + 1, KNOWN + 1))  # [after a piece or at the start, a piece or the end]
        self.bigrams = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        self.beside = Neighbours(self.values, self.target, self.columns, np.arange(KNOWN), sense)
        self.sense = sense

    def nats(self, ids: tuple[int, ...]) -> float:
        path = [KNOWN, *(self.columns[piece] for piece in ids), KNOWN]
        return -float(sum(self.bigrams[a, b] for a, b in itertools.pairwise(path)))

    def read(self, ids: tuple[int, ...]) -> Read:
        before = [KNOWN, *(self.columns[piece] for piece in ids)]
        embedding = unit(self.rng.normal(size=D) + 2 * self.target)
        table = self.bigrams[before].astype(np.float32)
        return Read(ids, embedding, float(embedding @ self.target), Places(table[:, :KNOWN], table[:, KNOWN]))

    def cosine(self, text: tuple[int, ...], guess: Read) -> float:
        return float(self.values.moved([text], [guess.ids], guess.unit[None])[0] @ self.target)


def unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


guesses = st.lists(st.integers(100, 99 + KNOWN), min_size=2, max_size=7).map(tuple)


@given(guesses, st.integers(0, 20))
def test_expected_cosines_are_those_of_the_values(ids: tuple[int, ...], seed: int) -> None:
    """The matrix products give what :meth:`PieceValues.moved` gives text by text."""
    here = Setting(seed)
    guess = here.read(ids)
    every = here.beside.changed([guess], longest=20, count=10_000, noise=0.0, rng=here.rng)
    assert ids not in every and every
    for text, price in every.items():
        assert price.origin == 0
        assert price.cosine == pytest.approx(min(NEAREST, here.cosine(text, guess)), abs=1e-4)


@given(guesses, st.integers(0, 20))
def test_sense_counts_every_join_the_reading_holds(ids: tuple[int, ...], seed: int) -> None:
    """Under a bigram model a reading foresees an omission and an exchange of runs exactly."""
    here = Setting(seed, sense=1.0)
    guess = here.read(ids)
    worth, _ = here.beside.dropping(guess)
    for place in range(len(ids)):
        text = ids[:place] + ids[place + 1 :]
        expected = score(min(NEAREST, here.cosine(text, guess)), here.nats(text), 1.0)
        assert worth[place, 0] == pytest.approx(float(expected), abs=1e-3)
    for worth_of, i, j, k in zip(here.beside.exchanging(guess), *runs(len(ids)), strict=True):
        text = ids[:i] + ids[j:k] + ids[i:j] + ids[k:]
        assert worth_of == pytest.approx(float(score(guess.cosine, here.nats(text), 1.0)), abs=1e-3)


@given(guesses, st.integers(0, 20))
def test_prices_hold_the_nats_of_those_joins(ids: tuple[int, ...], seed: int) -> None:
    here = Setting(seed)
    guess = here.read(ids)
    kinds = set()
    for text, price in here.beside.changed([guess], 20, 10_000, 0.0, here.rng).items():
        kinds.add(len(text) - len(ids))
        same = next((place for place, (a, b) in enumerate(zip(ids, text, strict=False)) if a != b), None)
        if len(text) < len(ids):  # an omission, whose joins the reading holds
            assert price.nats == pytest.approx(here.nats(text), abs=1e-2)
        elif len(text) == len(ids):  # a replacement, of which it holds the join before it
            assert same is not None
            chances = guess.places.pieces[same]
            change = chances[here.columns[ids[same]]] - chances[here.columns[text[same]]]
            assert price.nats == pytest.approx(here.nats(ids) + float(change), abs=1e-2)
        elif same is None or text.count(text[same]) == 1:  # put in, and not beside its like, where it has two places
            place = len(ids) if same is None else same
            if not (place and text[place] == text[place - 1]):
                chance = guess.places.pieces[place, here.columns[text[place]]]
                assert price.nats == pytest.approx(here.nats(ids) - float(chance), abs=1e-2)
    assert kinds == {-1, 0, 1}
    for text, price in here.beside.reordered([guess], 10_000, 0.0, here.rng).items():
        assert price.nats == pytest.approx(here.nats(text), abs=1e-2)
        assert price.cosine == guess.cosine


def test_every_single_change_is_listed() -> None:
    here = Setting(0)
    ids = (100, 101, 102)
    found = here.beside.changed([here.read(ids)], longest=4, count=10_000, noise=0.0, rng=here.rng)
    pieces = range(100, 100 + KNOWN)
    single = {ids[:at] + ids[at + 1 :] for at in range(3)}
    single |= {(*ids[:at], piece, *ids[at + 1 :]) for at in range(3) for piece in pieces}
    single |= {(*ids[:at], piece, *ids[at:]) for at in range(4) for piece in pieces}
    assert set(found) == single - {ids}
    full = here.beside.changed([here.read(ids)], longest=3, count=10_000, noise=0.0, rng=here.rng)
    assert max(map(len, full)) == 3  # nothing is put in where there is no room
    orders = here.beside.reordered([here.read(ids)], count=99, noise=0.0, rng=here.rng)
    assert set(orders) == {(101, 100, 102), (101, 102, 100), (102, 100, 101), (100, 102, 101)}


def test_the_best_come_first_and_noise_makes_it_a_draw() -> None:
    here = Setting(1)
    read = [here.read((100, 101, 102, 103)), here.read((104, 105, 106))]

    def few(noise: float, seed: int) -> list[Any]:
        return list(here.beside.changed(read, 9, 5, noise, np.random.default_rng(seed)).items())

    every = list(here.beside.changed(read, 9, 10_000, 0.0, here.rng).items())
    assert few(0.0, 0) == few(0.0, 1) == every[:5]
    assert few(3.0, 0) == few(3.0, 0) != few(3.0, 1)


def test_pieces_known_since_a_reading_are_left_out_of_it() -> None:
    here = Setting(2)
    guess = here.read((100, 101))
    early = Read(guess.ids, guess.unit, guess.cosine, Places(guess.places.pieces[:, :4], guess.places.end))
    found = here.beside.changed([early], longest=9, count=10_000, noise=0.0, rng=here.rng)
    assert {piece for text in found for piece in text} == {100, 101, 102, 103}


def test_prices_say_which_guess_they_are_of() -> None:
    here = Setting(4)
    read = [here.read(ids) for ids in ((100, 101, 102), (103, 104, 105, 106), (107,))]
    found = here.beside.changed(read, 9, 10_000, 0.0, here.rng)
    assert found[100, 101].origin == found[100, 101, 102, 107].origin == 0
    assert found[103, 104, 106].origin == 1 and found[107, 100].origin == found[101,].origin == 2
    orders = here.beside.reordered(read, 10_000, 0.0, here.rng)
    assert {len(text): price.origin for text, price in orders.items()} == {3: 0, 4: 1}
    assert len(orders) == len(runs(3)[0]) + len(runs(4)[0])


def test_one_piece_and_no_guess_at_all() -> None:
    here = Setting(3)
    assert here.beside.reordered([here.read((100,))], 9, 0.3, here.rng) == {}
    found = here.beside.changed([here.read((100,))], 9, 10_000, 0.3, here.rng)
    assert () not in found and (101,) in found and (100, 100) in found
    assert here.beside.changed([], 9, 9, 0.3, here.rng) == {}
