"""The audit end to end on real files, with an inverter that looks its answers up."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import stat
import sys
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from tutorial_lib.audit import _finished, _run, _side_by_side, add_parser, audit, merge, run
from tutorial_lib.audit_journal import Journal
from tutorial_lib.audit_report import OWASP, summarise
from tutorial_lib.audit_sample import scaled_like, scan
from tutorial_lib.errors import CheckpointError, StoreError, TextError, TutorialError, VectorError
from tutorial_lib.metrics import proportion
from tutorial_lib.privacy import SecretRotation, unit
from tutorial_lib.stores import open_store
from tutorial_lib.word_lists import WordList  # noqa: F401  # imported before a test replaces what it imports

D = 24
TEXTS = [f"ann lee{i} has asthma since may {i % 28 + 1}" for i in range(60)] + [
    f"word{i} " * 12 for i in range(20)
]


class Embedder:
    """Words to ids, hashed words to vectors: enough of an embedder for the audit, and fast."""

    name, dimension, max_tokens, device = "toy", D, 64, "cpu"

    def __init__(self):
        self.queries = 0
        self.words: dict[str, int] = {}

    def token_ids(self, texts):
        return [[self.words.setdefault(w, len(self.words)) for w in t.split()] for t in texts]

    def decode(self, ids):
        known = list(self.words)
        return [" ".join(known[i] for i in row) for row in ids]

    def encode(self, texts, **_):
        self.queries += len(texts)
        return unit(np.stack([sum(map(self._word, enumerate(text.split()))) for text in texts]))

    @staticmethod
    def _word(place):
        return np.random.default_rng(zlib.crc32(repr(place).encode())).normal(size=D)


@dataclass
class Inversion:
    texts: list[str]
    cosines: np.ndarray
    queries: np.ndarray


class Lookup:
    """An `invert` that knows every text: the nearest one, or with steps=0 the same without its last word."""

    def __init__(self, embedder, *, stop_after: int | None = None):
        self.embedder, self.calls, self.stop_after = embedder, 0, stop_after
        self.vectors = embedder.encode(TEXTS)

    def __call__(self, vectors, embedder, inverter, corrector=None, *, steps=50, beam_width=8, seed=0, **_):
        if steps:
            self.calls += 1
            if self.stop_after is not None and self.calls > self.stop_after:
                raise KeyboardInterrupt
        found = [TEXTS[i] for i in (vectors @ unit(self.vectors).T).argmax(axis=1)]
        texts = found if steps else [" ".join(t.split()[:-1]) for t in found]
        cosines = np.sum(unit(embedder.encode(texts)) * unit(vectors), axis=1)
        return Inversion(texts, cosines, np.full(len(texts), steps + 1))


SETTINGS = {"store": "s", "embedder": "toy", "stored": "s", "quantisation": "float32"}
INVERTER = SimpleNamespace(config=SimpleNamespace(max_tokens=8))


@pytest.fixture
def embedder():
    return Embedder()


def save(folder, embedder, *, texts=True, vectors=None):
    """A Parquet store of all texts; its address."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = embedder.encode(TEXTS) if vectors is None else vectors
    kept = {"text": TEXTS[: len(rows)]} if texts else {}
    columns = {"vector": pa.array(rows.tolist(), type=pa.list_(pa.float32(), rows.shape[1]))}
    pq.write_table(pa.table(columns | kept), folder / "store.parquet")
    return f"parquet:{folder}/store.parquet"


def run_audit(url, embedder, out, **options):
    options = {"sample": 40, "steps": 3, "batch_size": 8, "corrector": None, "invert": Lookup(embedder)} | options
    return audit(url, embedder, INVERTER, out=out, **options)


def strict(text):
    """JSON as strict parsers take it: without NaN and Infinity."""
    return json.loads(text, parse_constant=pytest.fail)


def test_a_store_that_leaks(tmp_path, embedder):
    url = save(tmp_path, embedder)
    before = (tmp_path / "store.parquet").read_bytes()
    report = run_audit(
        url, embedder, tmp_path / "out", names=["ann lee1", "ann lee2", "bob nobody"], sample=80
    )
    assert report.fit["verdict"] == "yes"
    assert (report.exact.value, report.exact.n) == (100.0, 80)
    assert report.verdict.startswith("These vectors are about as private as their text")
    assert set(report.f1_by_length) == {"1–8", "9–16"}
    assert (report.pii["date"].value, report.pii["date"].n) == (100.0, 60)
    assert (report.names["full"].value, report.names["full"].n) == (100.0, 2)
    assert report.queries >= 80 * 4
    assert any("20 of 80 texts are longer than the 8" in reason for reason in report.not_judged)
    assert (tmp_path / "store.parquet").read_bytes() == before  # never written to
    written = strict((tmp_path / "out" / "report.json").read_text())
    assert written["exact"]["n"] == 80
    assert written["standard"] == OWASP


