"""The surrogate: what it makes of a text, what it learns, what it chooses, and the search that it guides."""

from __future__ import annotations

from itertools import pairwise, permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib import Corrector, Inverter, surrogate
from tutorial_lib.errors import CheckpointError, TutorialError, VectorError
from tutorial_lib.neighbours import Neighbours, PieceValues, Places, Read, runs
from tutorial_lib.search import SOLVED
from tutorial_lib.surrogate import Guided, Surrogate, changed, features, reordered, surrogate_search
from tutorial_lib.variants import BEAM, Guess, Variants

DIMENSION = 24
texts = st.lists(st.integers(10, 15), min_size=1, max_size=8).map(tuple)


def answer(ids: tuple[int, ...]) -> np.ndarray:
    """A made-up embedder: what pieces add, and what neighbours do."""
    row = np.zeros(DIMENSION)
    for piece in ids:
        row += np.random.default_rng(piece).normal(size=DIMENSION) / len(ids)
    for first, second in pairwise(ids):
        row += np.random.default_rng([first, second]).normal(size=DIMENSION) / len(ids)
    return row / np.linalg.norm(row)


def taught(model: PieceValues, target: np.ndarray, count: int = 400) -> PieceValues:
    rng = np.random.default_rng(0)
    for _ in range(count):
        ids = tuple(rng.integers(10, 18, 6).tolist())
        model.add(ids, answer(ids).astype(np.float32), float(answer(ids) @ target))
    model.fit()
    return model


# ---- what it learns ---------------------------------------------------------------------------------------


@given(texts)
def test_features_are_shares_of_pieces_and_of_pairs(ids: tuple[int, ...]) -> None:
    found = features(ids)
    pieces = {feature: share for feature, share in found.items() if isinstance(feature, int)}
    assert set(pieces) == set(ids) and sum(pieces.values()) == pytest.approx(1)
    beside = [share for feature, share in found.items() if not isinstance(feature, int) and feature[2] == 1]
    assert sum(beside) == pytest.approx(0.3**0.5 * (len(ids) + 1) / len(ids))
    assert {f[2] for f in found if not isinstance(f, int)} == {1, *range(2, min(4, len(ids)))}


def test_features_know_the_order_and_both_ends() -> None:
    one, other = features((10, 11, 12)), features((12, 11, 10))
    assert {f for f in one if isinstance(f, int)} == {f for f in other if isinstance(f, int)}
    assert (-1, 10, 1) in one and (12, -2, 1) in one and (10, 12, 2) in one
    assert (-1, 12, 1) in other and (10, -2, 1) in other and (12, 10, 2) in other
    assert features((10, 11, 12))[10, 11, 1] > features((10, 11, 12))[10, 12, 2] > 0
    assert features(()) == {(-1, -2, 1): 0.3**0.5}


def test_orders_are_foreseen_from_pairs_and_not_from_pieces() -> None:
    text = (10, 12, 14, 16, 11, 13)
    target, others = answer(text), [p for p in permutations(text) if p != text][::7]
    true, known = np.array([answer(p) @ target for p in others]), np.tile(answer(text), (len(others), 1))
    pairs, pieces = (
        model.moved(others, [text] * len(others), known) @ target
        for model in (taught(Surrogate(), target), taught(PieceValues(), target))
    )
    assert np.corrcoef(pairs, true)[0, 1] > 0.8
    assert np.ptp(pieces) < 1e-6 < np.ptp(pairs)


