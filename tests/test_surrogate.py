"""The search with a surrogate: what it chooses, how it looks ahead, and what it finds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_surrogate_model import DIMENSION

from tutorial_lib import Corrector, Inverter, surrogate
from tutorial_lib.errors import CheckpointError, TutorialError, VectorError
from tutorial_lib.search import SOLVED
from tutorial_lib.surrogate import Guided, offer, sift, surrogate_search
from tutorial_lib.surrogate_model import Surrogate, WordsAlone
from tutorial_lib.variants import BEAM, Guess, Variants
from tutorial_lib.word_lists import WordList

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
    found = sift(population, made, np.zeros(3), 2, 0.02)
    assert list(found) == [(2,), (3,)] and found[2,] == pytest.approx(0.9)
    assert list(sift(population, made, np.array([0.0, 99.0, 0.0]), 3, 0.02)) == [(3,), (1,), (2,)]
    assert sift(population, {}, np.zeros(0), 3, 0.02) == {}


def test_it_learns_in_every_round(embedder: Any, guided: Guided, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, real = [], Surrogate.fit
    monkeypatch.setattr(Surrogate, "fit", lambda self: (fitted.append(len(self._texts)), real(self)))
    result = surrogate_search(
        embedder.encode(["peace and work"]), embedder, guided.inverter, guided.corrector, steps=5, variants=8
    )
    assert fitted == [row.queries for row in result.trace[0]][: len(fitted)] and len(fitted) == 5


# ---- looking ahead ----------------------------------------------------------------------------------------


def begun(guided: Guided, embedder: Any, texts: list[str]) -> Any:
    """A population after its first round."""
    population = guided.begin(torch.from_numpy(embedder.encode(texts[:1])[0]))
    guided.embed({0: population}, {0: guided.first(population)})
    guided.embed({0: population}, {0: guided.next(population, 16, 8)})
    return population


@pytest.fixture
def aligned(make_tiny: Any) -> tuple[Any, Any]:
    return make_tiny(Inverter), make_tiny(Corrector, seed=1, aligned=True)


def test_looking_ahead_prices_texts_farther_away(embedder: Any, aligned: Any, test_texts: list[str]) -> None:
    one, two = (Guided(embedder, *aligned, ahead=ahead) for ahead in (1, 2))
    near: dict[Any, float] = {}
    far: dict[Any, float] = {}
    for guided, out in ((one, near), (two, far)):
        population = begun(guided, embedder, test_texts)
        parents = [guess for guess in population.best if guess.places is not None]
        out |= guided.near(population, parents, 8, 0.02)
    assert parents and far.keys() > near.keys()  # all of the first step, and more
    assert not {guess.ids for guess in population.best} & far.keys()  # nothing that was embedded already
    assert all(0 < len(text) <= 8 for text in far)


def test_it_goes_on_from_where_texts_are_foreseen(embedder: Any, aligned: Any, test_texts: list[str]) -> None:
    guided = Guided(embedder, *aligned, ahead=2)
    population = begun(guided, embedder, test_texts)
    parents = [guess for guess in population.best if guess.places is not None]
    found = guided.beside(population, parents, 8, 0.02, {})
    spent = embedder.queries
    ahead = guided.foresee(population, found, 0.02)
    assert embedder.queries == spent and 0 < len(ahead) <= 8
    for guess in ahead:
        parent, cosine = found[guess.ids]
        moved = population.values.moved([guess.ids], [parent.ids], parent.unit[None])[0]
        assert np.allclose(guess.unit, moved, atol=1e-5) and guess.cosine == pytest.approx(cosine, abs=1e-5)
        assert guess.places is not None and guess.places.pieces.shape[0] == len(guess.ids) + 1
    again = guided.beside(population, ahead, 8, 0.02, dict.fromkeys(found, 0.0))
    assert again and not again.keys() & found.keys()


def test_where_nothing_is_found_it_looks_no_farther(
    embedder: Any, aligned: Any, test_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guided = Guided(embedder, *aligned, ahead=3)
    population = begun(guided, embedder, test_texts)
    looked: list[Any] = []
    monkeypatch.setattr(guided, "beside", lambda *arguments: looked.append(arguments) or {})
    assert guided.near(population, population.best, 8, 0.02) == {}
    assert len(looked) == 1


def test_what_was_read_to_look_ahead_is_not_read_again(
    embedder: Any, aligned: Any, test_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guided = Guided(embedder, *aligned, ahead=3)
    population = begun(guided, embedder, test_texts)
    read, real = [], Variants.nats
    monkeypatch.setattr(
        Variants, "nats", lambda self, p, texts: (read.extend(map(tuple, texts)), real(self, p, texts))[1]
    )
    new = guided.propose(population, 8)
    assert len(read) == len(set(read)) >= len(new) > 0
    assert not guided._nats  # nothing of one target is believed of the next
    assert np.allclose(
        [population.nats[text] for text in new], real(guided, population, embedder.token_ids(new)), rtol=0.02
    )


def test_words_that_would_come_nearest_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is a guess with its second word replaced by word 17; words do what they say."""
    vectors = np.random.default_rng(0).normal(size=(8, DIMENSION)).astype(np.float32)
    tokens = SimpleNamespace(token_ids=lambda texts: [[int(text[4:])] for text in texts])
    words = WordsAlone(WordList([f"word{piece}" for piece in range(10, 18)], vectors), tokens)  # type: ignore[arg-type]
    base = 3 * np.ones(DIMENSION)
    vector, target = (base + words.means([ids])[0] for ids in ((10, 11, 12), (10, 17, 12)))
    size = np.linalg.norm(vector)
    values = Surrogate(words)
    monkeypatch.setattr(values, "of", lambda pieces: words.means([(piece,) for piece in pieces]) / size)
    monkeypatch.setattr(values, "words_towards", lambda target, count: words.pieces[:-count:-1])
    population = SimpleNamespace(
        values=values,
        best=[SimpleNamespace(ids=(10, 11, 12), unit=vector / size)],
        unit=target / np.linalg.norm(target),
        pieces=dict.fromkeys(range(10, 18), 0),
    )
    monkeypatch.setattr(surrogate, "_OFFERED", 1)
    monkeypatch.setattr(surrogate, "_CONSIDERED", len(words.pieces) + 1)
    offer(population)  # type: ignore[arg-type]
    assert [piece for piece, count in population.pieces.items() if count] == [17]
    population.best = [SimpleNamespace(ids=(), unit=vector / size)]
    offer(population)  # type: ignore[arg-type]  # a guess of nothing has no place for any
    assert sum(population.pieces.values()) == 1