def test_longer_texts_may_be_bred(tmp_path, embedder, monkeypatch):
    asked = []

    def breed(vectors, *models, steps, variants):
        asked.append((steps, variants))
        return Lookup(embedder)(vectors, *models, steps=steps)

    monkeypatch.setattr("tutorial_lib.variants.breed", breed)
    url = save(tmp_path, embedder)
    options = {"sample": 10, "corrector": INVERTER}
    never = Lookup(embedder, stop_after=0)
    report = run_audit(url, embedder, tmp_path / "out", variants=16, invert=never, **options)
    assert (report.exact.value, report.exact.n) == (100.0, 10)
    assert asked == [(3, 16)] * 2
    assert report.settings["variants"] == 16
    assert not {"beam width", "edits"} & set(report.settings)
    with pytest.raises(TutorialError, match="variants"):
        run_audit(url, embedder, tmp_path / "out", **options)
    settings = run_audit(url, embedder, tmp_path / "corrected", **options).settings
    assert (settings["beam width"], settings["edits"]) == (4, 32)
    assert "variants" not in settings


def test_a_surrogate_searches_for_rows_on_every_core(tmp_path, embedder, monkeypatch):
    asked, embedded = [], []
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert _side_by_side(SimpleNamespace(device="cpu")) == 8
    monkeypatch.setattr("tutorial_lib.audit._ROWS_A_CORE", 1)

    class Listed:
        @classmethod
        def embed(cls, words, _):
            embedded.append(tuple(words))
            return cls()

    def surrogate_search(vectors, *models, steps, variants, ahead, words):
        asked.append((len(vectors), steps, variants, ahead, isinstance(words, Listed)))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return Lookup(embedder)(vectors, *models, steps=steps)

    monkeypatch.setattr("tutorial_lib.surrogate.surrogate_search", surrogate_search)
    monkeypatch.setattr("tutorial_lib.word_lists.WordList", Listed)
    monkeypatch.setattr("tutorial_lib.word_lists.whole_words", lambda _: ["lee1", "has"])
    monkeypatch.setattr("tutorial_lib.word_lists.fill_in", lambda vectors, before, *_: before)
    url = save(tmp_path, embedder)
    options = {"sample": 6, "corrector": INVERTER, "variants": 16, "surrogate": True, "ahead": 3}
    with pytest.raises(KeyboardInterrupt):
        run_audit(url, embedder, tmp_path / "out", **options)
    report = run_audit(url, embedder, tmp_path / "out", **options)  # the rows of the kill again, and no others
    assert asked == [(2, 3, 16, 3, True)] * 4
    assert embedded == [("lee1", "has")] * 2  # once in each process
    assert (report.exact.value, report.exact.n) == (100.0, 6)
    assert (report.settings["surrogate"], report.settings["look-ahead"]) == (True, 3)
    assert not {"beam width", "edits"} & set(report.settings)
    assert "queries and every word of the embedder's vocabulary, " in report.to_text()
    with pytest.raises(TutorialError, match="started with another look-ahead"):
        run_audit(url, embedder, tmp_path / "out", **options | {"ahead": 2})

    embedded.clear()  # a list that has the embedder's words does for both
    report = run_audit(url, embedder, tmp_path / "words", words=["ann", "lee1", "has"], **options)
    assert embedded == [("ann", "lee1", "has")]
    assert "queries and a list of 3 words, " in report.to_text()
    run_audit(url, embedder, tmp_path / "few", words=["ann"], **options)
    assert embedded[1:] == [("lee1", "has"), ("ann",)]

    report = run_audit(url, embedder, tmp_path / "plain", **options | {"ahead": 1})
    assert asked[-1] == (2, 3, 16, 1, False) and report.settings["look-ahead"] == 1
    embedder.device = "meta"  # which the rows would have to share
    run_audit(url, embedder, tmp_path / "device", **options)
    assert asked[-1] == (1, 3, 16, 3, True)
    with pytest.raises(TutorialError, match="there are none: pass variants=32"):
        run_audit(url, embedder, tmp_path / "none", **options | {"variants": 0})
    with pytest.raises(TutorialError, match=r"^ahead=3 looks ahead in a surrogate: pass surrogate=True"):
        run_audit(url, embedder, tmp_path / "none", **options | {"surrogate": False})
    assert not (tmp_path / "none").exists()


ROW = {"id": "1", "guess": "", "cosine": 0.9, "queries": 1, "same": None, "guessed_pii": [], "guessed_names": 0}
READ = ROW | {"text": "", "length": 15, "f1": 5.0, "exact": False, "pii": [], "names": []}  # its text is known
SCANNED = {"scan": {"rows": 1, "skipped": 0, "norm": [1, 1, 1]}, "fit": {"verdict": "yes", "reason": ""}}


