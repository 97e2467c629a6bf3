"""Defences, the way around them, and what is counted as leaked."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest

from tutorial_lib.errors import CorpusError, TextError, VectorError
from tutorial_lib.metrics import proportion
from tutorial_lib.privacy import (
    Alignment,
    Binary,
    CellMeans,
    Defence,
    DefendedEmbedder,
    GaussianNoise,
    Int8,
    PCATruncate,
    ProductQuantisation,
    Quantise,
    SecretAffine,
    SecretRotation,
    Truncate,
    adapt,
    beir_task,
    facts_recovered,
    find_pii,
    mask,
    name_hits,
    names_recovered,
    pii_recovered,
    retrieval_task,
    score_retrieval,
    unit,
)
from tutorial_lib.privacy.pii import check_names

D = 32
RNG = np.random.default_rng(0)
# Correlated dimensions, as embeddings have: a few directions hold most of the variance.
VECTORS = unit(
    (RNG.normal(size=(600, D)) * np.geomspace(3, 0.3, D)) @ np.linalg.qr(RNG.normal(size=(D, D)))[0]
)
QUERIES = unit(VECTORS[:100] + 0.05 * RNG.normal(size=(100, D)))
EVERY = [
    GaussianNoise(0.01),
    Quantise(4),
    Int8(),
    Binary(),
    ProductQuantisation(8),
    Truncate(16),
    PCATruncate(16),
    SecretRotation(3),
    SecretAffine(3),
]


def cosines(a, b):
    return np.sum(unit(a) * unit(b), axis=1)


@pytest.mark.parametrize("defence", EVERY, ids=lambda d: d.label)
def test_every_defence_keeps_its_promises(defence):
    assert defence.fit(VECTORS) is defence
    stored = defence.apply(VECTORS)
    assert stored.dtype == np.float32
    assert len(stored) == len(VECTORS)
    np.testing.assert_array_equal(stored, defence.apply(VECTORS))  # the same every time
    assert defence.query(QUERIES).shape == (100, stored.shape[1])
    assert defence.read(stored).shape == VECTORS.shape
    np.testing.assert_allclose(np.linalg.norm(defence.read(stored), axis=1), 1, atol=1e-5)
    assert 0 < defence.bits <= 32 * D
    with pytest.raises(VectorError, match="fitted on 32 dimensions and given 8"):
        defence.apply(VECTORS[:, :8])


def test_a_defence_must_be_fitted_and_possible():
    with pytest.raises(VectorError, match="before it was fitted"):
        Int8().apply(VECTORS)
    for impossible in (
        lambda: Quantise(0),
        lambda: GaussianNoise(-1),
        lambda: Truncate(0).fit(VECTORS),
        lambda: PCATruncate(99).fit(VECTORS),
        lambda: ProductQuantisation(7).fit(VECTORS),
        lambda: Defence().fit(np.full((3, 3), np.nan)),
        lambda: Defence().fit(np.zeros(3)),
    ):
        with pytest.raises(VectorError):
            impossible()


def test_what_each_defence_does_to_a_vector():
    noise = GaussianNoise(0.05).fit(VECTORS).apply(VECTORS) - VECTORS
    assert noise.std() == pytest.approx(0.05, rel=0.05)
    assert set(np.unique(Binary().fit(VECTORS).apply(VECTORS))) == {-1.0, 1.0}
    assert [
        cosines(Quantise(b).fit(VECTORS).apply(VECTORS), VECTORS).mean() > c
        for b, c in ((8, 0.999), (4, 0.98))
    ] == [True] * 2
    assert cosines(ProductQuantisation(16).fit(VECTORS).apply(VECTORS), VECTORS).mean() > 0.95
    np.testing.assert_allclose(Truncate(16).fit(VECTORS).apply(VECTORS), unit(VECTORS[:, :16]), atol=1e-6)
    kept = PCATruncate(16).fit(VECTORS)
    assert (
        cosines(kept.apply(VECTORS) @ kept._axes.T, VECTORS).mean()
        > cosines(VECTORS[:, :16], VECTORS[:, :16] * 0 + 1).mean()
    )
    rotated = SecretRotation(3).fit(VECTORS).apply(VECTORS)
    np.testing.assert_allclose(rotated @ rotated.T, VECTORS @ VECTORS.T, atol=1e-5)
    assert not np.allclose(
        rotated, SecretRotation(4).fit(VECTORS).apply(VECTORS)
    )  # another key, another store


def test_search_finds_what_the_defence_leaves():
    answers = range(100)
    plain = score_retrieval(QUERIES, VECTORS, answers)
    assert plain.ndcg.value > 0.95
    assert plain.recall.n == 100
    for exact in (SecretRotation(), SecretAffine()):  # both keep every rank
        assert score_retrieval(QUERIES, VECTORS, answers, exact.fit(VECTORS)).ndcg.value == pytest.approx(
            plain.ndcg.value, abs=1e-6
        )
    noise = [
        score_retrieval(QUERIES, VECTORS, answers, GaussianNoise(s).fit(VECTORS)).ndcg.value
        for s in (0, 0.2, 1)
    ]
    assert noise[0] == plain.ndcg.value
    assert noise[0] > noise[1] > noise[2]
    assert noise[2] < 0.3
    with pytest.raises(VectorError, match="one answer for each query"):
        score_retrieval(QUERIES, VECTORS, [1])


def test_noise_belongs_to_the_vector_and_not_to_its_place():
    defence = GaussianNoise(0.05, seed=3).fit(VECTORS)
    stored = defence.apply(VECTORS)
    order = np.random.default_rng(0).permutation(len(VECTORS))
    np.testing.assert_array_equal(defence.apply(VECTORS[order]), stored[order])
    first, second = (defence.apply(part) - part for part in (VECTORS[:300], VECTORS[300:]))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05  # nothing to learn from known pairs


def test_graded_answers_are_scored_as_beir_scores_them():
    documents = np.eye(5, dtype=np.float32)
    query = np.array([[5, 4, 3, 2, 1]], dtype=np.float32)
    scores = score_retrieval(query, documents, [{1: 1.0, 3: 2.0, 4: 1.0}], k=4)
    gained = 1 / np.log2(3) + 2 / np.log2(5)  # at ranks 2 and 4; the third answer is beyond the cut
    best = 2 / np.log2(2) + 1 / np.log2(3) + 1 / np.log2(4)
    assert scores.ndcg.value == pytest.approx(gained / best)
    assert scores.recall.value == pytest.approx(2 / 3)
    several = score_retrieval(QUERIES, VECTORS, [{i: 1.0} for i in range(100)])
    one = score_retrieval(QUERIES, VECTORS, range(100))
    np.testing.assert_allclose(several.per_query, one.per_query)


def test_ranks_are_turned_into_scores():
    documents = np.eye(4, dtype=np.float32)
    queries = np.array([[1, 0.5, 0, 0], [1, 0.5, 0, 0], [3, 2, 1, 0.5]], dtype=np.float32)
    scores = score_retrieval(queries, documents, [0, 1, 3], k=3)
    np.testing.assert_allclose(scores.per_query, [1, 1 / np.log2(3), 0])
    assert scores.recall.value == pytest.approx(2 / 3)


def test_the_adaptive_attacker_undoes_what_is_linear():
    known, secret = VECTORS[:200], VECTORS[200:]
    rotation = SecretRotation(5).fit(VECTORS)
    assert cosines(rotation.read(rotation.apply(secret)), secret).mean() < 0.3  # the naive one sees noise
    turned = Alignment.fit(rotation.apply(known), known, method="procrustes")
    assert cosines(turned.apply(rotation.apply(secret)), secret).min() > 0.999
    affine = SecretAffine(5).fit(VECTORS)
    mapped = Alignment.fit(affine.apply(known), known)
    assert cosines(mapped.apply(affine.apply(secret)), secret).min() > 0.999
    for defence in (PCATruncate(24), Truncate(24), GaussianNoise(0.1), Binary()):
        stored = defence.fit(VECTORS).apply(VECTORS)
        naive = cosines(defence.read(stored[200:]), secret).mean()
        adaptive = cosines(Alignment.fit(stored[:200], known).apply(stored[200:]), secret).mean()
        assert adaptive > naive
    with pytest.raises(VectorError, match="5 pairs or more"):
        Alignment.fit(known[:3], known[:3])
    with pytest.raises(VectorError, match="keeps the dimension"):
        Alignment.fit(known[:, :8], known, method="procrustes")


def test_cell_means_are_the_best_decoding_of_a_cell():
    for defence in (Quantise(2), Binary(), ProductQuantisation(8)):
        stored = defence.fit(VECTORS[:400]).apply(VECTORS)
        cells = CellMeans.fit(stored[:400], VECTORS[:400], defence.code_width)
        decoded, target = cells.apply(stored[400:]), VECTORS[400:]
        gain = ((stored[400:] - target) ** 2).mean() - ((decoded - target) ** 2).mean()
        # k-means has put the centres of its codebook at the means already.
        assert gain == pytest.approx(0, abs=1e-5) if defence.label == "PQ 8 B" else gain > 1e-5
        assert len(np.unique(decoded[:, 0])) <= len(np.unique(stored[:, 0]))  # no more is said than was stored
    signs = CellMeans.fit(np.array([[-1.0], [1], [1]]), np.array([[-0.3], [0.1], [0.3]]))
    np.testing.assert_allclose(signs.apply(np.array([[1.0], [-1], [0.9]])), [[0.2], [-0.3], [0.2]], atol=1e-6)
    one = CellMeans.fit(np.ones((3, 1)), np.array([[1.0], [2], [3]]))
    np.testing.assert_allclose(one.apply(np.array([[7.0]])), [[2.0]])
    with pytest.raises(VectorError, match="two arrays of one shape"):
        CellMeans.fit(VECTORS, VECTORS[:, :8])
    with pytest.raises(VectorError, match="fit them on this store"):
        signs.apply(VECTORS)


@pytest.mark.parametrize("defence", [Defence(), *EVERY], ids=lambda d: d.label)
def test_preparing_for_a_defence_never_hurts(defence):
    secret, known, public = VECTORS[:50], VECTORS[50:250], VECTORS[250:]
    stored = defence.fit(VECTORS).apply(secret)
    way_back = adapt(defence, known, public)
    adapted = cosines(way_back.apply(stored), secret).mean()
    assert adapted >= cosines(defence.read(stored), secret).mean() - 5e-3
    if defence.label == "none":
        np.testing.assert_allclose(way_back.apply(stored), unit(secret), atol=1e-6)
    if defence.label in ("binary", "first 16", "PCA 16", "secret rotation", "secret affine map"):
        assert adapted > cosines(defence.read(stored), secret).mean()


def test_pairs_are_made_at_home_unless_a_key_forbids_it():
    public = Truncate(16).fit(VECTORS)
    assert adapt(public, VECTORS[:5], VECTORS).alignment.matrix.any()
    made = adapt(public, VECTORS[:8], VECTORS[100:])
    np.testing.assert_array_equal(made.alignment.matrix, adapt(public, VECTORS[100:]).alignment.matrix)
    secret = SecretRotation(2).fit(VECTORS)
    held = adapt(secret, VECTORS[:8], VECTORS[100:])
    np.testing.assert_array_equal(held.alignment.matrix, adapt(secret, VECTORS[:8]).alignment.matrix)


@pytest.mark.parametrize(("defence", "needed"), [(SecretRotation(2), 6), (Truncate(16), 5)])
def test_an_attacker_with_too_few_pairs_is_told_how_many(defence, needed):
    defence.fit(VECTORS)
    for n in range(1, needed):
        with pytest.raises(VectorError, match=rf"^{n} pairs were given .* give {needed} or more"):
            adapt(defence, VECTORS[:n])
    assert np.isfinite(adapt(defence, VECTORS[:needed]).apply(defence.apply(VECTORS))).all()


def test_seen_through_the_defence_the_true_text_is_certain_again():
    class Table:
        """One vector per text."""

        queries = 0

        def encode(self, texts, **options):
            self.queries += len(texts)
            return VECTORS[[int(t) for t in texts]]

        def normalise(self, texts):
            return [f"normal {t}" for t in texts]

    texts = [str(i) for i in range(50)]
    for defence in (Quantise(4), Binary(), ProductQuantisation(8), Truncate(16)):
        way_back = adapt(defence.fit(VECTORS), VECTORS[50:])
        target, table = way_back.apply(defence.apply(VECTORS[:50])), Table()
        through = DefendedEmbedder(table, defence, way_back)
        np.testing.assert_allclose(cosines(through.encode(texts, truncate=True), target), 1, atol=1e-6)
        assert cosines(table.encode(texts), target).max() < 1 - 1e-6
        assert through.queries == 100 == table.queries
        through.queries += 3
        assert table.queries == 103
        assert through.normalise(["a"]) == ["normal a"]


BEIR = {
    "corpus": [
        {"_id": "01", "title": "Peace", "text": "a treaty was signed"},
        {"_id": "2", "title": "", "text": "the harvest was good"},
        {"_id": "3", "title": "Roads", "text": "bridges are old"},
        {"_id": "4", "title": "", "text": " "},
    ],
    "queries": [{"_id": "q1", "text": "who signed?"}, {"_id": "q2", "text": "how old?"}, {"_id": "q3", "text": "none"}],
}
JUDGED = [("q1", "01", 2), ("q1", "2", 1), ("q1", "3", 0), ("q2", "3", 1), ("q2", "lost", 1), ("q3", "4", 1)]


@pytest.fixture
def beir_folder(tmp_path, monkeypatch):
    """A data set as BEIR's archives unpack to."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "scitoy"
    (folder / "qrels").mkdir(parents=True)
    for name, rows in BEIR.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row | {"metadata": {}}) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in JUDGED)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def check_beir(task):
    answers = dict(zip(task.queries, task.relevant, strict=True))
    by_text = {q: {task.documents[d]: s for d, s in found.items()} for q, found in answers.items()}
    assert by_text == {
        "who signed?": {"Peace a treaty was signed": 2.0, "the harvest was good": 1.0},
        "how old?": {"Roads bridges are old": 1.0},
    }
    assert len(task.documents) == 3