def test_words_and_looking_ahead_change_what_is_asked(embedder: Any, aligned: Any, test_texts: list[str]) -> None:
    words, target = WordList.embed(test_texts[0].split(), embedder, progress=False), embedder.encode(test_texts[:1])

    def asked(**options: Any) -> list[str]:
        encode, texts = embedder.encode, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedder, "encode", lambda new, **o: (texts.extend(new), encode(new, **o))[1])
            result = surrogate_search(target, embedder, *aligned, steps=3, variants=12, **options)
        assert result.queries[0] == len(texts)  # the words were paid for before
        return texts

    searches = [asked(), asked(words=words), asked(ahead=2), asked(ahead=2, words=words)]
    assert len({tuple(texts) for texts in searches}) == 4
    assert asked(ahead=2, words=words) == searches[-1]


# ---- the search -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("ahead", "threads"), [(1, 1), (2, 1), (2, 3)])
def test_a_text_is_found_alone_as_it_is_among_others(
    ahead: int, threads: int, embedder: Any, make_tiny: Any, test_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogate, "_SIFTED", 4)
    models = make_tiny(Inverter), make_tiny(Corrector, seed=1)
    options = {"ahead": ahead, "words": WordList.embed(test_texts[0].split(), embedder, progress=False)}
    target, state = embedder.encode(["peace", *test_texts[:3]]), torch.get_rng_state()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # so many are searched for at a time
    together = surrogate_search(target, embedder, *models, steps=4, variants=9, **options)
    torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)
    for index in range(len(target)):
        alone = surrogate_search(target[index : index + 1], embedder, *models, steps=4, variants=9, **options)
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
    for options in ({"variants": 0}, {"steps": -1}, {"max_queries": BEAM - 1}, {"ahead": 0}):
        with pytest.raises(TutorialError, match=r"at least (1|one)"):
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
    with pytest.raises(VectorError, match="embed the list with this embedder"):
        surrogate_search(target, embedder, *models, words=WordList(["peace"], np.ones((1, 8), dtype=np.float32)))