def test_the_verdict_counts_every_row_and_names():
    def verdict(*rows):
        return summarise([{"settings": SETTINGS}, SCANNED, {"rows_done": rows}]).verdict

    assert verdict(READ).startswith("This attack recovered little")
    assert verdict(READ | {"names": [[False, True, True]]}).startswith("This attack recovered little")
    assert "leak personal data" in verdict(READ | {"names": [[True, True, True]]})
    assert "leak personal data" in verdict(READ | {"pii": [["email", True]]})
    found = [ROW | {"same": True}] * 9  # nine of ten rows have no text: the tenth must not speak for them
    assert "90.0 % (95 % interval" in verdict(READ, *found)


def test_a_text_is_judged_by_what_the_embedder_saw_of_it(tmp_path, embedder, monkeypatch):
    long = [f"word{i} ends by calling ( 415 ) 555 - 26{i}" for i in range(70, 80)]
    monkeypatch.setattr(embedder, "max_tokens", 4)
    cut = [" ".join(text.split()[:4]) for text in long]
    vectors = embedder.encode(cut)

    def found(vectors, *_, steps, **__):
        texts = [cut[i] for i in (vectors @ embedder.encode(cut).T).argmax(axis=1)] if steps else cut[:1] * len(vectors)
        return Inversion(texts, np.sum(embedder.encode(texts) * vectors, axis=1), np.ones(len(texts)))

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[__name__], "TEXTS", long)
        url = save(tmp_path, embedder, vectors=vectors)
    report = run_audit(url, embedder, tmp_path / "out", invert=found, sample=10, names=["ends by"])
    assert report.exact.value == 100.0 and report.pii == {}  # the number was never in a vector
    assert report.names["full"].value == 100.0 and list(report.f1_by_length) == ["9–16"]


def test_a_text_that_cannot_be_read_counts_as_none(tmp_path, embedder, monkeypatch):
    def token_ids(texts):
        if any("lee7 " in text for text in texts):
            raise TextError("text 0 holds half a character")
        return Embedder.token_ids(embedder, texts)

    monkeypatch.setattr(embedder, "token_ids", token_ids)
    report = run_audit(save(tmp_path, embedder), embedder, tmp_path / "out", sample=80)
    assert (report.exact.n, report.rows) == (79, 80)
    assert any("1 of 80 rows have no text beside the vector that could be read" in r for r in report.not_judged)


def test_an_audit_says_who_would_spend_more_on_long_texts():
    def said(row, **settings):
        report = summarise([{"settings": SETTINGS | settings}, SCANNED, {"rows_done": [row]}])
        return any("1 of 1 texts are longer than 12 word pieces and did not come back" in r for r in report.not_judged)

    assert said(READ)
    assert not said(READ, surrogate=True)
    assert not said(READ | {"exact": True}) and not said(READ | {"length": 12})


def test_a_list_is_embedded_once_and_put_in_at_last(tmp_path, embedder, monkeypatch):
    embedded = []

    class Listed:
        @classmethod
        def embed(cls, words, _):
            embedded.append(tuple(words))
            return cls()

    def fill_in(vectors, before, embedder, words):
        assert isinstance(words, Listed) and before.texts
        found = Lookup(embedder)(vectors, embedder, INVERTER)
        return Inversion(found.texts, found.cosines, before.queries + 7)

    monkeypatch.setattr("tutorial_lib.word_lists.WordList", Listed)
    monkeypatch.setattr("tutorial_lib.word_lists.fill_in", fill_in)
    options = {"steps": 0, "sample": 20, "names": ["ann lee1"]}
    url = save(tmp_path, embedder)
    plain = run_audit(url, embedder, tmp_path / "plain", **options)
    report = run_audit(url, embedder, tmp_path / "words", words=["ann", "lee1"], **options)
    assert (plain.exact.value, report.exact.value) == (0.0, 100.0)
    assert report.queries - plain.queries == 20 * 7
    assert embedded == [("ann", "lee1")]
    assert "words" not in plain.settings and report.settings["words"].startswith("2 (")
    assert "queries and a list of 2 words, " in report.to_text() and "queries, " in plain.to_text()
    assert any("--words census" in reason for reason in plain.not_judged)
    assert not any("--words" in reason for reason in report.not_judged)
    with pytest.raises(TutorialError, match="words"):  # another list, another audit
        run_audit(url, embedder, tmp_path / "words", words=["bob"], **options)


class Long(Embedder):
    """The same without a normalisation at its end: every vector has the length 5."""

    def encode(self, texts, **_):
        return 5 * super().encode(texts)


class Measuring(Lookup):
    """Notes the lengths of the vectors it is asked to invert, the store's and the noise."""

    def __call__(self, vectors, *models, **options):
        self.lengths = [*getattr(self, "lengths", []), *np.linalg.norm(vectors, axis=1)]
        return super().__call__(vectors, *models, **options)


