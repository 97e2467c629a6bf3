"""Local edits: every proposal is one edit away, and the gradient is the gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib.edits import GRADIENT_QUERIES, Edits, LocalEdits, borrowed, moves

ids = st.lists(st.integers(10, 15), min_size=1, max_size=7)


@given(ids)
def test_moves_keep_the_pieces_and_change_the_order(row: list[int]) -> None:
    found = moves(row)
    assert all(sorted(other) == sorted(row) and other != row for other in found)
    assert len({tuple(other) for other in found}) == len(found)
    for place in range(len(row) - 1):  # every adjacent swap is a move
        swapped = [*row[:place], row[place + 1], row[place], *row[place + 2 :]]
        assert swapped == row or swapped in found


@given(ids, st.sets(st.integers(20, 22)))
def test_borrowed_pieces_replace_or_join_one_place(row: list[int], pieces: set[int]) -> None:
    for other in borrowed(row, sorted(pieces)):
        assert abs(len(other) - len(row)) <= 1 and len(other) >= 1
        assert len([piece for piece in other if piece in pieces]) == (0 if len(other) < len(row) else 1)


def test_kinds_take_turns() -> None:
    edits = Edits(moves=[[1], [2]], borrowed=[[3]], substituted=[[4], [5], [6]], inserted=[])
    assert list(edits.mixed()) == [[4], [1], [3], [5], [2], [6]]


@pytest.fixture(scope="module")
def local(embedder):
    vocabulary = np.array(
        sorted({i for row in embedder.token_ids(["peace war trade we the of land laws"]) for i in row})
    )
    return LocalEdits(embedder, vocabulary)


def test_the_gradient_points_to_the_missing_word(embedder, local) -> None:
    target = torch.from_numpy(embedder.encode(["the laws of trade"]))
    (guess,) = embedder.token_ids(["the laws of war"])
    embedder.reset_queries()
    (edits,) = local.propose([guess], [[guess]], target, [np.random.default_rng(0)])
    assert embedder.queries == 2 * GRADIENT_QUERIES == local.queries
    assert "the laws of trade" in embedder.decode(edits.substituted[:5])
    assert all(len(row) == len(guess) for row in edits.substituted)
    assert all(len(row) == len(guess) + 1 for row in edits.inserted) and edits.inserted


def test_gradients_agree_with_finite_differences(embedder) -> None:
    target = torch.from_numpy(embedder.encode(["the laws of trade"]))
    (guess,) = embedder.token_ids(["peace and war"])
    (slope,) = embedder.gradients([guess], target)
    assert slope.shape == (len(guess), embedder.transformer.get_input_embeddings().weight.shape[1])
    table = embedder.transformer.get_input_embeddings().weight
    direction, place, step = slope[1] / slope[1].norm(), guess[1], 1e-2
    before = table[place].detach().clone()
    cosines = []
    try:
        for sign in (-1, 1):
            with torch.no_grad():
                table[place] = before + sign * step * direction
            cosines.append(
                float(
                    torch.nn.functional.cosine_similarity(torch.from_numpy(embedder.encode(["peace and war"])), target)
                )
            )
    finally:
        with torch.no_grad():
            table[place] = before
    assert (cosines[1] - cosines[0]) / (2 * step) == pytest.approx(float(slope[1].norm()), rel=0.05)


def test_a_batch_changes_no_proposal(embedder, local) -> None:
    texts = ["we the land", "war of the laws"]
    target = torch.from_numpy(embedder.encode(["the laws of trade", "peace and land"]))
    rows = embedder.token_ids(texts)
    both = local.propose(rows, [rows, rows], target, [np.random.default_rng(i) for i in range(2)])
    for index, row in enumerate(rows):
        assert sorted(both[index].moves) == sorted(moves(row))
        others = sorted({piece for other in rows for piece in other} - set(row))
        assert sorted(both[index].borrowed) == sorted(borrowed(row, others))
        (alone,) = local.propose([row], [rows], target[index : index + 1], [np.random.default_rng(index)])
        assert alone.moves == both[index].moves
        assert alone.substituted[:3] == both[index].substituted[:3]
