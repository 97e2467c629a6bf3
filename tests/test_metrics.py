"""Metrics: known answers, the properties each must have, and what awkward input gives."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutorial_lib.errors import TutorialError, VectorError
from tutorial_lib.metrics import (
    METRICS,
    Estimate,
    bag_of_words,
    bootstrap,
    compare,
    cosine,
    evaluate,
    exact_match,
    nearest_passage,
    proportion,
    random_passage,
    sentence_bleu,
    token_f1,
)


class WordEmbedder:
    """Lower-cases, splits on spaces, sums a vector per word and position: order matters a little."""

    dimension = 16
    queries = 0

    def normalise(self, texts: list[str]) -> list[str]:
        return [" ".join(text.lower().split()) for text in texts]

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        return [[self._id(word) for word in text.lower().split()] for text in texts]

    def encode(self, texts: list[str], *, truncate: bool = False) -> np.ndarray:
        self.queries += len(texts)
        return np.stack([self._vector(ids) for ids in self.token_ids(texts)])

    def _id(self, word: str) -> int:
        return int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)

    def _vector(self, ids: list[int]) -> np.ndarray:
        assert ids, "the real embedder refuses empty text"
        parts = [
            np.random.default_rng(i).normal(size=self.dimension) / (1 + 0.1 * p) for p, i in enumerate(ids)
        ]
        vector = np.sum(parts, axis=0)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.fixture
def embedder() -> WordEmbedder:
    return WordEmbedder()


numbers = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40)
tokens = st.lists(st.integers(0, 8), max_size=12)


# --- Estimate ---------------------------------------------------------------------------------------


def test_estimate_prints_value_interval_and_n():
    assert str(Estimate(31.94, 30.11, 33.62, 200)) == "31.9 (30.1–33.6, n = 200)"
    assert str(Estimate(0.84219, 0.83611, 0.84801, 200)) == "0.842 (0.836–0.848, n = 200)"
    assert str(Estimate(40.0, 20.0, 60.0, 5)) == "40.0 (20.0–60.0, n = 5)"
    assert f"{Estimate(0.5, 0.4, 0.6, 9):.2f}" == "0.50 (0.40–0.60, n = 9)"
    assert str(Estimate(1.9, -0.3, 4.1, 9)) == "1.9 (-0.3 to 4.1, n = 9)"


def test_estimate_of_one_text_has_no_interval():
    one = bootstrap([12.5])
    assert (one.value, one.n) == (12.5, 1) and math.isnan(one.low) and math.isnan(one.high)
    assert str(one) == "12.5 (n = 1)"
    assert one.overlaps(Estimate(900, 899, 901, 5)), "one text tells nothing apart"


def test_overlap_is_symmetric_and_counts_touching_ends():
    low, mid, high = Estimate(1, 0, 2, 9), Estimate(2, 2, 3, 9), Estimate(9, 8, 10, 9)
    assert low.overlaps(mid) and mid.overlaps(low)
    assert not low.overlaps(high) and not high.overlaps(low)


# --- intervals --------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(numbers)
def test_bootstrap_is_deterministic_and_stays_among_the_values(values):
    estimate = bootstrap(values, resamples=200)
    assert estimate == bootstrap(values, resamples=200)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= estimate.low <= estimate.high <= max(values) + slack
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.n == len(values)


def test_bootstrap_of_the_mean_matches_theory():
    values = np.random.default_rng(1).normal(10, 2, size=400)
    estimate = bootstrap(values)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert bootstrap(values, level=0.5).high - bootstrap(values, level=0.5).low < 0.5 * (
        estimate.high - estimate.low
    )
    assert bootstrap(values, seed=1) != estimate


def test_bootstrap_takes_other_statistics_and_rows_of_several_numbers():
    assert bootstrap([1, 2, 100], statistic=np.median).value == 2

    def ratio(rows: np.ndarray, axis: int) -> np.ndarray:
        sums = rows.sum(axis=axis)
        return sums[..., 0] / sums[..., 1]

    estimate = bootstrap(np.array([[6.0, 2], [8, 4], [3, 3]]), statistic=ratio)
    assert estimate.value == pytest.approx(17 / 9) and 1 <= estimate.low < estimate.high <= 3
    assert estimate.n == 3


def test_bootstrap_in_chunks_gives_every_resample():
    assert bootstrap(np.arange(30_000.0), resamples=150).high > 15_000  # 66 rows at a time, three draws


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], 3.0])
def test_bootstrap_refuses_what_has_no_interval(values):
    with pytest.raises(TutorialError, match="bootstrap was given"):
        bootstrap(values)


def test_bootstrap_refuses_impossible_settings():
    with pytest.raises(TutorialError, match="resamples=0"):
        bootstrap([1, 2], resamples=0)
    with pytest.raises(TutorialError, match="level"):
        bootstrap([1, 2], level=95)


def test_wilson_interval_known_values_and_honest_ends():
    none = proportion([0] * 200)
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(1.885, abs=1e-3)
    every = proportion([True] * 200)
    assert (every.value, every.high) == (100, 100) and every.low == pytest.approx(98.115, abs=1e-3)
    some = proportion([1] * 81 + [0] * 182, scale=1)  # Newcombe 1998, table I: .2553 to .3662
    assert (some.low, some.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_proportion_holds_its_value_and_mirrors(successes):
    share, rest = proportion(successes), proportion([not s for s in successes])
    assert 0 <= share.low <= share.value <= share.high <= 100
    assert share.low < share.high
    assert (share.low, share.high) == (pytest.approx(100 - rest.high), pytest.approx(100 - rest.low))


def test_values_of_one_text_count_for_less():
    values = [1, 1, 1, 1, 0, 0, 0, 0] * 10
    alone = proportion(values, texts=range(80))
    assert alone == proportion(values)
    pairs, forty = proportion(values, texts=[i // 2 for i in range(80)]), proportion(values[::2])
    assert (pairs.value, pairs.n) == (50, 80)
    assert (pairs.low, pairs.high) == pytest.approx((forty.low, forty.high))
    assert proportion([1] * 12, texts=[0, 0, 1, 1] * 3).low == pytest.approx(proportion([1, 1]).low)
    # one text of ninety values beside ten of one is worth hardly more than one
    assert proportion([1] * 100, texts=[*[0] * 90, *range(1, 11)]).low < proportion([1, 1]).low
    with pytest.raises(TutorialError, match="3 values and 2 texts"):
        proportion([1, 0, 0], texts=["a", "b"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=60))
def test_an_interval_over_texts_is_no_narrower(values):
    hits, texts = zip(*values, strict=True)
    over, plain = proportion(hits, texts=texts), proportion(hits)
    assert 0 <= over.low <= over.value <= over.high <= 100
    assert (over.value, over.n) == (plain.value, plain.n)
    assert over.high - over.low >= plain.high - plain.low - 1e-9


@pytest.mark.parametrize("values", [[], [0, 2], [0.5], [[0, 1]]])
def test_proportion_refuses_values_that_are_not_yes_or_no(values):
    with pytest.raises(TutorialError, match="proportion was given"):
        proportion(values)


# --- one text ---------------------------------------------------------------------------------------


def test_bleu_of_the_same_text_is_100_however_short():
    for text in ("the state of the union is strong today", "peace", "we will", "☀️ über alles 日本"):
        assert sentence_bleu(text, text) == pytest.approx(100)


def test_bleu_falls_with_distance_and_with_an_empty_guess():
    text = "we must act now to keep the peace of the world"
    swapped = "we must now act to keep the peace of the world"
    assert 100 > sentence_bleu(text, swapped) > sentence_bleu(text, "we must rest now and tomorrow") > 0
    assert sentence_bleu(text, "") == 0
    assert sentence_bleu(text, "bananas") == 0
    with pytest.raises(TutorialError, match="empty reference"):
        sentence_bleu("  ", text)


def test_bleu_is_sacrebleu_on_texts_of_four_words_or_more():
    from sacrebleu import sentence_bleu as plain

    text, guess = "the people of the united states", "the people in the united states"
    assert sentence_bleu(text, guess) == pytest.approx(plain(guess, [text]).score)
    longer = "and so the people of the united states today"  # which of the two is the guess matters
    assert sentence_bleu(text, longer) == pytest.approx(plain(longer, [text]).score)
    assert abs(sentence_bleu(text, longer) - sentence_bleu(longer, text)) > 1


def test_token_f1_counts_repeats_and_ignores_order():
    assert token_f1([1, 2, 3, 4], [4, 3, 2, 1]) == 1
    assert token_f1([1, 1, 2], [1, 2, 2]) == pytest.approx(2 / 3)
    assert token_f1([1, 2], [1]) == pytest.approx(2 / 3)
    assert token_f1([1], []) == 0 and token_f1([], []) == 1


@given(tokens, tokens)
def test_token_f1_and_exact_match_are_symmetric_and_agree(a, b):
    assert token_f1(a, b) == token_f1(b, a)
    assert 0 <= token_f1(a, b) <= 1
    assert exact_match(a, b) == (a == b)
    assert (token_f1(a, b) == 1) == (sorted(a) == sorted(b))


def test_exact_match_compares_lists_with_arrays():
    assert exact_match(np.array([5, 6]), [5, 6]) and not exact_match([5, 6], np.array([6, 5]))


def test_cosine_known_values_shapes_and_dtype():
    a = np.array([[1, 0], [1, 1], [-2, 0]], dtype=np.float32)
    b = np.array([[3, 0], [1, 0], [1, 0]], dtype=np.float32)
    values = cosine(a, b)
    assert values.dtype == np.float32 and values.shape == (3,)
    np.testing.assert_allclose(values, [1, math.sqrt(0.5), -1], rtol=1e-6)
    assert cosine(a[0], b[0]).shape == ()


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), st.floats(1e-3, 1e3))
def test_cosine_ignores_length(row, factor):
    a = np.array([row]) + [[0, 0, 2000.0]]  # never zero
    assert cosine(a, factor * a)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "shape"),
        (np.ones((2, 3)), np.ones((3, 3)), "shape"),
        (np.ones((1, 3)), np.zeros((1, 3)), "zeros"),
        (np.array([[np.nan, 1]]), np.ones((1, 2)), "NaN"),
        (np.array([[np.inf, 1]]), np.ones((1, 2)), "infinity"),
    ],
)
def test_cosine_refuses_what_has_no_angle(a, b, words):
    with pytest.raises(VectorError, match=words):
        cosine(a, b)


# --- many texts -------------------------------------------------------------------------------------

TEXTS = ["The State of the Union", "we must act now", "peace and plenty", "a new century begins"]


def test_perfect_guesses_score_full_marks_whatever_their_case(embedder):
    scores = evaluate(TEXTS, [text.upper() for text in TEXTS], embedder)
    assert (scores.exact.value, scores.token_f1.value) == (100, 100)
    assert scores.bleu.value == pytest.approx(100) and scores.cosine.value == pytest.approx(1)
    assert scores.exact.low < 60, "four texts prove little: the Wilson interval says so"
    assert scores.n == 4 and scores.references[0] == "the state of the union"


def test_evaluate_counts_each_text_once_and_in_its_own_row(embedder):
    guesses = [TEXTS[0], "now act must we", "", "☀️🙂"]
    scores = evaluate(TEXTS, guesses, embedder)
    assert scores.per_text["exact"].tolist() == [100, 0, 0, 0]
    assert scores.per_text["token_f1"].tolist() == [100, 100, 0, 0]
    assert scores.per_text["cosine"][0] == pytest.approx(1) and scores.per_text["cosine"][2] == 0
    assert 0.5 < scores.per_text["cosine"][1] < 0.9999, "the right words in another order are near, not equal"
    assert scores.exact.value == 25 and scores.token_f1.value == 50
    assert scores.bleu.value == pytest.approx(scores.per_text["bleu"].mean())
    assert set(scores.per_text) == set(METRICS) and all(len(v) == 4 for v in scores.per_text.values())


def test_scores_flatten_and_print(embedder):
    scores = evaluate(TEXTS, TEXTS, embedder)
    flat = scores.as_dict()
    assert flat["n"] == 4 and flat["exact"] == 100 and flat["exact_low"] == scores.exact.low
    assert len(flat) == 13
    row = scores.table_row("copy")
    assert row["method"] == "copy" and row["exact %"].startswith("100.0 (") and "n = 4" in row["BLEU"]
    assert row["cosine"].startswith("1.000")


def test_evaluate_refuses_lists_that_do_not_pair(embedder):
    with pytest.raises(TutorialError, match="2 references and 1 guesses"):
        evaluate(["a", "b"], ["a"], embedder)
    with pytest.raises(TutorialError, match="no texts"):
        evaluate([], [], embedder)
    with pytest.raises(TutorialError, match="position 1"):
        evaluate(["a", " "], ["a", "b"], embedder)


def test_evaluate_one_text_and_all_guesses_empty(embedder):
    scores = evaluate(["peace"], [""], embedder)
    assert scores.bleu.value == 0 and scores.cosine.value == 0 and math.isnan(scores.bleu.low)
    assert scores.exact.high > 50


def test_compare_is_paired_and_signed(embedder):
    texts = [f"text number {i} of the union" for i in range(40)]
    poor = evaluate(texts, ["nothing like it"] * 40, embedder)
    good = evaluate(texts, texts[:20] + ["nothing like it"] * 20, embedder)
    for metric in METRICS:
        gain, loss = compare(poor, good, metric), compare(good, poor, metric)
        assert gain.value == pytest.approx(-loss.value) and gain.low > 0 and loss.high < 0
        assert gain.low <= gain.value <= gain.high and gain.n == 40
    assert compare(poor, good, "exact").value == 50


def test_compare_stays_honest_when_nothing_changes(embedder):
    scores = evaluate(TEXTS, TEXTS, embedder)
    same = compare(scores, scores, "exact")
    assert same.value == 0 and same.low < 0 < same.high
    wide, narrow = compare(scores, scores, "exact", level=0.99), compare(scores, scores, "exact", level=0.5)
    assert wide.high > narrow.high


def test_compare_refuses_other_texts_and_other_metrics(embedder):
    a, b = evaluate(TEXTS, TEXTS, embedder), evaluate(TEXTS[::-1], TEXTS, embedder)
    with pytest.raises(TutorialError, match="different texts"):
        compare(a, b)
    with pytest.raises(TutorialError, match="choose one of bleu"):
        compare(a, a, "rouge")


# --- baselines --------------------------------------------------------------------------------------


def test_random_passage_draws_from_training_and_repeats_itself():
    drawn = random_passage(50, TEXTS, seed=3)
    assert len(drawn) == 50 and set(drawn) == set(TEXTS)
    assert drawn == random_passage(50, TEXTS, seed=3) != random_passage(50, TEXTS, seed=4)
    with pytest.raises(TutorialError, match="no training texts"):
        random_passage(1, [])


def test_nearest_passage_finds_the_text_itself_and_ignores_length(embedder):
    vectors = embedder.encode(TEXTS)
    assert nearest_passage(vectors[::-1] * 7, TEXTS, vectors * 0.1) == TEXTS[::-1]
    with pytest.raises(VectorError, match="nearest_passage was given"):
        nearest_passage(vectors, TEXTS[:2], vectors)
    with pytest.raises(VectorError, match="nearest_passage was given"):
        nearest_passage(vectors[:, :3], TEXTS, vectors)


def test_bag_of_words_keeps_the_words_and_loses_the_order(embedder):
    text = "One two three four five six seven eight nine ten"
    (bag,) = bag_of_words([text], embedder)
    assert sorted(bag.split()) == sorted(text.lower().split()) and bag != text.lower()
    assert [bag] == bag_of_words([text], embedder)
    scores = evaluate([text], [bag], embedder)
    assert scores.token_f1.value == 100 and scores.exact.value == 0 and scores.bleu.value < 50