def test_vectors_keep_the_length_that_the_inverter_was_trained_with(tmp_path, embedder):
    (tmp_path / "long").mkdir()
    long = Long()
    invert, calls = Measuring(long), []
    encode, long.encode = long.encode, lambda texts, **_: calls.append(list(texts)) or encode(texts)
    report = run_audit(save(tmp_path / "long", long), long, tmp_path / "out1", invert=invert)
    assert report.exact.value == 100.0
    lengths, noise = np.delete(invert.lengths, np.s_[32:64]), invert.lengths[32:64]  # 32 to see whether it fits
    assert len(lengths) == 32 + 40
    np.testing.assert_allclose(lengths, 5, rtol=1e-5)
    assert 2 < np.mean(noise) < 8  # the sample's own mean and spread
    assert np.std(noise) > 0.01
    assert sum("sun" in " ".join(texts) for texts in calls) == 1  # measured once, not with every batch

    # A store of a unit embedder may keep another length: whole numbers, here.
    np.save(tmp_path / "int8.npy", np.rint(100 * embedder.encode(TEXTS)).astype(np.int8))
    invert = Measuring(embedder)
    run_audit(f"npy:{tmp_path}/int8.npy", embedder, tmp_path / "out2", invert=invert)
    np.testing.assert_allclose(invert.lengths, 1, rtol=1e-5)


def test_a_store_that_lost_the_lengths_says_so(tmp_path, embedder):
    long = Long()
    for name, vectors, said in (("scaled", unit(long.encode(TEXTS)), True), ("kept", long.encode(TEXTS), False)):
        (tmp_path / name).mkdir()
        report = run_audit(save(tmp_path / name, long, vectors=vectors), long, tmp_path / f"out-{name}")
        assert ("their lengths are lost" in report.fit["reason"]) is said
        assert ("their lengths are lost" in report.to_html()) is said
    report = run_audit(save(tmp_path, embedder), embedder, tmp_path / "out-unit")  # length 1 is this embedder's own
    assert "lost" not in report.fit["reason"]


def test_scaled_like_follows_the_embedder(embedder):
    vectors = np.array([[3.0, 4.0], [0.0, 2.0]])
    np.testing.assert_allclose(scaled_like(embedder, vectors), [[0.6, 0.8], [0, 1]], rtol=1e-6)
    table = SimpleNamespace(closed=True)  # has no encode: nobody may ask
    for other in (Long(), table):
        kept = scaled_like(other, vectors)
        np.testing.assert_array_equal(kept, vectors)
        assert kept.dtype == np.float32


def test_wrong_values_leave_the_folder_to_the_next_run(tmp_path, embedder):
    url, out = save(tmp_path, embedder), tmp_path / "out"
    wrong = {"sample": 0, "steps": -1, "beam_width": 0, "edits": -1, "variants": -1, "seed": -1, "batch_size": 0}
    wrong["ahead"] = 0
    for name, value in wrong.items():
        with pytest.raises(TutorialError, match=rf"^{name}={value} was asked for: use a whole number of at least \d$"):
            run_audit(url, embedder, out, **{name: value})
    for options in ({"variants": 4}, {"invert": None}):
        with pytest.raises(TutorialError, match="steps=3 was asked for without a corrector"):
            run_audit(url, embedder, out, **options)
    stranger = SimpleNamespace(config=SimpleNamespace(embedder_name="another", _name_or_path="weights"))
    with pytest.raises(CheckpointError, match="weights was made for another and the embedder is toy"):
        run_audit(url, embedder, out, corrector=stranger)
    embedder.closed = True
    with pytest.raises(TutorialError, match="toy is a table with nobody to ask"):
        run_audit(url, embedder, out)
    del embedder.closed
    assert not out.exists()
    assert run_audit(url, embedder, out).rows == 40


def test_a_first_guess_needs_no_corrector(tmp_path, embedder):
    url = save(tmp_path, embedder)
    report = run_audit(url, embedder, tmp_path / "out", steps=0, variants=16, corrector=INVERTER)
    assert (report.settings["corrector"], report.exact.value) == ("", 0.0)  # the lookup leaves out a word
    assert "variants" not in report.settings


def test_what_has_no_value_is_null(tmp_path, embedder):
    report = run_audit(save(tmp_path, embedder), embedder, tmp_path / "one", sample=1)
    assert "nan" not in report.to_text()
    written = strict((tmp_path / "one" / "report.json").read_text())
    assert written["f1"] == {"value": 100.0, "low": None, "high": None, "n": 1}
    np.save(tmp_path / "wide.npy", np.ones((9, D + 1), dtype=np.float32))
    run_audit(f"npy:{tmp_path}/wide.npy", embedder, tmp_path / "wide")
    assert strict((tmp_path / "wide" / "report.json").read_text())["fit"]["cosine"] is None


def test_texts_are_masked_unless_shown(tmp_path, embedder):
    url = save(tmp_path, embedder)
    run_audit(url, embedder, tmp_path / "masked")
    for file in (tmp_path / "masked").iterdir():
        assert "asthma" not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    run_audit(url, embedder, tmp_path / "shown", show=True)
    page = (tmp_path / "shown" / "report.html").read_text()
    assert "asthma" in page
    assert "src=" not in page
    assert "http" not in page  # self-contained
    assert not (tmp_path / "shown" / "sample.npz").exists()


