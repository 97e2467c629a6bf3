"""Local edits: every proposal is one change away, none is missed, and the likeliest come first."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib.edits import LIKELY, LocalEdits, changed, reordered

ids = st.lists(st.integers(10, 15), min_size=1, max_size=8)


@given(ids)
def test_reordering_keeps_the_pieces_and_finds_every_exchange(row: list[int]) -> None:
    found = reordered(row, np.random.default_rng(0))
    assert all(sorted(other) == sorted(row) and other != row for other in found)
    assert len({tuple(other) for other in found}) == len(found)
    for i, j in itertools.combinations(range(len(row)), 2):
        swapped = list(row)
        swapped[i], swapped[j] = row[j], row[i]
        assert swapped == row or swapped in found
        moved = [*row[:i], *row[i + 1 : j + 1], row[i], *row[j + 1 :]]
        assert moved == row or moved in found
    turned = [*row[len(row) // 2 :], *row[: len(row) // 2]]  # the halves exchanged
    assert turned == row or turned in found


def test_a_long_text_has_a_sample_of_its_orders() -> None:
    row = list(range(32))
    found = reordered(row, np.random.default_rng(0))
    assert len(found) == 1000 == len({tuple(other) for other in found})
    assert all(sorted(other) == row for other in found)
    assert found == reordered(row, np.random.default_rng(0)) != reordered(row, np.random.default_rng(1))


@given(ids, st.sets(st.integers(20, 23)))
def test_changes_drop_replace_or_insert_one_piece(row: list[int], pieces: set[int]) -> None:
    found = changed(row, [sorted(pieces)] * (len(row) + 1), [sorted(pieces)] * len(row))
    n, m = len(row), len(pieces)
    dropped = {(*row[:p], *row[p + 1 :]) for p in range(n)} if n > 1 else set()
    assert len(found) == len({tuple(other) for other in found}) == len(dropped) + n * m + (n + 1) * m
    for other in found:
        new = [piece for piece in other if piece in pieces]
        assert len(new) == (len(other) >= n)
        rest = list(other)
        if new:
            rest.remove(new[0])
        assert any(rest == row[:p] + row[p + 1 :] for p in range(n)) or rest == row


@pytest.fixture
def local(embedder: Any, make_tiny: Any) -> LocalEdits:
    from tutorial_lib import Corrector, Inverter

    return LocalEdits(embedder, make_tiny(Inverter), make_tiny(Corrector, seed=1))


def proposals(local: LocalEdits, embedder: Any, texts: list[str], targets: list[str], seeds: list[int]) -> list:
    embeddings, target = (torch.from_numpy(embedder.encode(part)) for part in (texts, targets))
    rngs = [np.random.default_rng(seed) for seed in seeds]
    return local.propose(embedder.token_ids(texts), embeddings, target, rngs)


def test_edits_are_ranked_by_likelihood_and_cost_no_query(embedder: Any, local: LocalEdits) -> None:
    guess, target = "we keep the peace of the world will", "we will keep the peace of the world"
    spent = embedder.queries
    (found,) = proposals(local, embedder, [guess], [target], [0])
    assert embedder.queries == spent + 2  # the two texts embedded above
    assert target in found and guess not in found and len(set(found)) == len(found)
    sizes = {len(row) for row in embedder.token_ids(found)}
    assert sizes == {7, 8, 9}
    vector = torch.from_numpy(embedder.encode([target]))
    encoded = local.inverter.encode(local.inverter.encoder_inputs(vector)).detach()
    scores = local.inverter.likelihood(encoded, local.inverter.to_model_ids(embedder.token_ids(found)))
    assert (scores.diff() <= 0.5).all() and scores[0] > scores[-1] + 5  # within what bfloat16 can tell


def test_pieces_come_from_the_corrector_and_from_the_neighbourhood(embedder: Any, local: LocalEdits) -> None:
    """The corrector's likeliest pieces at each place, and those nearest to the one that stands there."""
    guess = "peace and work"
    (row,) = embedder.token_ids([guess])
    e = torch.from_numpy(embedder.encode(["peace and men", guess]))
    labels = local.corrector.to_model_ids([row])
    at = local.corrector.next_pieces(e[:1], labels, e[1:])[0, 1]
    at[local.corrector.special] = -torch.inf
    best = local.corrector.vocabulary[at.topk(LIKELY).indices].tolist()
    (found,) = proposals(local, embedder, [guess], ["peace and men"], [0])
    replaced = {tuple(ids)[1] for ids in embedder.token_ids(found) if [ids[0], *ids[2:]] == [row[0], row[2]]}
    table = torch.nn.functional.normalize(local.corrector.backbone.shared.weight, dim=1).detach()
    near = table @ table[labels[0, 1]]
    near[local.corrector.special] = -torch.inf
    beside = local.corrector.vocabulary[near.topk(8).indices].tolist()
    assert replaced == (set(best) | set(beside)) - {row[1]}


def test_a_batch_changes_no_proposal(embedder: Any, local: LocalEdits) -> None:
    texts, targets = ["we the peace", "war of the laws and the men"], ["the peace of men", "peace and land"]
    both = proposals(local, embedder, texts, targets, [0, 1])
    for index in range(2):
        (alone,) = proposals(local, embedder, texts[index : index + 1], targets[index : index + 1], [index])
        assert sorted(alone) == sorted(both[index])
        assert alone[:3] == both[index][:3]


def test_any_number_of_threads_lists_the_same_edits(embedder: Any, local: LocalEdits) -> None:
    args = ["we the peace", "war of the laws and the men", "peace"], ["the peace of men", "peace and land", "war"]
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(proposals(local, embedder, *args, [0, 1, 2]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert sorted(one) == sorted(three) and one[:3] == three[:3]


def test_words_outside_the_vocabulary_stay_where_they_are(embedder: Any, local: LocalEdits) -> None:
    """A piece that the networks cannot write may be in a guess all the same, and its neighbours can be mended."""
    (found,) = proposals(local, embedder, ["zebra of the peace"], ["peace of the zebra"], [0])
    assert "peace of the zebra" in found