def test_beir_from_a_folder(beir_folder):
    check_beir(beir_task(str(beir_folder)))
    small = beir_task(str(beir_folder), queries=1, documents=1, seed=0)
    assert len(small.queries) == 1
    assert set(small.relevant[0]) == set(range(len(small.documents)))
    with pytest.raises(CorpusError, match=r"no qrels.dev\.tsv"):
        beir_task(str(beir_folder), "dev")
    (beir_folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq9\t01\t1\n")
    with pytest.raises(CorpusError, match="name no query and document"):
        beir_task(str(beir_folder))
    (beir_folder / "queries.jsonl").write_text('{"id": "q1", "text": "x"}\n')
    with pytest.raises(CorpusError, match=r"not laid out as BEIR's are \('_id'\)"):
        beir_task(str(beir_folder))
    (beir_folder / "queries.jsonl").write_text("no json\n")
    with pytest.raises(CorpusError, match="cannot be read"):
        beir_task(str(beir_folder))


def test_beir_as_the_hub_lays_it_out(beir_folder, tmp_path, monkeypatch):
    """Two repositories, in folders: `datasets` reads them by the same rules as from the Hub."""
    hub = tmp_path / "BeIR"
    (hub / "scitoy" / "data").mkdir(parents=True)
    (hub / "scitoy-qrels").mkdir()
    for name in BEIR:
        (hub / "scitoy" / "data" / f"{name}.jsonl").write_bytes((beir_folder / f"{name}.jsonl").read_bytes())
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {name}\n    path: data/{name}.jsonl\n" for name in BEIR
    )
    (hub / "scitoy" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    (hub / "scitoy-qrels" / "test.tsv").write_bytes((beir_folder / "qrels" / "test.tsv").read_bytes())
    monkeypatch.chdir(tmp_path)
    check_beir(beir_task("BeIR/scitoy"))
    with pytest.raises(CorpusError, match="has the splits test and no 'dev'"):
        beir_task("BeIR/scitoy", "dev")
    with pytest.raises(CorpusError, match="could not be loaded from the Hub"):
        beir_task("BeIR/nothing-of-the-kind")


def test_retrieval_task_is_built_from_passages():
    passages = [f"one{i} two{i} three{i} four{i} five{i}" for i in range(30)] + ["too short"]
    task = retrieval_task(passages, queries=10, seed=1)
    assert len(task.queries) == 10
    assert len(task.documents) == 30
    for query, answer in zip(task.queries, task.relevant, strict=True):
        assert passages[answer] == f"{query} {task.documents[answer]}"
    assert task == retrieval_task(passages, queries=10, seed=1)
    with pytest.raises(TextError, match="20 or more"):
        retrieval_task(passages[:5])


# ---------------------------------------------------------------- personal data

ITEMS = {
    "email": [
        "write to ann.lee+x@mail.example.org now",
        "write to ann . lee @ mail . org now",
        "a-b @ x. co. uk !",
    ],
    "phone": ["call +1 (415) 555-0132 today", "call ( 415 ) 555 - 2671 .", "ring + 44 20 7946 0958"],
    "date": [
        "on 1984-03-12 in",
        "on 12 / 03 / 1984 ,",
        "on march 3, 1984 .",
        "by 3rd of",
        "on 12 may 2001",
        "call ann on july 4",
    ],
    "identifier": [
        "ssn 123 - 45 - 6789",
        "card 4111 1111 1111 1111",
        "iban gb82 west 1234 5698 7654 32",
        "ip 192 . 168 . 0 . 1",
        "record 4839201",
        "key ab12c3 here",
    ],
}


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in ITEMS.items() for t in texts])
def test_recogniser(kind, text):
    kinds = [f.kind for f in find_pii(text)]
    assert kinds == ([] if "3rd of" in text else [kind])
    for found in find_pii(text):
        assert text[found.start : found.end].strip() == text[found.start : found.end]
        assert found.value