def test_a_killed_audit_resumes_without_repeating_work(tmp_path, embedder):
    url, out = save(tmp_path, embedder), tmp_path / "out"
    whole = run_audit(url, embedder, tmp_path / "whole")
    stopped = Lookup(embedder, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        run_audit(url, embedder, out, invert=stopped)
    with (out / "journal.jsonl").open("a") as file:
        file.write('{"rows_done": [{"id"')  # a line the kill cut short
    again = Lookup(embedder)
    report = run_audit(url, embedder, out, invert=again)
    assert again.calls == 5 - 2
    assert (report.exact, report.f1, report.rows) == (whole.exact, whole.f1, 40)
    finished = Lookup(embedder)
    assert run_audit(url, embedder, out, invert=finished).exact == whole.exact
    assert finished.calls == 0
    with pytest.raises(TutorialError, match="already holds an audit"):
        run_audit(url, embedder, out, resume=False)
    with pytest.raises(TutorialError, match="started with another steps"):
        run_audit(url, embedder, out, steps=9)
    (out / "journal.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(TutorialError, match=r"line 2 of .* is damaged"):
        run_audit(url, embedder, out)


def test_shards_merge_into_the_report_of_the_whole(tmp_path, embedder):
    url = save(tmp_path, embedder)
    whole = run_audit(url, embedder, tmp_path / "whole")
    shards = [tmp_path / f"shard{i}" for i in (1, 2, 3)]
    for i, folder in enumerate(shards, 1):
        assert run_audit(url, embedder, folder, shard=(i, 3)).rows in (13, 14)
    merged = merge(shards, tmp_path / "merged")
    assert (merged.rows, merged.exact, merged.f1.value) == (40, whole.exact, whole.f1.value)
    assert (tmp_path / "merged" / "report.html").exists()
    with pytest.raises(TutorialError, match="give each shard once"):
        merge(shards[:2], tmp_path / "merged")
    with pytest.raises(TutorialError, match="different audits"):
        merge(
            [
                shards[0],
                tmp_path / "whole",
                run_audit(url, embedder, tmp_path / "x", steps=2) and tmp_path / "x",
            ],
            "y",
        )
    with pytest.raises(TutorialError, match="holds no audit"):
        merge([tmp_path / "nowhere"], tmp_path / "merged")
    with pytest.raises(KeyboardInterrupt):
        run_audit(url, embedder, tmp_path / "killed", shard=(1, 3), invert=Lookup(embedder, stop_after=1))
    with pytest.raises(TutorialError, match="not finished"):
        merge([tmp_path / "killed", *shards[1:]], tmp_path / "merged")
    with pytest.raises(TutorialError, match="numbered from 1"):
        run_audit(url, embedder, tmp_path / "zero", shard=(0, 3))


def test_without_texts_cosine_decides(tmp_path, embedder):
    report = run_audit(save(tmp_path, embedder, texts=False), embedder, tmp_path / "out", names=["ann lee3"])
    assert report.exact is None
    assert report.f1 is None
    assert report.same.value == 100.0
    assert report.guessed["date"] > 0
    assert any("judged by cosine alone" in reason for reason in report.not_judged)


def test_coarse_storage_cannot_be_judged_by_cosine(tmp_path, embedder):
    np.save(tmp_path / "bits.npy", np.packbits(embedder.encode(TEXTS) > 0, axis=1))
    report = run_audit(f"npy:{tmp_path}/bits.npy", embedder, tmp_path / "out")
    assert report.same is None
    assert any("too coarsely stored" in reason for reason in report.not_judged)
    assert any("trained on binary vectors" in reason for reason in report.not_judged)
    assert report.verdict.startswith("This attack recovered little")


def test_vectors_of_another_embedder_are_recognised(tmp_path, embedder):
    rotated = SecretRotation(1).fit(embedder.encode(TEXTS)).apply(embedder.encode(TEXTS))
    noise = np.random.default_rng(0).normal(size=(80, D + 1)).astype(np.float32)
    invert = Lookup(embedder)
    report = run_audit(save(tmp_path, embedder, vectors=noise), embedder, tmp_path / "size", invert=invert)
    assert report.fit["verdict"] == "no"
    assert "25 dimensions and toy writes 24" in report.fit["reason"]
    assert report.verdict.startswith("Not judged")
    assert invert.calls == 0
    report = run_audit(save(tmp_path, embedder, vectors=rotated), embedder, tmp_path / "rotated")
    assert report.fit["verdict"] == "no"
    assert "transformed before storage" in report.fit["reason"]


def test_rows_that_cannot_be_used(tmp_path, embedder):
    vectors = embedder.encode(TEXTS)
    vectors[3], vectors[4] = np.nan, 0
    report = run_audit(save(tmp_path, embedder, vectors=vectors), embedder, tmp_path / "out")
    assert report.skipped == 2
    assert any("2 rows without a usable vector" in reason for reason in report.not_judged)
    with pytest.raises(VectorError, match="no usable vector"):
        run_audit(
            save(tmp_path, embedder, vectors=np.zeros((9, D), dtype=np.float32)), embedder, tmp_path / "none"
        )
    with pytest.raises(StoreError, match="no parquet store"):
        run_audit(f"parquet:{tmp_path}/gone.parquet", embedder, tmp_path / "gone")
    with open_store(save(tmp_path, embedder)) as store, pytest.raises(TutorialError, match="sample of 0 rows"):
        scan(store, 0)


def test_the_sample_is_uniform_and_without_repeats(tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32))
    counts = np.zeros(300)
    for seed in range(200):
        with open_store(str(tmp_path / "v.npy")) as store:
            found = scan(store, 30, seed=seed, batch=37)
        assert len(set(found.ids)) == 30
        rows = [int(i) for i in found.ids]
        np.testing.assert_array_equal(found.vectors, np.load(tmp_path / "v.npy")[rows])
        counts[rows] += 1
    # 20 expected per row, standard deviation 4.2; halves of the store are equally likely
    assert counts.min() > 4
    assert counts.max() < 40
    assert counts[:150].sum() == pytest.approx(3000, abs=200)


def test_a_sample_takes_the_memory_of_the_store_and_no_more(tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32))
    with open_store(str(tmp_path / "v.npy")) as store:
        found = scan(store, 10**12, batch=37)
        np.testing.assert_array_equal(found.vectors, np.load(tmp_path / "v.npy"))
        whole = scan(store, 200, batch=37)
        few = SimpleNamespace(count=7, dimension=4, batches=store.batches)  # the rest was written after the count
        grown = scan(few, 200, batch=37)
        assert grown.ids == whole.ids
        np.testing.assert_array_equal(grown.vectors, whole.vectors)


