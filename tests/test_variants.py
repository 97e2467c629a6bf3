"""Variants: what recombination can make, what the values of pieces foresee, and what the search does with both."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib import Corrector, Inverter
from tutorial_lib.errors import CheckpointError, TutorialError, VectorError
from tutorial_lib.neighbours import score
from tutorial_lib.search import SOLVED
from tutorial_lib.variants import BEAM, SAMPLES, Guess, Population, Variants, breed, changed, make

rows = st.lists(st.integers(10, 15), max_size=8)


def population(seed: int = 0, dimension: int = 6) -> Population:
    made = Population(
        torch.ones(dimension), torch.zeros(1, 2, 4), torch.ones(9, dtype=torch.bool), np.random.default_rng(seed)
    )
    made.pieces.update({20: 9, 21: 4, 22: 1})
    return made


@given(rows, rows.filter(bool), st.integers(0, 2**31))
def test_a_change_takes_pieces_from_its_sources_only(text: list[int], other: list[int], seed: int) -> None:
    before = list(text)
    found = changed(text, 99, other, np.random.default_rng(seed))
    assert text == before  # not in place
    assert set(found) <= {*text, *other, 99}
    assert found.count(99) <= 1
    assert len(found) <= len(text) + max(5, len(other))


def test_every_kind_of_change_is_made() -> None:
    text, other = [1, 2, 3, 4], [5, 6, 7, 8]
    found = {tuple(changed(text, 9, other, np.random.default_rng(seed))) for seed in range(3000)}
    assert (3, 4, 1, 2) in found  # a run moved
    assert (4, 2, 3, 1) in found  # two exchanged
    assert (1, 3, 4) in found  # one dropped
    assert (1, 2, 3, 4, 9) in found and (9, 1, 2, 3, 4) in found  # put in, the ends included
    assert (1, 9, 3, 4) in found  # in place of another
    assert (1, 2, 7, 8) in found  # the beginning of one, the end of the other
    assert (1, 5, 6, 4) in found  # a run taken from the other


def test_variants_are_new_short_enough_and_know_their_parent() -> None:
    parents = [Guess("a", 0.9, torch.ones(6), (10, 11, 12, 13)), Guess("b", 0.8, torch.ones(6), (14, 15))]
    bred = population()
    bred.tried = {(10, 11, 12), (10, 11, 12, 13), (14, 15)}
    found = make(bred, parents, longest=5, count=2000)
    assert not bred.tried & set(found)
    assert {len(text) for text in found} == {1, 2, 3, 4, 5}
    assert {parent.text for parent in found.values()} == {"a", "b"}
    assert found[10, 11, 13].text == "a"
    assert set().union(*found) == {10, 11, 12, 13, 14, 15, 20, 21, 22}


def test_likelier_pieces_are_put_in_more_often() -> None:
    found = make(population(), [Guess("a", 0.9, torch.ones(6), (10, 11, 12, 13))], longest=5, count=4000)
    tally = Counter(piece for text in found for piece in text if piece >= 20)
    assert tally[20] > tally[22] > 0


def test_two_populations_of_one_seed_are_alike() -> None:
    parents = [Guess("a", 0.9, torch.ones(6), (10, 11, 12, 13))]
    assert list(make(population(3), parents, 6)) == list(make(population(3), parents, 6))
    assert list(make(population(3), parents, 6)) != list(make(population(4), parents, 6))


# ---- with networks ----------------------------------------------------------------------------------------


@pytest.fixture
def variants(embedder: Any, make_tiny: Any) -> Variants:
    return Variants(embedder, make_tiny(Inverter), make_tiny(Corrector, seed=1))


def vector(embedder: Any, text: str) -> torch.Tensor:
    return torch.from_numpy(embedder.encode([text]))[0]


def test_samples_are_drawn_with_random_numbers_of_the_texts_own(embedder: Any, variants: Variants) -> None:
    target = vector(embedder, "a new law for the people")
    spent, state = embedder.queries, torch.get_rng_state()
    one, two, other = (variants.begin(e) for e in (target, target, vector(embedder, "peace and work")))
    for population in (one, two, other):
        variants.sample(population)
    assert embedder.queries == spent + 1 and torch.equal(torch.get_rng_state(), state)
    assert 1 < len(one.samples) == len(set(one.samples)) <= SAMPLES
    assert one.samples == two.samples != other.samples
    assert sum(one.pieces.values()) == sum(len(set(row)) for row in one.sampled)


def test_nats_are_the_inverters(embedder: Any, variants: Variants) -> None:
    texts = ["a new law", "the people ask for a just law", "peace"]
    target = vector(embedder, texts[0])
    bred, ids = variants.begin(target), embedder.token_ids(texts)
    found = variants.nats(bred, ids)
    for row, nats in zip(ids, found, strict=True):
        with torch.no_grad():
            loss = variants.inverter(target[None], variants.inverter.to_model_ids([row]))
        assert nats == pytest.approx(float(loss) * (len(row) + 1), rel=0.01)  # bfloat16; the end counts
    assert variants.nats(bred, ids[::-1])[::-1] == pytest.approx(found, rel=0.01)


def test_nats_do_not_depend_on_the_texts_beside(embedder: Any, make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The softmax runs over some pieces only, but once the samples are drawn over the same ones."""
    monkeypatch.setattr("tutorial_lib.variants._FREQUENT", 4)
    variants = Variants(embedder, make_tiny(Inverter), make_tiny(Corrector, seed=1))
    bred = variants.begin(vector(embedder, "a new law"))
    variants.sample(bred)
    ids = embedder.token_ids(["a new law", "the people ask for a just law", "we will keep the peace of the world"])
    together = variants.nats(bred, ids)
    assert together == pytest.approx([variants.nats(bred, [row])[0] for row in ids], rel=0.01)