@pytest.mark.parametrize(
    "text",
    [
        "the state of the union",
        "may we march on",
        "in 1984 there were 300 men",
        "room 214 : ann lee",
        "owes 7300 dollars",
        "gb82 west 0000",
    ],
)
def test_recogniser_leaves_ordinary_text_alone(text):
    assert find_pii(text) == []


@pytest.mark.parametrize(
    "address",
    [
        "bob@company.dev", "bob@clinic.health", "bob@army.mil", "bob@shop.biz", "bob@mail.company.de",
        "bob@mail.health.org", "bob@x.co.uk",
    ],
)  # fmt: skip
def test_addresses_of_many_endings_alike_in_raw_and_tokenised_text(address):
    value = re.sub(r"[^a-z@]", "", address)
    tokenised = re.sub(r"([@.])", r" \1 ", address)
    for text in (f"mail {address} soon", f"mail {tokenised} soon"):
        assert [(f.kind, f.value) for f in find_pii(text)] == [("email", value)]


@pytest.mark.parametrize("text", ["a1", "a.", "a@", "a-", "a@b.", "a b . ", "12 ", "aA9"])
def test_a_long_key_is_read_in_time_that_grows_with_its_length(text):
    """A quarter of a second here; where every letter begins a search of what follows, minutes."""
    start = time.process_time()
    find_pii(text * (100_000 // len(text)))
    assert time.process_time() - start < 20


def test_an_address_of_many_parts_is_found_whole():
    for address in ("a.b.c.d.e.f@mail.example.com", f"{'x' * 64}@{'y' * 63}.org"):
        (found,) = find_pii(f"mail {address} soon")
        assert (found.start, found.end) == (5, 5 + len(address))
    assert find_pii(f"{'x' * 65}@y.org") == []  # no address has so long a name


def test_a_full_stop_after_a_word_is_no_ending():
    assert find_pii("see me @ noon . then we talk") == []


def test_pii_recovered_counts_items():
    texts = ["call ann on july 4", "mail ann@x.org on may 5", "nothing here"]
    guesses = ["call ann on july 4", "mail ann @ x . org on may 6", "call 415-555-2671"]
    scores = pii_recovered(texts, guesses)
    assert (scores["date"].value, scores["date"].n) == (50.0, 2)
    assert (scores["email"].value, scores["email"].n) == (100.0, 1)
    assert set(scores) <= set(ITEMS)
    assert "phone" not in scores
    alike = pii_recovered(["on may 5 and june 6 and july 7"] * 3, ["on may 5 and june 6 and july 7"] * 3)["date"]
    assert (alike.n, alike.low) == (9, pytest.approx(proportion([True] * 3).low))  # of three texts
    with pytest.raises(TextError, match="3 originals and 1 guesses"):
        pii_recovered(texts, guesses[:1])


def test_names():
    assert name_hits("Ann O'Neil", "ann o ' neil has asthma") == (True, True, True)
    assert name_hits("josé lee", "jose has lee") == (False, True, True)
    assert name_hits("ann lee", "annette leeds") == (False, False, False)
    scores = names_recovered(["ann lee"] * 4, ["ann lee", "ann", "lee", "bob"])
    assert (scores.full.value, scores.first.value, scores.last.value) == (25, 50, 50)
    assert scores.full.n == 4
    assert scores.full.high > 25
    with pytest.raises(TextError, match="no letters"):
        name_hits("!!", "x")


def test_facts():
    facts = [["heart failure"], ["19", "rome"], ["O'Hare"], ["may 4"]]
    guesses = ["ann has heart failure", "bob, 19, lives in rome", "near o ' hare", "call her on may 4"]
    assert facts_recovered(facts, guesses).value == 100
    # all facts of a text, as whole words, side by side
    missed = ["failure of the heart", "bob, 19, lives in romeo", "near hare", "call her on may 14"]
    assert facts_recovered(facts, missed).value == 0
    half = facts_recovered(facts, guesses[:2] + missed[2:])
    assert (half.value, half.n) == (50, 4)
    with pytest.raises(TextError, match="4 originals and 1 guesses"):
        facts_recovered(facts, guesses[:1])
    with pytest.raises(TextError, match="text 1 has no fact"):
        facts_recovered([["rome"], []], guesses[:2])


def test_names_of_any_script():
    assert name_hits("Иван Петров", "здесь живёт иван петров .") == (True, True, True)
    assert name_hits("Иван Петров", "иван иванов") == (False, True, False)
    assert name_hits("李伟", "医 生 李 伟 来 了") == name_hits("李伟", "医生李伟来了") == (True, True, True)
    assert name_hits("प्रिया शर्मा", "प्रिया शर्मा यहाँ") == (True, True, True)
    assert name_hits("Łukasz", "ukasz") == (False, False, False)
    check_names(["Иван Петров", "李伟", "R2"])
    with pytest.raises(TextError, match="the name '---' has no letters"):
        check_names(["Ann Lee", "---"])


def test_mask_hides_vowel_signs_and_accents():
    assert mask("नमस्ते") == "न•••••"
    assert mask("pati\u0353e\u0301nt") == "p•••••••"  # one accent has no letter of its own to join
    assert mask("\u0301abcd") == "•••••"


def test_mask_hides_words_and_digits():
    hidden = mask("ann lee, room 214: asthma_3")
    assert "lee" not in hidden
    assert not any(c.isdigit() for c in hidden)
    assert len(hidden) == len("ann lee, room 214: asthma_3")
    assert hidden.startswith("•••")
    assert mask("patient") == "p••••••"


def test_price_of_a_defence():
    from tutorial_lib.privacy import Task, price_defences, price_figure

    texts, ranked_by_defended = [f"ann lee{i} is here" for i in range(20)], []

    class Toy:
        """Words for ids, nothing else: all that scoring asks of an embedder."""

        def normalise(self, texts):
            return list(texts)

        def token_ids(self, texts):
            return [t.split() for t in texts]

    def recover(target, ranked_by):  # reads a vector perfectly if it points the right way, else writes nonsense
        ranked_by_defended.append(isinstance(ranked_by, DefendedEmbedder))
        nearest = (target @ VECTORS[:20].T).argmax(1)
        return [texts[j] if target[i] @ VECTORS[j] > 0.9 else "gibberish" for i, j in enumerate(nearest)]

    families = {
        "none": [Defence()],
        "noise": [GaussianNoise(0.01), GaussianNoise(0.3)],
        "rotation": [SecretRotation(1)],
        "bits": [Binary()],
    }
    points = price_defences(
        families,
        texts=texts,
        names=[t[: t.index(" is")] for t in texts],
        facts=[[t.split()[1], "here"] for t in texts],
        vectors=VECTORS[:20],
        known=VECTORS[100:500],
        task=Task(QUERIES, VECTORS, range(100)),
        embedder=Toy(),
        recover=recover,
    )
    found = {(p.label, p.attacker): p for p in points}
    assert len(found) == 10
    assert ranked_by_defended == [False] * 9 + [True]
    assert found["none", "naive"].exact.value == 100
    assert found["none", "naive"].recall.value > 0.95
    assert found["noise 0.3", "naive"].recall.value < found["none", "naive"].recall.value
    assert found["noise 0.01", "naive"].names.value == 100
    assert found["noise 0.01", "naive"].facts.value == 100
    assert found["secret rotation", "naive"].facts.value < 10
    assert found["noise 0.3", "naive"].f1.value < 20
    assert found["noise 0.3", "naive"].ndcg.value < found["noise 0.01", "naive"].ndcg.value
    assert found["secret rotation", "naive"].exact.value < 10
    assert found["secret rotation", "adaptive"].exact.value == 100
    assert found["secret rotation", "adaptive"].ndcg == found["none", "naive"].ndcg
    for measure in ("f1", "names", "facts", "exact"):
        figure = price_figure(points, measure=measure)
        assert [a.get_title() for a in figure.axes] == ["naive attacker", "adaptive attacker"]
    assert len(price_figure([p for p in points if p.attacker == "naive"]).axes) == 1