def test_the_out_folder_must_be_writable(tmp_path, embedder):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write to"):
        Journal(tmp_path / "file" / "out", {}, resume=True)


def test_a_text_may_hold_any_separator(tmp_path):
    entry = {"guess": "one\u2028two\u2029three\u0085four\x0bfive\x1csix\r\nseven"}
    Journal(tmp_path, {"of": "a"}, resume=True).append(entry)
    assert Journal(tmp_path, {"of": "a"}, resume=True).entries == [{"settings": {"of": "a"}}, entry]
    Journal(tmp_path, {"of": "a"}, resume=True).append({"done": True})
    assert _finished(tmp_path)[1] == entry
    (tmp_path / "journal.jsonl").write_bytes(b"{}\n\xff\n")
    with pytest.raises(TutorialError, match=r"line 2 of .* is damaged"):
        _finished(tmp_path)


def test_a_disk_that_fills_up_leaves_no_half_line(tmp_path, monkeypatch):
    journal, write, room = Journal(tmp_path, {}, resume=True), os.write, [9, 9, 10**6]

    @contextmanager
    def nearly_full():
        """Writes a few bytes at a time, then none."""

        def part(descriptor, data):
            if not room:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[: room.pop(0)])

        with monkeypatch.context() as patch:
            patch.setattr("tutorial_lib.audit_journal.os.write", part)
            yield

    with nearly_full():
        journal.append({"first": "a line that takes three writes"})
    room[:] = [9, 9]
    with nearly_full(), pytest.raises(StoreError, match="No space left on device"):
        journal.append({"second": "a line that does not fit"})
    journal.append({"third": 3})
    kept = [{"settings": {}}, {"first": "a line that takes three writes"}, {"third": 3}]
    assert journal.entries == Journal(tmp_path, {}, resume=True).entries == kept


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(28, "No space left on device"), StoreError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_sample_that_cannot_be_written_leaves_no_part(tmp_path, embedder, monkeypatch, failure, raised):
    def full(file, **arrays):
        file.write(b"half of a private sample")
        raise failure

    url, out = save(tmp_path, embedder), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("tutorial_lib.audit_journal.np.savez", full)
        with pytest.raises(raised):
            run_audit(url, embedder, out)
    assert [path.name for path in out.iterdir()] == ["journal.jsonl"]
    assert run_audit(url, embedder, out, resume=True).rows == 40


def test_personal_data_outweighs_whole_texts():
    row = {
        "id": "1",
        "cosine": 0.5,
        "queries": 1,
        "same": False,
        "guess": "x",
        "guessed_pii": [],
        "guessed_names": 0,
        "length": 5,
        "exact": False,
        "f1": 10.0,
        "pii": [["date", True]],
        "names": [],
    }
    entries = [
        {"settings": SETTINGS},
        {"scan": {"rows": 1, "skipped": 0, "norm": [1, 1, 1]}},
        {"fit": {"verdict": "yes", "reason": "r", "cosine": 0.9, "random": 0.1}},
        {"rows_done": [row] * 5},
    ]
    assert summarise(entries).verdict.startswith("These vectors leak personal data")
    row |= {"pii": [["date", True]] * 4, "names": [[True] * 3] * 4}
    report = summarise(entries)  # twenty items, which came back together in five texts
    assert report.pii["date"] == report.names["full"]
    assert report.pii["date"] == proportion([True] * 20, texts=[*range(5)] * 4)
    assert report.pii["date"].low == pytest.approx(proportion([True] * 5).low)
    row |= {"pii": [], "names": [], "f1": 60.0}
    report = summarise(entries)
    assert report.verdict.startswith("These vectors leak much of their text")
    assert "token F1, %" in report.to_text()