def test_judging_ranks_and_keeps_the_best_and_the_nearest(
    embedder: Any, variants: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutorial_lib.variants.PARENTS", 2)
    texts = ["a new law", "peace and work", "the men are home"]
    vectors = torch.from_numpy(embedder.encode(texts))
    bred = variants.begin(vectors[0])
    guesses = [Guess(text, cosine, e) for text, cosine, e in zip(texts, (0.5, 0.9, 0.7), vectors, strict=True)]
    variants.judge(bred, guesses)
    assert [list(guess.ids) for guess in guesses] == embedder.token_ids(texts)
    for guess in guesses:
        assert guess.nats > 0 and guess.rank == pytest.approx(float(score(guess.cosine, guess.nats)))
    assert bred.best == sorted(guesses, key=lambda guess: -guess.rank)[:2]
    assert bred.nearest is guesses[1]
    assert bred.tried == {guess.ids for guess in guesses}


def test_the_corrector_names_pieces_for_places(embedder: Any, variants: Variants) -> None:
    target, model = vector(embedder, "peace and men"), variants.corrector
    bred, guess = variants.begin(target), Guess("peace and work", 0.5, vector(embedder, "peace and work"))
    variants.judge(bred, [guess])
    variants.read(bred, [guess])
    chances = model.next_pieces(target[None], model.to_model_ids([guess.ids]), guess.embedding[None])[0].exp()
    chances[:, model.special] = 0
    found = set(model.vocabulary[chances.topk(8).indices].flatten().tolist())
    assert set(bred.pieces) == found and not found & {*embedder.tokenizer.all_special_ids}
    assert sum(bred.pieces.values()) == pytest.approx(2 * float(chances.topk(8).values.sum()), rel=0.01)


def test_a_reading_says_what_the_inverter_does(embedder: Any, variants: Variants) -> None:
    """Places of two guesses read together: their own pieces and ends have the nats of the texts."""
    texts = ["peace and work for all the people", "a new law"]
    bred, vectors = variants.begin(vector(embedder, "peace and men")), torch.from_numpy(embedder.encode(texts))
    guesses = [Guess(text, 0.5, e) for text, e in zip(texts, vectors, strict=True)]
    variants.judge(bred, guesses)
    variants.read(bred, guesses)
    for guess in guesses:
        assert guess.places is not None
        n = len(guess.ids)
        assert guess.places.pieces.shape == (n + 1, len(bred.known)) and guess.places.end.shape == (n + 1,)
        own = guess.places.pieces[range(n), [bred.known[piece] for piece in guess.ids]]
        assert -own.sum() - guess.places.end[n] == pytest.approx(guess.nats, rel=0.01)


def test_what_was_seen_is_not_proposed_again(embedder: Any, variants: Variants) -> None:
    texts = ["a new law for the people", "the people ask for a law"]
    vectors = torch.from_numpy(embedder.encode(texts))
    bred, twin = variants.begin(vectors[0]), variants.begin(vectors[0])
    for population in (bred, twin):
        variants.sample(population)
        variants.judge(population, [Guess(text, 0.5, e) for text, e in zip(texts, vectors, strict=True)])
    bred.seen.update(texts)
    twin.seen.update(texts)
    first = variants.propose(bred, 12)
    assert len(first) == len(set(first)) and not set(texts) & set(first)
    assert max(map(len, embedder.token_ids(first))) <= 12
    twin.seen.update(first[::2])
    assert not set(first[::2]) & set(variants.propose(twin, 12))
    assert {tuple(row) for row in embedder.token_ids(first[::2])} & twin.tried  # nor made again


# ---- the search -------------------------------------------------------------------------------------------


def test_texts_are_found_from_wrong_guesses(
    embedder: Any, make_tiny: Any, test_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From texts several changes away, with networks that know nothing and whose sense is not asked."""
    monkeypatch.setattr(Variants, "nats", lambda self, population, texts: np.zeros(len(texts)))
    starts = {
        "a new law for the people": "for the people a new law",
        "peace and work for all": "work for peace and men",
    }
    texts = list(starts)
    target = embedder.encode(texts)
    first = dict(zip(map(bytes, target), starts.values(), strict=True))
    monkeypatch.setattr(Variants, "first", lambda self, population: [first[bytes(population.target.numpy())]])
    models = make_tiny(Inverter), make_tiny(Corrector, seed=1)
    spent, told = embedder.queries, []
    result = breed(target, embedder, *models, steps=60, variants=24, on_step=lambda step, rows: told.append(rows))
    assert result.queries.sum() == embedder.queries - spent
    assert result.at(0) == list(starts.values()) and result.texts == texts
    assert (result.cosines >= SOLVED).all() and (result.queries <= 1 + 24 * result.steps).all()
    assert told[-1] == [rows[-1] for rows in result.trace] and len(told) == result.steps.max() + 1
    for trace in result.trace:
        assert [row.cosine for row in trace] == sorted(row.cosine for row in trace)
        assert [row.step for row in trace] == list(range(len(trace)))
    cheap = breed(target, embedder, *models, steps=60, variants=24, max_queries=60)
    assert (cheap.queries <= 60).all() and (cheap.queries > 30).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_text_is_found_alone_as_it_is_among_others(
    threads: int, embedder: Any, make_tiny: Any, test_texts: list[str]
) -> None:
    """Beside a longer text and a text of one piece, on as many cores as there are."""
    models = make_tiny(Inverter), make_tiny(Corrector, seed=1)
    target, state = embedder.encode(["peace", test_texts[0], test_texts[1]]), torch.get_rng_state()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = breed(target, embedder, *models, steps=6, variants=9)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)
    for index in range(3):
        alone = breed(target[index : index + 1], embedder, *models, steps=6, variants=9)
        assert [row.text for row in alone.trace[0]] == [row.text for row in together.trace[index]]
        assert alone.queries[0] == together.queries[index]
    shorter = breed(target, embedder, *models, steps=3, variants=9)
    assert shorter.texts == together.at(3) and (shorter.queries == together.queries_at(3)).all()


def test_variants_grow_no_longer_than_the_embedder_reads(
    embedder: Any, make_tiny: Any, test_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    whole = Variants.propose

    def seen(self: Variants, population: Population, longest: int) -> list[str]:
        lengths.append(longest)
        return whole(self, population, longest)

    monkeypatch.setattr(Variants, "propose", seen)
    monkeypatch.setattr(embedder, "max_tokens", 5)
    breed(embedder.encode(test_texts[:1], truncate=True), embedder, make_tiny(Inverter), make_tiny(Corrector), steps=2)
    assert lengths == [5, 5]


def test_few_rounds_few_variants_no_texts(embedder: Any, tiny_inverter: Any, tiny_corrector: Any) -> None:
    models, target = (tiny_inverter, tiny_corrector), embedder.encode(["peace and work"])
    assert breed(target, embedder, *models, steps=0).queries[0] <= BEAM
    one = breed(target, embedder, *models, steps=3, variants=1)
    assert one.queries[0] <= BEAM + 3
    assert breed(target[:0], embedder, *models).texts == []
    tiny_inverter.to_embedder_ids = lambda ids: [[] for _ in ids]  # an inverter that writes nothing at all
    assert breed(target, embedder, *models, steps=1, variants=4).at(0) == ["."]


def test_wrong_input_is_refused(embedder: Any, make_tiny: Any, tiny_inverter: Any, tiny_corrector: Any) -> None:
    models, target = (tiny_inverter, tiny_corrector), embedder.encode(["peace and work"])
    for options in ({"variants": 0}, {"steps": -1}, {"max_queries": BEAM - 1}):
        with pytest.raises(TutorialError, match="variants are at least 1"):
            breed(target, embedder, *models, **options)
    with pytest.raises(VectorError, match="shape"):
        breed(target[:, :-1], embedder, *models)
    with pytest.raises(VectorError, match="NaN"):
        breed(target * np.nan, embedder, *models)
    with pytest.raises(CheckpointError, match="corrector was made for gtr-base"):
        breed(target, embedder, tiny_inverter, make_tiny(Corrector, embedder_name="gtr-base"))