def test_it_is_weighted_ridge_regression_with_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dual form against the normal equations, written out."""
    monkeypatch.setattr(surrogate, "_LEARNT", 30)
    target = answer((10, 11, 12))
    model = taught(Surrogate(), target, count=50)
    kept = np.argsort(-np.array(model._cosines), kind="stable")[:30]
    rows = [model._texts[i] for i in kept]
    names = list(dict.fromkeys(feature for row in rows for feature in features(row)))
    shares = np.array([[features(row).get(name, 0.0) for name in names] for row in rows])
    vectors, cosines = np.stack([model._vectors[i] for i in kept]), np.array([model._cosines[i] for i in kept])
    weights = np.exp(12 * (cosines - cosines.max())) + 0.02
    full = np.column_stack([shares, np.ones(30)])
    penalty = 1e-3 * np.diag([1.0] * len(names) + [0.0])  # none on the constant
    effects = np.linalg.solve(full.T @ (weights[:, None] * full) + penalty, full.T @ (weights[:, None] * vectors))
    assert np.abs(model.of(names) - effects[:-1]).max() < 1e-3 * np.abs(effects).max()


def test_a_text_lies_where_it_is_known_to_and_news_say_nothing() -> None:
    text, target = (10, 12, 14), answer((10, 12, 14))
    model, known = taught(Surrogate(), target), 3 * answer(text)[None]
    assert np.allclose(model.moved([text], [text], known), answer(text)[None], atol=1e-6)
    assert not model.of([99]).any() and not model.of([(99, 98, 1)]).any()
    with_news, without = model.moved([(10, 99)], [text], known), model.moved([(10, 98)], [text], known)
    assert np.array_equal(with_news, without) and np.isfinite(with_news).all()
    assert model.moved([], [], np.zeros((0, DIMENSION))).shape == (0, DIMENSION)


# ---- what it chooses --------------------------------------------------------------------------------------


@pytest.fixture
def priced() -> tuple[Neighbours, list[Read]]:
    rng = np.random.default_rng(1)
    target = answer((10, 12, 14, 16))
    model, columns = taught(Surrogate(), target), {piece: place for place, piece in enumerate(range(10, 18))}
    beside = Neighbours(model, target, columns, np.arange(len(columns)), sense=0.02)
    read = []
    for ids in ((10, 12, 16), (14, 12, 10, 16), (11,)):
        chances = np.log(rng.dirichlet(np.ones(9), len(ids) + 1)).astype(np.float32)
        unit = answer(ids).astype(np.float32)
        read.append(Read(ids, unit, float(unit @ target), Places(chances[:, :8], chances[:, 8])))
    return beside, read


def nats_of(read: Read, beside: Neighbours) -> float:
    chances, n = read.places, len(read.ids)
    return -float(sum(chances.pieces[i, beside.columns[piece]] for i, piece in enumerate(read.ids)) + chances.end[n])


def test_changes_are_those_of_the_neighbours_with_their_nats(priced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, read = priced
    monkeypatch.setattr(surrogate, "_NOISE", 0.0)
    found = changed(beside, read, 4, 60, np.random.default_rng(0))
    wanted = beside.changed(read, 4, 60, 0.0, np.random.default_rng(0))
    assert list(found) == list(wanted) and len(found) > 40
    assert {text: number for text, (number, _) in found.items()} == {t: number for t, (number, _) in wanted.items()}
    kinds = set()
    for text, (number, nats) in found.items():
        ids, chances = read[number].ids, read[number].places.pieces
        place = next((p for p in range(min(len(ids), len(text))) if text[p] != ids[p]), min(len(ids), len(text)))
        before = nats_of(read[number], beside)
        if len(text) == len(ids):
            wanted_nats = (
                before + chances[place, beside.columns[ids[place]]] - chances[place, beside.columns[text[place]]]
            )
        elif len(text) > len(ids):
            wanted_nats = before - chances[place, beside.columns[text[place]]]
        else:
            continue  # its joins are counted by the neighbours, whose tests count them again
        kinds.add(len(text) - len(ids))
        if text.count(text[min(place, len(text) - 1)]) == 1:  # beside its like a piece may have come before or after it
            assert nats == pytest.approx(float(wanted_nats), abs=1e-3)
    assert kinds == {0, 1}


def test_orders_are_those_of_the_neighbours_with_their_nats(priced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, read = priced
    monkeypatch.setattr(surrogate, "_NOISE", 0.0)
    found = reordered(beside, read, 50, np.random.default_rng(0))
    assert list(found) == list(beside.reordered(read, 50, 0.0, np.random.default_rng(0)))
    assert len(found) == len({(10, 12, 16)} | set(found)) - 1 == len(runs(3)[0]) + len(runs(4)[0])
    places = read[0].places
    swapped = [places.pieces[0, 2], places.pieces[2, 0], places.pieces[1, 6], places.end[3]]  # 12 10 16
    assert found[12, 10, 16][1] == pytest.approx(-float(sum(swapped)), abs=1e-3)


def test_nothing_to_change_gives_nothing(priced: Any) -> None:
    beside, read = priced
    assert reordered(beside, read[2:], 9, np.random.default_rng(0)) == {}
    assert (
        reordered(beside, [], 9, np.random.default_rng(0)) == changed(beside, [], 4, 9, np.random.default_rng(0)) == {}
    )


# ---- with networks ----------------------------------------------------------------------------------------


@pytest.fixture
def guided(embedder: Any, make_tiny: Any) -> Guided:
    return Guided(embedder, make_tiny(Inverter), make_tiny(Corrector, seed=1))


def test_sifting_ranks_by_what_is_foreseen_and_by_sense(
    embedder: Any, guided: Guided, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = guided.begin(torch.from_numpy(embedder.encode(["a new law"]))[0])
    assert isinstance(population.values, Surrogate)
    near = {(1,): 0.5, (2,): 0.9, (3,): 0.8}
    monkeypatch.setattr(
        Surrogate, "moved", lambda self, texts, parents, known: np.outer([near[t] for t in texts], population.unit)
    )
    made = {text: Guess("a", 0.5, torch.ones(embedder.dimension), (9,)) for text in near}
    found = guided.sift(population, made, np.zeros(3), 2, 0.02)
    assert list(found) == [(2,), (3,)] and found[2,] == pytest.approx(0.9)
    assert list(guided.sift(population, made, np.array([0.0, 99.0, 0.0]), 3, 0.02)) == [(3,), (1,), (2,)]
    assert guided.sift(population, {}, np.zeros(0), 3, 0.02) == {}


def test_it_learns_in_every_round(embedder: Any, guided: Guided, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, real = [], Surrogate.fit
    monkeypatch.setattr(Surrogate, "fit", lambda self: (fitted.append(len(self._texts)), real(self)))
    result = surrogate_search(
        embedder.encode(["peace and work"]), embedder, guided.inverter, guided.corrector, steps=5, variants=8
    )
    assert fitted == [row.queries for row in result.trace[0]][: len(fitted)] and len(fitted) == 5


def test_a_text_is_found_from_a_wrong_guess(embedder: Any, make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From several changes away, with networks that know nothing and whose sense is not asked."""
    monkeypatch.setattr(Variants, "nats", lambda self, population, texts: np.zeros(len(texts)))
    starts = {"a new law for the people": "for the people new work"}
    target = embedder.encode(list(starts))
    first = dict(zip(map(bytes, target), starts.values(), strict=True))
    monkeypatch.setattr(Variants, "first", lambda self, population: [first[bytes(population.target.numpy())]])
    models = make_tiny(Inverter), make_tiny(Corrector, seed=1)
    spent = embedder.queries
    result = surrogate_search(target, embedder, *models, steps=60, variants=24)
    assert result.queries.sum() == embedder.queries - spent
    assert result.at(0) == list(starts.values()) and result.texts == list(starts)
    assert (result.cosines >= SOLVED).all() and (result.queries <= 1 + 24 * result.steps).all()
    for trace in result.trace:
        assert [row.cosine for row in trace] == sorted(row.cosine for row in trace)
        assert [row.step for row in trace] == list(range(len(trace)))
    cheap = surrogate_search(target, embedder, *models, steps=60, variants=24, max_queries=40)
    assert (cheap.queries == 25).all()  # a first guess and one round


