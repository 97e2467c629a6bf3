"""The search against stubs whose every move is known, and against the loop written out on real models.

The toy embedder adds one random direction per (position, word), so each word put right raises the cosine; the
toy models look the truth up and help, dawdle or vandalise as a test asks.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutorial_lib import search
from tutorial_lib.errors import CheckpointError, TutorialError, VectorError
from tutorial_lib.modeling import Candidates
from tutorial_lib.search import SOLVED, Step, invert

WORDS, PLACES, DIMENSION = 12, 8, 64
TABLE = np.random.default_rng(0).standard_normal((PLACES, WORDS, DIMENSION)).astype(np.float32)
HOLE = -1  # pads rows of ids


class ToyEmbedder:
    """Texts are words w0 to w11; `asked` keeps every text embedded, in order."""

    name = "toy"

    def __init__(self) -> None:
        self.asked: list[str] = []

    @property
    def queries(self) -> int:
        return len(self.asked)

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        return [[int(word[1:]) for word in text.split() if word != "."] for text in texts]

    def decode(self, ids: list[list[int]]) -> list[str]:
        return [" ".join(f"w{i}" for i in row) for row in ids]

    def encode(self, texts: list[str], *, truncate: bool = False, progress: bool | None = None) -> np.ndarray:
        self.asked += texts
        return vectors(texts)


def vectors(texts: list[str]) -> np.ndarray:
    rows = [TABLE[range(len(ids)), ids].sum(0) for ids in ToyEmbedder().token_ids(texts)]
    rows = [row if row.any() else TABLE[0, 0] for row in rows]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


class Stub:
    """Looks the truth up: `answer(truth, guess, call, m)` gives m rows of ids; `guess` is None at first."""

    reads_slopes = False

    def __init__(self, truths: list[str], answer: Any, kind: str) -> None:
        self.config = SimpleNamespace(embedder_name="toy")
        self.kind, self.answer = kind, answer
        self.truths = ToyEmbedder().token_ids(truths)
        self.known = torch.from_numpy(vectors(truths))
        self.calls = 0
        self.served: list[int] = []  # which truth each guess handed in was for

    def check_vectors(self, embeddings: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(embeddings))

    def to_model_ids(self, ids: list[list[int]]) -> torch.Tensor:
        width = max((len(row) for row in ids), default=0)
        return torch.tensor([[*row, *[HOLE] * (width - len(row))] for row in ids]).reshape(len(ids), width)

    def to_embedder_ids(self, ids: torch.Tensor) -> list[list[int]]:
        return [[i for i in row if i != HOLE] for row in ids.tolist()]

    def propose(
        self, target: torch.Tensor, *rest: Any, candidates: int = 1, beams: int = 1, temperature: float = 0
    ) -> Candidates:
        assert beams == candidates
        self.calls += 1
        guesses = self.to_embedder_ids(rest[0]) if rest else [None] * len(target)
        if rest:  # what is handed in as the guess's embedding is that of the guess
            expected = vectors(ToyEmbedder().decode(guesses))
            np.testing.assert_allclose(rest[1].numpy(), expected, atol=1e-5)
        which = (target @ self.known.T).argmax(1).tolist()
        self.served += which
        rows = [
            self.answer(self.truths[w], g, self.calls, candidates)
            for w, g in zip(which, guesses, strict=True)
        ]
        assert all(len(row) == candidates for row in rows)
        ids = self.to_model_ids([ids for row in rows for ids in row])
        return Candidates(ids.reshape(len(rows), candidates, -1), torch.zeros(len(rows), candidates))


def junk(truth: list[int], seed: int, m: int) -> list[list[int]]:
    """m different wrong texts of the same length."""
    rng = np.random.default_rng([seed, *truth])
    rows: list[list[int]] = []
    while len(rows) < m:
        row = rng.integers(0, WORDS, len(truth)).tolist()
        if row != truth and row not in rows:
            rows.append(row)
    return rows


def start(truth: list[int], guess: Any, call: int, m: int) -> list[list[int]]:
    """Every word wrong, and then some junk."""
    return [[(i + 1) % WORDS for i in truth], *junk(truth, 1, m - 1)]


def improve(truth: list[int], guess: list[int], call: int, m: int) -> list[list[int]]:
    """One more word right, at the worst place of the beam: the last."""
    better = list(guess)
    wrong = [place for place, word in enumerate(truth) if better[place] != word]
    if wrong:
        better[wrong[0]] = truth[wrong[0]]
    return [*junk(truth, 2, m - 1), better]


def vandalise(truth: list[int], guess: list[int], call: int, m: int) -> list[list[int]]:
    return junk(truth, 100 + call, m)


def repeat(truth: list[int], guess: list[int], call: int, m: int) -> list[list[int]]:
    return [guess] * m


TRUTHS = ["w0 w1 w2 w3", "w4 w5 w6 w7 w8", "w9 w3 w3", "w1 w1 w1 w1 w1 w1"]


def toy(texts: list[str] = TRUTHS, first: Any = start, then: Any = improve, **options: Any) -> Any:
    """Run the search on toy texts; gives (result, embedder, inverter, corrector)."""
    embedder = ToyEmbedder()
    inverter, corrector = Stub(TRUTHS, first, "inverter"), Stub(TRUTHS, then, "corrector")
    result = invert(vectors(texts), embedder, inverter, corrector, **options)  # type: ignore[arg-type]
    return result, embedder, inverter, corrector


# ---- what a round does ---------------------------------------------------------------------------------


def test_a_corrector_that_mends_one_word_a_round_needs_a_round_per_word() -> None:
    result, *_ = toy(steps=50, beam_width=1)
    assert result.texts == TRUTHS
    assert (result.cosines > SOLVED).all()
    assert result.steps.tolist() == [4, 5, 3, 6]
    assert result.queries.tolist() == [5, 6, 4, 7]
    assert [row.step for row in result.trace[2]] == [0, 1, 2, 3]


@pytest.mark.parametrize("beam", [2, 3, 5])
def test_candidates_are_ranked_by_cosine_not_by_their_place_in_the_beam(beam: int) -> None:
    result, *_ = toy(steps=20, beam_width=beam)
    assert result.texts == TRUTHS  # the useful candidate always comes last


def test_the_best_guess_survives_a_corrector_that_only_does_harm() -> None:
    def nearly(truth: list[int], guess: Any, call: int, m: int) -> list[list[int]]:
        return [[*truth[:-1], (truth[-1] + 1) % WORDS], *junk(truth, 1, m - 1)]

    result, *_ = toy(first=nearly, then=vandalise, steps=6, beam_width=3)
    for text, truth, rows in zip(result.texts, TRUTHS, result.trace, strict=True):
        assert text.split()[:-1] == truth.split()[:-1]
        assert {row.text for row in rows} == {text}
    assert result.steps.tolist() == [6] * 4  # it kept trying


def test_a_late_answer_is_taken() -> None:
    def late(truth: list[int], guess: list[int], call: int, m: int) -> list[list[int]]:
        return [truth, *junk(truth, 3, m - 1)] if call >= 5 else junk(truth, call, m)

    result, *_ = toy(then=late, steps=50, beam_width=2)
    assert result.texts == TRUTHS
    assert result.steps.tolist() == [5] * 4


def test_a_second_best_guess_waits_for_its_turn() -> None:
    truth = [0, 1, 2, 3]
    lure, path = [0, 1, 2, 9], [0, 1, 9, 9]  # nearer, but leads nowhere; farther, but leads home

    def fork(truth: list[int], guess: list[int], call: int, m: int) -> list[list[int]]:
        return [truth, truth] if guess == path else [lure, path]

    result, _, _, corrector = toy(TRUTHS[:1], then=fork, steps=9, beam_width=1, branch=2)
    assert result.texts == TRUTHS[:1]
    assert [row.text for row in result.trace[0][1:]] == ["w0 w1 w2 w9", "w0 w1 w2 w9", "w0 w1 w2 w3"]
    assert corrector.calls == 3
    assert truth == corrector.truths[0]


# ---- what it costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", [improve, vandalise, repeat])
def test_no_text_is_embedded_twice_for_one_target(then: Any) -> None:
    for truth in TRUTHS:
        result, embedder, *_ = toy([truth], then=then, steps=8, beam_width=4)
        assert len(embedder.asked) == len(set(embedder.asked)) == result.queries[0]


def test_every_query_is_on_somebodys_account() -> None:
    result, embedder, *_ = toy(steps=8, beam_width=3)
    assert result.queries.sum() == embedder.queries


def test_a_finished_text_costs_nothing_more() -> None:
    def known(truth: list[int], guess: Any, call: int, m: int) -> list[list[int]]:
        return [truth, *junk(truth, 1, m - 1)] if len(truth) == 5 else start(truth, guess, call, m)

    result, _, _, corrector = toy(first=known, steps=20, beam_width=2)
    assert result.queries[1] == 2
    assert result.steps[1] == 0
    assert len(result.trace[1]) == 1
    assert set(corrector.served) == {0, 2, 3}  # the solved one was never corrected
    assert corrector.served.count(2) <= 2 * 3  # and the short one left after its third round


def test_a_corrector_that_repeats_itself_ends_the_search() -> None:
    result, embedder, _, corrector = toy(then=repeat, steps=50, beam_width=2)
    assert corrector.calls == 1  # both guesses were expanded, nothing new came of it
    assert embedder.queries == 2 * len(TRUTHS)
    assert result.steps.tolist() == [1] * 4


@pytest.mark.parametrize("limit", [3, 4, 11, 12, 13, 30])
def test_a_budget_of_queries_is_kept(limit: int) -> None:
    result, *_ = toy(then=vandalise, steps=50, beam_width=3, max_queries=limit)
    assert (result.queries <= limit).all()
    full, *_ = toy(then=vandalise, steps=50, beam_width=3)
    assert result.texts == full.at(int(result.steps[0]))  # the same search, cut short


def test_branch_says_how_many_candidates_a_guess_becomes() -> None:
    result, *_ = toy(then=vandalise, steps=1, beam_width=2, branch=5)
    assert (result.queries > 2 + 2 * 2).all()
    assert (result.queries <= 2 + 2 * 5).all()


# ---- special cases --------------------------------------------------------------------------------------


def test_no_steps_is_the_inverter_alone() -> None:
    result, embedder, inverter, corrector = toy(steps=0, beam_width=3)
    alone = invert(vectors(TRUTHS), ToyEmbedder(), inverter, None, steps=0, beam_width=3)
    assert result.texts == alone.texts
    assert corrector.calls == 0
    for index, text in enumerate(TRUTHS):
        guesses = embedder.asked[3 * index : 3 * index + 3]
        best = max(guesses, key=lambda guess: float(vectors([guess])[0] @ vectors([text])[0]))
        assert result.texts[index] == best
    assert result.queries.tolist() == [3] * 4


def test_no_vectors_no_work() -> None:
    _, embedder, inverter, corrector = toy(steps=0)
    asked = embedder.queries
    empty = np.zeros((0, DIMENSION), np.float32)
    result = invert(empty, embedder, inverter, corrector, steps=5)
    assert (result.texts, result.trace, result.at(3)) == ([], [], [])
    assert result.cosines.shape == result.queries_at(0).shape == (0,)
    assert embedder.queries == asked


def test_an_inverter_that_writes_nothing_still_gives_the_corrector_a_guess() -> None:
    def silent(truth: list[int], guess: Any, call: int, m: int) -> list[list[int]]:
        return [[]] * m

    def reveal(truth: list[int], guess: list[int], call: int, m: int) -> list[list[int]]:
        assert guess == []
        return [truth] * m

    result, *_ = toy(first=silent, then=reveal, steps=3, beam_width=2)
    assert result.at(0) == ["."] * 4
    assert result.texts == TRUTHS


def test_the_trace_tells_what_on_step_was_told() -> None:
    heard: list[tuple[int, list[Step]]] = []
    result, *_ = toy(steps=4, beam_width=2, on_step=lambda step, rows: heard.append((step, list(rows))))
    assert [step for step, _ in heard] == [0, 1, 2, 3, 4]
    for step, rows in heard:
        assert [row.text for row in rows] == result.at(step)
        assert [row.queries for row in rows] == result.queries_at(step).tolist()
        np.testing.assert_array_equal(np.float32([row.cosine for row in rows]), result.cosines_at(step))


def test_a_bar_shows_progress_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    toy(steps=2, beam_width=1)
    assert capsys.readouterr().err == ""
    toy(steps=2, beam_width=1, progress=True)
    assert "Correcting" in capsys.readouterr().err


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, *_ = toy(steps=6, beam_width=3)
    monkeypatch.setattr(search, "_ROWS", 4)
    pieces, _, inverter, _ = toy(steps=6, beam_width=3)
    assert inverter.calls == 4
    assert pieces.trace == whole.trace


@pytest.mark.parametrize(
    "options",
    [{"steps": -1}, {"beam_width": 0}, {"branch": -1}, {"edits": -1}, {"beam_width": 4, "max_queries": 3}],
)
def test_parameters_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(TutorialError, match="cannot be negative, widths are at least 1"):
        toy(**options)


def test_models_of_another_embedder_are_refused() -> None:
    _, embedder, inverter, corrector = toy(steps=0)
    corrector.config.embedder_name = "other"
    with pytest.raises(CheckpointError, match="corrector was made for other and the embedder is toy"):
        invert(vectors(TRUTHS), embedder, inverter, corrector)
    inverter.config.embedder_name = "third"
    with pytest.raises(CheckpointError, match="inverter was made for third"):
        invert(vectors(TRUTHS), embedder, inverter, None, steps=0)
    with pytest.raises(TutorialError, match="50 correction steps were asked for without a corrector"):
        invert(vectors(TRUTHS), embedder, inverter)


# ---- properties -----------------------------------------------------------------------------------------

toy_texts = st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=PLACES).map(
    lambda row: " ".join(f"w{i}" for i in row)
)


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(toy_texts, min_size=1, max_size=4, unique=True),
    steps=st.integers(0, 6),
    beam=st.integers(1, 4),
    branch=st.integers(1, 4),
    budget=st.none() | st.integers(4, 40),
    help_every=st.integers(1, 3),
)
def test_properties_of_every_search(
    texts: list[str], steps: int, beam: int, branch: int, budget: int | None, help_every: int
) -> None:
    def sometimes(truth: list[int], guess: list[int], call: int, m: int) -> list[list[int]]:
        if call % help_every or not guess or len(guess) != len(truth):
            return [
                np.random.default_rng([call, i]).integers(0, WORDS, len(truth)).tolist() for i in range(m)
            ]
        return [improve(truth, guess, call, 1)[0]] * m

    def first(truth: list[int], guess: Any, call: int, m: int) -> list[list[int]]:
        return [[(i + 1 + k) % WORDS for i in truth] for k in range(m)]

    embedder = ToyEmbedder()
    models = Stub(texts, first, "inverter"), Stub(texts, sometimes, "corrector")
    target = vectors(texts)
    options = {"beam_width": beam, "branch": branch, "max_queries": budget}
    result = invert(target, embedder, *models, steps=steps, **options)  # type: ignore[arg-type]
    assert embedder.queries == result.queries.sum()
    for index, rows in enumerate(result.trace):
        cosines, queries = [row.cosine for row in rows], [row.queries for row in rows]
        assert cosines == sorted(cosines)
        assert queries == sorted(queries)
        assert [row.step for row in rows] == list(range(len(rows)))  # a text that left does not come back
        assert len(rows) <= steps + 1
        assert budget is None or queries[-1] <= budget
        assert result.cosines[index] == pytest.approx(
            float(vectors([result.texts[index]])[0] @ target[index]), abs=1e-5
        )
        assert rows[-1].cosine < SOLVED or result.texts[index] == texts[index]
    assert result.at(steps) == result.texts
    assert result.queries_at(steps).tolist() == result.queries.tolist()


# ---- real models ----------------------------------------------------------------------------------------


def test_greedy_search_is_the_loop_written_out(
    embedder: Any, tiny_inverter: Any, tiny_corrector: Any, test_texts: list[str]
) -> None:
    target = embedder.encode(test_texts[:3])
    result = invert(target, embedder, tiny_inverter, tiny_corrector, steps=3, beam_width=1)
    for index, vector in enumerate(torch.from_numpy(target)):
        e = vector[None]
        text = embedder.decode(tiny_inverter.to_embedder_ids(tiny_inverter.propose(e).ids[:, 0]))[0] or "."
        best, seen = (-2.0, ""), set()
        for _ in range(4):
            if text in seen or not text:
                break
            seen.add(text)
            ê = torch.from_numpy(embedder.encode([text]))
            best = max(best, (float(ê[0] @ vector), text))
            ids = tiny_corrector.to_model_ids(embedder.token_ids([text]))
            text = embedder.decode(
                tiny_corrector.to_embedder_ids(tiny_corrector.propose(e, ids, ê).ids[:, 0])
            )[0]
        assert result.texts[index] == best[1]
        assert result.cosines[index] == pytest.approx(best[0], abs=1e-5)
        assert result.queries[index] == len(seen)


def test_together_is_one_at_a_time_and_twice_is_the_same(
    embedder: Any, tiny_inverter: Any, tiny_corrector: Any, test_texts: list[str]
) -> None:
    models = (embedder, tiny_inverter, tiny_corrector)
    target = embedder.encode(test_texts[:3])
    together = invert(target, *models, steps=3, beam_width=2)
    again = invert(target, *models, steps=3, beam_width=2)
    assert again.trace == together.trace
    for index in range(3):
        alone = invert(target[index : index + 1], *models, steps=3, beam_width=2)
        assert alone.texts[0] == together.texts[index]
        assert alone.queries[0] == together.queries[index]
        assert alone.cosines[0] == pytest.approx(together.cosines[index], abs=1e-5)
    shorter = invert(target, *models, steps=1, beam_width=2)
    assert shorter.texts == together.at(1)
    assert shorter.queries.tolist() == together.queries_at(1).tolist()


def test_local_edits_finish_what_a_corrector_cannot(
    embedder: Any, make_tiny: Any, test_texts: list[str]
) -> None:
    """A word exchanged, two swapped: edits find what this corrector never writes."""
    from tutorial_lib import Corrector, Inverter

    texts = test_texts[4:]  # a new law for the people, peace and work for all the world
    starts = ["a new war for the people", "peace and for work all the world"]
    inverter, corrector = make_tiny(Inverter), make_tiny(Corrector, seed=1)
    ids = inverter.to_model_ids(embedder.token_ids(starts))
    inverter.propose = lambda e, **_: Candidates(ids[: len(e), None], torch.zeros(len(e), 1))
    options = {"steps": 20, "beam_width": 1, "edits": 40}
    target = embedder.encode(texts)
    spent = embedder.queries
    result = invert(target, embedder, inverter, corrector, **options)
    spent = embedder.queries - spent
    assert result.at(0) == starts
    assert result.texts == texts
    for rows in result.trace:
        assert [row.cosine for row in rows] == sorted(row.cosine for row in rows)
        assert [row.queries for row in rows] == sorted(row.queries for row in rows)
    assert (result.queries <= 1 + result.steps * (1 + 40)).all()
    assert result.queries.sum() == spent
    assert invert(target, embedder, inverter, corrector, **options).trace == result.trace
    cheap = invert(target, embedder, inverter, corrector, max_queries=30, **options)
    assert (cheap.queries <= 30).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: e[:, :-1], r"shape \(2, 383\) were given"),
        (lambda e: e[0], r"shape \(384,\)"),
        (lambda e: np.where(np.arange(2)[:, None] == 1, np.nan, e), "Vector 1 holds NaN or infinity"),
        (lambda e: np.where(np.arange(2)[:, None] == 0, np.inf, e), "Vector 0 holds NaN or infinity"),
        (lambda e: e * np.float32([[1], [0]]), "Vector 1 is all zeros"),
    ],
)
def test_vectors_no_text_could_have_are_refused(
    embedder: Any, tiny_inverter: Any, test_texts: list[str], spoil: Any, message: str
) -> None:
    target = embedder.encode(test_texts[:2])
    with pytest.raises(VectorError, match=message):
        invert(spoil(target), embedder, tiny_inverter, None, steps=0)
