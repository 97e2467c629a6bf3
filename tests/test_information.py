"""Information: bits with known answers, a language model that sums to one, distances that never collapse."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tutorial_lib import information as info
from tutorial_lib.errors import TutorialError, VectorError
from tutorial_lib.ngrams import NgramModel


class PositionEmbedder:
    """Uncased, at most 6 words; each word turned by its position, so that order moves the vector."""

    dimension, max_tokens = 24, 6

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        return [
            [int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) for word in text.lower().split()]
            for text in texts
        ]

    def encode(self, texts: list[str], *, batch_size: int = 256, truncate: bool = False) -> np.ndarray:
        rows = []
        for ids in self.token_ids(texts):
            assert truncate or len(ids) <= self.max_tokens
            vectors = [np.random.default_rng(i).normal(size=self.dimension) for i in ids[: self.max_tokens]]
            rows.append(sum(v * (1 + 0.2 * p) for p, v in enumerate(vectors)))
        noise = 1e-6 * np.random.default_rng(batch_size).normal(size=(len(rows), self.dimension))
        return (np.array(rows) + noise).astype(np.float32)


@pytest.fixture
def toy() -> PositionEmbedder:
    return PositionEmbedder()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(300, 16))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


# --- budgets ----------------------------------------------------------------------------------------


def test_budgets_of_the_article_and_of_minilm():
    assert info.budget(768) == 24_576 and info.budget(384) == 12_288
    assert info.budget(384, 1) == 384 == info.budget(384) // info.STORAGE_BITS["float32"]
    with pytest.raises(TutorialError, match="budget was given 0 values"):
        info.budget(0)


def test_uniform_token_bits():
    assert info.uniform_token_bits(1) == 0 and info.uniform_token_bits(1024) == 10
    with pytest.raises(TutorialError, match="vocabulary of 0"):
        info.uniform_token_bits(0)


def test_packing_bits_never_promises_more_than_the_circle_holds():
    for distance in (0.01, 0.1, 0.5):  # on a circle the largest code is known: floor(2 pi / angle)
        angle = math.acos(1 - distance)
        assert info.packing_bits(2, distance) <= math.log2(math.floor(2 * math.pi / angle))


@given(st.floats(2, 2000), st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_packing_bits_fall_with_distance_and_rise_with_dimension(dimension, a, b):
    near, far = sorted((a, b))
    assert info.packing_bits(dimension, near) >= info.packing_bits(dimension, far) >= 1
    assert info.packing_bits(dimension + 1, near) >= info.packing_bits(dimension, near)


@pytest.mark.parametrize(("dimension", "distance"), [(8, 0), (8, -0.1), (8, 1.5), (1, 0.5), (8, math.nan)])
def test_packing_bits_refuses_impossible_angles(dimension, distance):
    with pytest.raises(TutorialError, match="packing_bits was given"):
        info.packing_bits(dimension, distance)


def test_effective_dimension_counts_the_directions_in_use():
    rng = np.random.default_rng(0)
    x = np.zeros((5000, 20))
    x[:, :4] = rng.normal(size=(5000, 4))
    assert info.effective_dimension(x) == pytest.approx(4, rel=0.01)
    x[:, 0] *= 100
    assert info.effective_dimension(x) == pytest.approx(1, rel=0.01)
    few = np.random.default_rng(1).normal(size=(200, 50))  # 40 without the correction
    assert info.effective_dimension(few) == pytest.approx(50, rel=0.02)
    assert 1 <= info.effective_dimension(few[:2]) <= 50
    with pytest.raises(VectorError, match="n >= 2"):
        info.effective_dimension(x[:1])


# --- entropy ----------------------------------------------------------------------------------------

texts_of_ids = st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=12)


def test_unigram_entropy_of_known_distributions():
    assert info.unigram_entropy([[7, 7, 7]]) == 0
    even = [list(range(8))] * 4000
    assert info.unigram_entropy(even) == pytest.approx(3, abs=1e-3)
    sample = np.random.default_rng(0).integers(0, 64, size=(1, 400)).tolist()
    assert abs(info.unigram_entropy(sample) - 6) < 0.06, (
        "the correction undoes most of the bias of a small sample"
    )


@settings(max_examples=40, deadline=None)
@given(texts_of_ids, st.lists(st.integers(0, 5), max_size=3), st.integers(1, 4))
def test_ngram_probabilities_sum_to_one_after_any_context(train, context, order):
    assume(any(train))
    model = NgramModel(train, 6, order)
    p = [2 ** model.log2_probabilities([*context, w])[-1] for w in range(6)]
    assert sum(p) == pytest.approx(1) and min(p) > 0


def test_ngram_model_by_hand():
    model = NgramModel([[0, 1], [0, 1], [0, 2]], 4, order=2)
    discount = 1 / (
        1 + 2 * 1
    )  # bigrams: one seen once, one seen twice; unigrams: one once, one twice (0: thrice)
    unigram = (2 - discount) / 6 + discount * 3 / 6 / 4
    bigram = (2 - discount) / 3 + discount * 2 / 3 * unigram
    assert 2 ** model.log2_probabilities([0, 1])[1] == pytest.approx(bigram)
    assert 2 ** model.log2_probabilities([1])[0] == pytest.approx(unigram)
    assert 2 ** model.log2_probabilities([3, 1])[1] == pytest.approx(unigram), "an unseen context backs off"


def test_cross_entropy_finds_the_order_of_a_source():
    rng = np.random.default_rng(0)
    cycle = [[(start + i) % 32 for i in range(20)] for start in rng.integers(0, 32, size=300)]
    train, held_out = cycle[:250], cycle[250:]
    first, second = (info.cross_entropy(train, held_out, 64, order=k) for k in (1, 2))
    assert first.value == pytest.approx(5, abs=0.1)
    assert second.high < 0.6, "after the first token the cycle is certain"
    assert second.n == 50 and second.low <= second.value <= second.high


def test_cross_entropy_is_above_the_entropy_of_random_tokens():
    train, held_out = np.random.default_rng(0).integers(0, 16, size=(2, 200, 10)).tolist()
    estimates = [info.cross_entropy(train, held_out, 16, order=k).value for k in (1, 2, 3)]
    assert all(3.99 < e < 5 for e in estimates)


def test_entropy_refuses_nothing_and_foreign_ids():
    with pytest.raises(TutorialError, match="unigram_entropy was given no tokens"):
        info.unigram_entropy([[], []])
    with pytest.raises(TutorialError, match="cross_entropy was given no tokens"):
        info.cross_entropy([[1]], [[]], 4)
    with pytest.raises(TutorialError, match="outside a vocabulary of 4"):
        info.cross_entropy([[1]], [[4]], 4)
    with pytest.raises(TutorialError, match="outside a vocabulary of 4"):
        NgramModel([[-1]], 4)
    with pytest.raises(TutorialError, match="it takes 1 to 4"):
        NgramModel([[1]], 30_522, order=5)


# --- storage ----------------------------------------------------------------------------------------


def test_coarser_storage_moves_vectors_further(vectors):
    moved = {s: info.distances(vectors, info.quantise(vectors, s)).mean() for s in info.STORAGE_BITS}
    assert moved["float32"] == 0 < moved["float16"] < moved["int8"] < moved["binary"] < 0.5
    assert moved["float16"] < 1e-6 and moved["int8"] < 1e-3


# --- bits of one text -------------------------------------------------------------------------------


def test_prior_bits_are_what_the_model_charges():
    model = NgramModel([[1, 2, 3, 1, 2, 3]], 5, order=2)
    bits = info.prior_bits(model, [[1, 2, 3], [3, 2, 1]])
    assert bits[0] == pytest.approx(-model.log2_probabilities([1, 2, 3]).sum())
    assert bits[0] < bits[1]


def test_posterior_bits_are_a_distribution_over_texts(embedder, tiny_inverter):
    """One piece, every word of the vocabulary: the probabilities sum to 1 (but for special ids)."""
    inverter = tiny_inverter
    size = len(embedder.tokenizer)
    vector = embedder.encode(["the congress"])
    pieces = [[i] for i in range(size)]
    bits = info.posterior_bits(inverter, np.repeat(vector, size, axis=0), pieces, size, batch_size=8192)
    special = set(inverter.vocabulary[:4].tolist())
    total = sum(2.0**-b for i, b in enumerate(bits) if i not in special)
    assert 0.5 < total <= 1 + 1e-4
    unknown = next(i for i in range(size) if i not in set(inverter.vocabulary.tolist()))
    written = int(inverter.vocabulary[4])
    assert bits[unknown] > bits[written] + 10  # one of many that share the probability of the unknown


def test_posterior_bits_agree_with_the_training_loss(embedder, tiny_inverter, test_texts):
    import torch

    inverter = tiny_inverter
    ids, vectors = embedder.token_ids(test_texts), embedder.encode(test_texts)
    bits = info.posterior_bits(inverter, vectors, ids, len(embedder.tokenizer), batch_size=4)
    assert bits.shape == (len(test_texts),)
    alone = info.posterior_bits(inverter, vectors[2:3], ids[2:3], len(embedder.tokenizer))
    assert alone[0] == pytest.approx(bits[2], rel=1e-4)
    with torch.inference_mode():
        loss = inverter(torch.from_numpy(vectors[2:3]), inverter.to_model_ids(ids[2:3]))  # nats a token, end included
    everything = float(loss) * (len(ids[2]) + 1) / math.log(2)
    assert bits[2] < everything < bits[2] + 20
    with pytest.raises(TutorialError, match="one text of one piece or more for each vector"):
        info.posterior_bits(inverter, vectors[:1], [[]], 10)


def test_codes_keep_what_they_say(vectors):
    assert info.codes(vectors, "binary").dtype == bool
    assert info.codes(vectors, "int8").dtype == np.int8 and info.codes(vectors, "float16").dtype == np.float16
    np.testing.assert_array_equal(info.codes(vectors, "float32"), vectors)
    assert np.abs(info.codes(vectors, "int8").astype(int)).max() == 127
    clipped = info.codes(vectors * 10, "int8", calibration=vectors)
    assert clipped.max() == 127 and clipped.min() == -127
    back = info.quantise(vectors, "int8", calibration=vectors)
    assert np.abs(back - vectors).max() <= np.abs(vectors).max() / 127 / 2 * 1.001
    with pytest.raises(TutorialError, match="storage='int4'"):
        info.codes(vectors, "int4")
    assert not info.codes(np.zeros((2, 3)), "int8").any()


def test_coordinate_entropy_is_bounded_by_bits_and_by_n(vectors):
    for storage, bits in info.STORAGE_BITS.items():
        entropy = info.coordinate_entropy(info.codes(vectors, storage))
        assert entropy.shape == (16,) and (entropy <= min(bits, math.log2(300) + 0.75) + 0.01).all()
    binary = info.coordinate_entropy(info.codes(vectors, "binary"))
    assert binary.mean() == pytest.approx(1, abs=0.02)
    constant = np.ones((50, 2), dtype=np.int8)
    assert info.coordinate_entropy(constant).tolist() == [0, 0]
    with pytest.raises(VectorError, match="coordinate_entropy was given"):
        info.coordinate_entropy(np.ones(3))


def test_distinct_counts_rows():
    assert info.distinct(np.array([[1, 2], [1, 2], [2, 1]])) == 2
    assert info.distinct(np.array([[True, False], [True, True]])) == 2


# --- distances --------------------------------------------------------------------------------------


def test_distances_see_far_below_what_a_float32_cosine_can():
    a = np.array([[1.0, 0.0]])
    b = np.array([[math.cos(1e-5), math.sin(1e-5)]])
    assert info.distances(a, b)[0] == pytest.approx(0.5e-10, rel=1e-6)
    assert info.distances(a, -a)[0] == pytest.approx(2)
    assert info.distances(a, 9 * a)[0] == 0


def test_nearest_distances_agree_with_a_plain_loop(vectors):
    x = vectors[:40]
    plain = [
        min(info.distances(x[i : i + 1], x[j : j + 1])[0] for j in range(40) if j != i) for i in range(40)
    ]
    np.testing.assert_allclose(info.nearest_distances(x), plain, rtol=1e-5)
    assert (info.nearest_distances(x, others=vectors[35:])[35:] == 0).all(), (
        "with others, a row may find itself"
    )
    assert (info.nearest_distances(np.repeat(x, 2, axis=0)) == 0).all(), "twins are found"
    with pytest.raises(VectorError, match="n >= 2"):
        info.nearest_distances(x[:1])


def test_random_pair_distances_never_pair_a_row_with_itself(vectors):
    gaps = info.random_pair_distances(vectors[:3], pairs=500)
    assert gaps.shape == (500,) and gaps.min() > 1e-3 and len(np.unique(gaps.round(6))) == 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.ones(3), "shape"),
        (np.array([[np.nan, 1]]), "NaN"),
        (np.zeros((2, 2)), "zeros"),
        (np.ones((0, 4)), "shape"),
    ],
)
def test_distances_refuse_what_has_no_direction(bad, words):
    with pytest.raises(VectorError, match=words):
        info.distances(bad, bad)


def test_distances_refuse_different_shapes():
    with pytest.raises(VectorError, match="two of the same shape"):
        info.distances(np.ones((2, 3)), np.ones((3, 3)))


# --- edits ------------------------------------------------------------------------------------------

words = st.lists(st.sampled_from(["a", "the", "union", "café", "🙂", "peace"]), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(words, st.integers(0, 99))
def test_every_edit_does_what_its_name_says(chosen, seed):
    text = " ".join(chosen)
    edits = info.minimal_edits(text, vocabulary=["war", *chosen], seed=seed)
    assert edits == info.minimal_edits(text, vocabulary=["war", *chosen], seed=seed)
    assert all(edited != text for edited in edits.values())
    for name in ("adjacent swap", "random swap", "full shuffle"):
        assert (name in edits) == (len(set(chosen)) > 1)
        if name in edits:
            assert sorted(edits[name].split()) == sorted(chosen)
    for name, moved in (("adjacent swap", 2), ("random swap", 2), ("replace a word", 1)):
        if name in edits:
            assert sum(a != b for a, b in zip(edits[name].split(), chosen, strict=True)) == moved
    if "delete a word" in edits:
        assert len(edits["delete a word"].split()) == len(chosen) - 1
    if "case" in edits:
        assert edits["case"].lower() == text.lower()


def test_edits_of_one_word_and_of_none():
    assert set(info.minimal_edits("peace", vocabulary=["war"])) == {"case", "replace a word"}
    assert info.minimal_edits("🙂", vocabulary=["🙂"]) == {}
    with pytest.raises(TutorialError, match="empty text"):
        info.minimal_edits(" ", vocabulary=["war"])


def test_edit_distances_order_the_edits(toy):
    texts = [f"we keep the peace {w} now" for w in ("and", "but", "until", "for", "with")]
    found = info.edit_distances(texts, toy)
    assert set(found.distances) == set(info.EDITS) == set(found.examples)
    assert all(len(gaps) == 5 for gaps in found.distances.values())
    assert found.distances["case"].max() < 1e-9, "an uncased embedder sees no capitals"
    swap, word = found.median("adjacent swap"), found.median("replace a word")
    assert swap == sorted(found.distances["adjacent swap"])[2]
    assert 1e-6 < swap < word
    with pytest.raises(TutorialError, match="no texts"):
        info.edit_distances([], toy)


def test_numeric_resolution_sees_the_noise_and_nothing_else(toy):
    noise = info.numeric_resolution(["peace now", "war and peace", "union"], toy)
    assert noise.shape == (3,) and (noise > 0).all() and noise.max() < 1e-9
    with pytest.raises(TutorialError, match="two sizes to compare"):
        info.numeric_resolution(["peace"], toy, batch_sizes=(1,))
    with pytest.raises(TutorialError, match="0 texts"):
        info.numeric_resolution([], toy)


# --- data processing --------------------------------------------------------------------------------


def test_destroyed_tells_what_the_tokenizer_and_the_limit_take(toy):
    rows = info.destroyed(
        [
            ("case", "peace now", "PEACE Now"),
            ("beyond the limit", "a b c d e f then peace", "a b c d e f then war"),
            ("a word", "peace now", "war now"),
        ],
        toy,
    )
    assert [row.same_tokens for row in rows] == [True, True, False]
    assert rows[0].distance < 1e-9 > rows[1].distance and rows[2].distance > 1e-3
    assert rows[1].change == "beyond the limit" and rows[1].second.endswith("war")
    assert info.destroyed([], toy) == []


def test_accents_and_capitals():
    assert info.strip_accents("Café Ångström, 日本 🙂") == "Cafe Angstrom, 日本 🙂"
    assert info.case_bits("We, 3!") == 2 and info.case_bits("日本 12") == 0