@pytest.fixture
def parser(embedder, monkeypatch):
    """The command with its models replaced by the ones above; what each was loaded with is in `loaded`."""
    loaded = {}

    def loader(kind, model):
        def load(name, **options):
            loaded[kind] = (name, *options.values())
            return model

        return SimpleNamespace(from_pretrained=load)

    modules = {
        "inverter": SimpleNamespace(Inverter=loader("inverter", INVERTER)),
        "corrector": SimpleNamespace(Corrector=loader("corrector", INVERTER)),
        "embedder": SimpleNamespace(Embedder=loader("embedder", embedder)),
        "search": SimpleNamespace(invert=Lookup(embedder)),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"tutorial_lib.{name}", module)
    parser = argparse.ArgumentParser()
    parser.loaded = loaded
    add_parser(parser.add_subparsers())
    return parser


def test_models_follow_the_embedder_to_its_device(tmp_path, embedder):
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        config = INVERTER.config

        def to(self, device):
            self.moved = device
            return self

    embedder.device, model = torch.device("meta"), Model()
    audit(save(tmp_path, embedder), embedder, model, model, out=tmp_path / "out", sample=4, invert=Lookup(embedder))
    assert model.moved == torch.device("meta")


def test_processes_that_were_launched_together_share_the_sample(tmp_path, embedder, parser, monkeypatch, capsys):
    whole = run_audit(save(tmp_path, embedder), embedder, tmp_path / "whole", sample=40)
    command = ["audit", save(tmp_path, embedder), "--sample", "40", "--steps", "3", "--out", str(tmp_path / "out")]
    for rank in (0, 1, 2):
        for name, value in {"WORLD_SIZE": 3, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        assert run(parser.parse_args(command)) == 0
        said = capsys.readouterr().out
        assert bool(said) == (rank == 2)  # whoever finishes last has all the shards
        assert (tmp_path / "out" / "report.json").exists() == (rank == 2)
    merged = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (merged["rows"], merged["exact"]["value"]) == (40, whole.exact.value)
    assert merged["settings"]["shard"] == "all 3"
    with pytest.raises(TutorialError, match="given to 3 processes"):
        run(parser.parse_args([*command, "--shard", "1/2"]))


class Failures:
    """Stores that cannot be audited: each makes its address, and ends in the sentence beside it."""

    @staticmethod
    def parquet(folder, rows):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"vector": pa.array(rows, type=pa.list_(pa.float32()))}), folder / "s.parquet")
        return f"parquet:{folder}/s.parquet"

    def missing(self, folder, rows):
        return f"parquet:{folder}/nowhere.parquet"

    def vanished_table(self, folder, rows):
        lancedb = pytest.importorskip("lancedb")
        lancedb.connect(folder / "db").create_table("notes", [{"vector": np.float32(row)} for row in rows])
        shutil.rmtree(folder / "db" / "notes.lance" / "data")
        return f"lancedb:{folder}/db#notes"

    def mixed(self, folder, rows):
        return self.parquet(folder, [*rows, rows[0][:-1]])

    def not_finite(self, folder, rows):
        return self.parquet(folder, [[float("nan")] * D, None, [0.0] * D])

    def no_server(self, folder, rows):
        pytest.importorskip("psycopg")
        return "postgresql://reader:hunter2@127.0.0.1:9/app#notes"

    def no_vectors(self, folder, rows):
        with sqlite3.connect(folder / "s.db") as db:
            db.execute("create table notes (id integer, body text)")
        return f"sqlite:{folder}/s.db#notes"

    def cut_short(self, folder, rows):
        np.save(folder / "s.npy", np.float32(rows))
        whole = (folder / "s.npy").read_bytes()
        (folder / "s.npy").write_bytes(whole[: len(whole) // 2])
        return f"npy:{folder}/s.npy"

    def unreadable(self, folder, rows):
        np.save(folder / "s.npy", np.float32(rows))
        (folder / "s.npy").chmod(0)
        if os.access(folder / "s.npy", os.R_OK):
            pytest.skip("this user may read every file")
        return f"npy:{folder}/s.npy"


@pytest.mark.parametrize(
    ("failure", "words"),
    {
        "missing": "no parquet store at",
        "vanished_table": "could not be opened",
        "mixed": f"mixes dimensions: row '80' has {D - 1} values",
        "not_finite": "has no usable vector",
        "no_server": "no PostgreSQL database answered",
        "no_vectors": "has no BLOB column",
        "cut_short": "not a readable .npy file",
        "unreadable": "ask its owner for read permission",
    }.items(),
)
def test_a_store_that_cannot_be_audited_ends_in_one_sentence(tmp_path, embedder, parser, failure, words):
    url = getattr(Failures(), failure)(tmp_path, embedder.encode(TEXTS).tolist())
    with pytest.raises(TutorialError) as refused:
        run(parser.parse_args(["audit", url, "--sample", "5", "--steps", "1", "--out", str(tmp_path / "out")]))
    said = str(refused.value)
    assert words in said
    assert "\n" not in said
    assert len(said) < 500
    assert "hunter2" not in said
    if (tmp_path / "out").exists():  # nothing half-done passes for a report
        assert not (tmp_path / "out" / "report.json").exists()


def test_command_line(tmp_path, embedder, parser, capsys):
    (tmp_path / "names").write_text("ann lee1\n\nann lee2\n")
    common = [save(tmp_path, embedder), "--sample", "20", "--steps", "2", "--out", str(tmp_path / "out")]
    arguments = parser.parse_args(["audit", *common, "--names", str(tmp_path / "names")])
    assert arguments.run(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("These vectors are about as private")
    assert "inverted 20 of 20" in err
    arguments = parser.parse_args(["audit", *common[:-1], str(tmp_path / "json"), "--json"])
    assert run(arguments) == 0
    assert strict(capsys.readouterr().out)["rows"] == 20
    arguments = parser.parse_args(
        ["audit", "--merge", str(tmp_path / "json"), "--out", str(tmp_path / "merged")]
    )
    assert run(arguments) == 0
    for wrong, words in ((["audit"], "no store"), (["audit", *common, "--shard", "two"], "not of the form")):
        arguments = parser.parse_args(wrong)
        with pytest.raises(TutorialError, match=words):
            run(arguments)
    arguments = parser.parse_args(["audit", *common, "--names", str(tmp_path / "gone")])
    with pytest.raises(TutorialError, match="cannot be read"):
        arguments.run(arguments)
    (tmp_path / "latin").write_bytes("josé\n".encode("latin-1"))
    arguments = parser.parse_args(["audit", *common, "--names", str(tmp_path / "latin")])
    with pytest.raises(TutorialError, match="are not UTF-8 text: convert the file first"):
        arguments.run(arguments)


def test_options_reach_the_models(tmp_path, embedder, parser, monkeypatch):
    hushed = []
    monkeypatch.setattr("tutorial_lib.audit.hush", lambda: hushed.append(True))
    common = ["audit", save(tmp_path, embedder), "--sample", "4", "--out", str(tmp_path / "out")]
    assert run(parser.parse_args([*common, "--steps", "0", "--inverter", "mine", "--device", "meta"])) == 0
    assert parser.loaded == {"embedder": ("all-MiniLM-L6-v2", "meta"), "inverter": ("mine",)}  # and no corrector
    assert hushed == [True]
    (tmp_path / "people").write_text("ann\nlee1\n")
    given = []
    monkeypatch.setattr("tutorial_lib.word_lists.whole_words", lambda _: ["sun"])
    monkeypatch.setattr("tutorial_lib.audit.audit", lambda *_, words, **__: given.append(words))
    _run(parser.parse_args([*common, "--words", str(tmp_path / "people")]))
    _run(parser.parse_args(common))
    assert given == [["ann", "lee1", "sun"], []]
    pair = tmp_path / "run" / "inverter", tmp_path / "run" / "corrector"
    for folder in pair:
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    _run(parser.parse_args([*common, "--inverter", str(pair[0])]))
    assert parser.loaded["corrector"] == (str(pair[1]),)
    for asked, taken in {"cuda": "cuda:1", "cuda:0": "cuda:0", "cpu": "cpu"}.items():  # in the second of two processes
        monkeypatch.setattr("tutorial_lib.audit._launched", lambda: (2, 2, "cuda:1"))
        _run(parser.parse_args([*common, "--device", asked]))
        assert parser.loaded["embedder"] == ("all-MiniLM-L6-v2", taken)
    embedder.closed = True
    parser.loaded.clear()
    with pytest.raises(TutorialError, match="is a table"):
        run(parser.parse_args(common))
    assert set(parser.loaded) == {"embedder"}


@pytest.mark.parametrize(
    ("option", "value"),
    [(f"--{name}", "-1") for name in ("steps", "edits", "variants", "seed")]
    + [(f"--{name}", "0") for name in ("sample", "beam", "ahead")],
)
def test_options_out_of_range_are_refused(parser, capsys, option, value):
    with pytest.raises(SystemExit):
        parser.parse_args(["audit", "v.npy", f"{option}={value}"])
    assert f"{value!r} is not a whole number of at least" in capsys.readouterr().err


def test_a_name_that_nobody_could_bear_is_refused_before_the_folder_is_touched(tmp_path, embedder):
    with pytest.raises(TextError, match="'---' has no letters"):
        run_audit(save(tmp_path, embedder), embedder, tmp_path / "out", names=["李伟", "---"])
    assert not (tmp_path / "out").exists()
