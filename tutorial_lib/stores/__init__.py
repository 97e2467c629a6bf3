"""Vectors out of real stores, read-only and in batches, chosen by URL (chapter 4).

    with open_store("lancedb:///data/notes#chunks") as store:
        print(store.dimension, store.count, store.quantisation)
        for ids, vectors, texts, end, skipped in store.batches(1024):   # float32 [b, d]
            ...

| URL | what it reads |
| --- | --- |
| `lancedb:///folder#table` | LanceDB table: float32, float16, or uint8 as packed bits |
| `chroma:///folder#collection` | Chroma persistent client |
| `qdrant:///folder#collection` | Qdrant local mode |
| `qdrant://host:6333#collection`, `qdrant+https://...` | Qdrant server (key in `QDRANT_API_KEY`) |
| `postgresql://user:password@host/database#table` | pgvector `vector`, `halfvec`, `bit`, or `real[]` |
| `sqlite:///file.db#table` | sqlite-vec `vec0` tables, or a BLOB column of an ordinary table |
| `faiss:///file.faiss` | FAISS index file: flat, scalar, product, IVF, HNSW, binary |
| `parquet:///file.parquet` | Parquet, any list column of numbers |
| `npy:///file.npy` | a NumPy matrix: float32, float16, float64, int8, or uint8 as packed bits |

`scheme:relative/path` is relative to the working directory; a bare path that ends in `.npy`, `.parquet`
or `.faiss` needs no scheme.  Options go before the `#`: `?column=` the vectors, `text=` the text beside them
(`text=` alone: ignore it), `id=` the row's name, `bitorder=big|little` for packed bits,
`dtype=float32|float16|int8|bit` for a plain BLOB column.  The table may be left out where there is only one.
A password can stay out of the URL: PostgreSQL also reads `PGPASSWORD` and `~/.pgpass`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import PurePath

from ..errors import StoreError, TutorialError
from .base import Batch, Quantisation, Store, StoreURL, first_line, parse_url

__all__ = ["Batch", "Quantisation", "Store", "StoreURL", "open_store", "parse_url"]

# scheme -> (module, class): each engine's package is imported only when one of its stores is opened.
READERS = {
    "lancedb": ("embedded", "LanceStore"),
    "chroma": ("embedded", "ChromaStore"),
    "sqlite": ("embedded", "SQLiteStore"),
    "qdrant": ("servers", "qdrant_store"),
    "postgresql": ("servers", "PostgresStore"),
    "postgres": ("servers", "PostgresStore"),
    "faiss": ("files", "faiss_store"),
    "parquet": ("files", "ParquetStore"),
    "npy": ("files", "NpyStore"),
}
SUFFIXES = {".npy": "npy", ".parquet": "parquet", ".faiss": "faiss"}


def open_store(url: str) -> Store:
    """Open the vectors at `url` (grammar in this module's docstring) for reading; nothing is ever written.

    Raises StoreError for an unknown scheme, a store that is not there, wrong credentials, a table that
    holds no vectors, or a missing package; VectorError where the vectors themselves cannot be used.
    """
    suffix = PurePath(url).suffix
    if suffix in SUFFIXES and url.partition(":")[0] not in READERS and os.path.isfile(os.path.expanduser(url)):
        parsed = StoreURL(SUFFIXES[suffix], url, "")  # a file's own name: its %, ? and # mean themselves
    else:
        parsed = parse_url(url)
        if not parsed.scheme and PurePath(parsed.path).suffix in SUFFIXES:
            parsed = parse_url(SUFFIXES[PurePath(parsed.path).suffix] + ":" + url)
    if parsed.scheme not in READERS:
        given = f"scheme {parsed.scheme!r}" if parsed.scheme else f"{url!r} without a scheme"
        raise StoreError(
            f"{given} is unknown: a store's URL starts with {', '.join(s + ':' for s in READERS)}"
        )
    module, name = READERS[parsed.scheme]
    reader = getattr(importlib.import_module(f".{module}", __name__), name)
    try:
        store: Store = reader(parsed)
    except TutorialError:
        raise
    except Exception as error:  # a damaged store makes its engine raise a class of its own
        raise StoreError(f"{parsed} could not be opened: {first_line(error)}") from error
    if store.count == 0:
        store.close()
        raise StoreError(f"{store.url} is empty: there is no vector to read")
    return store