def test_a_text_is_found_alone_as_it_is_among_others(
    embedder: Any, make_tiny: Any, test_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogate, "_SIFTED", 4)
    models = make_tiny(Inverter), make_tiny(Corrector, seed=1)
    target, state = embedder.encode(["peace", test_texts[0]]), torch.get_rng_state()
    together = surrogate_search(target, embedder, *models, steps=4, variants=9)
    assert torch.equal(torch.get_rng_state(), state)
    for index in range(2):
        alone = surrogate_search(target[index : index + 1], embedder, *models, steps=4, variants=9)
        assert [row.text for row in alone.trace[0]] == [row.text for row in together.trace[index]]


def test_few_rounds_few_variants_no_texts(embedder: Any, tiny_inverter: Any, tiny_corrector: Any) -> None:
    models, target = (tiny_inverter, tiny_corrector), embedder.encode(["peace and work"])
    assert surrogate_search(target, embedder, *models, steps=0).queries[0] <= BEAM
    assert surrogate_search(target, embedder, *models, steps=3, variants=1).queries[0] <= BEAM + 3
    assert surrogate_search(target[:0], embedder, *models).texts == []
    tiny_inverter.to_embedder_ids = lambda ids: [[] for _ in ids]  # an inverter that writes nothing at all
    assert surrogate_search(target, embedder, *models, steps=1, variants=4).at(0) == ["."]


def test_wrong_input_is_refused(embedder: Any, make_tiny: Any, tiny_inverter: Any, tiny_corrector: Any) -> None:
    models, target = (tiny_inverter, tiny_corrector), embedder.encode(["peace and work"])
    for options in ({"variants": 0}, {"steps": -1}, {"max_queries": BEAM - 1}):
        with pytest.raises(TutorialError, match="variants are at least 1"):
            surrogate_search(target, embedder, *models, **options)
    with pytest.raises(VectorError, match="shape"):
        surrogate_search(target[:, :-1], embedder, *models)
    with pytest.raises(VectorError, match="NaN"):
        surrogate_search(target * np.nan, embedder, *models)
    table = SimpleNamespace(name=embedder.name, closed=True)
    with pytest.raises(TutorialError, match="nobody to ask"):
        surrogate_search(target, table, *models)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="corrector was made for gtr-base"):
        surrogate_search(target, embedder, tiny_inverter, make_tiny(Corrector, embedder_name="gtr-base"))
