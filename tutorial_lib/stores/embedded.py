"""Vectors in embedded databases: LanceDB, Chroma, SQLite with sqlite-vec.  Opening one changes no file."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import StoreError
from .base import (
    LOOKED_AT,
    VECTOR_COLUMNS,
    Raw,
    Store,
    StoreURL,
    choose,
    existing,
    first_line,
    optional,
    sqlite_uri,
    text_column,
    texts_or_none,
    unpack_bits,
)
from .files import ArrowReader

WINDOW = 4_096  # rows asked of LanceDB at once: 6 MB at 384 float32 values


class LanceStore(Store):
    """A LanceDB table.  An index (IVF_PQ, ...) lies beside the full vectors, which are what is read here."""

    def __init__(self, url: StoreURL) -> None:
        super().__init__(url)
        lancedb = optional("lancedb")
        path = existing(url, folder=True)
        names = sorted(n[: -len(".lance")] for n in os.listdir(path) if n.endswith(".lance"))
        name = choose(url.table, names, (), "table", str(url), "#table")
        try:
            self._table = lancedb.connect(path).open_table(name)
            self.count = self._table.count_rows()
        except Exception as error:  # lancedb raises bare RuntimeError and ValueError
            raise StoreError(f"{url} could not be opened as a LanceDB table: {first_line(error)}") from error
        schema = self._table.schema
        self._arrow = ArrowReader(url, schema, None if "id" in schema.names else "_rowid")
        first = (
            self._table.search()
            .select([self._arrow.column])
            .where(f"`{self._arrow.column}` is not null")
            .limit(1)
            .to_arrow()
            .combine_chunks()
            .to_batches()
        )
        self._arrow.describe(self, first)
        indexes = [str(i.index_type) for i in self._table.list_indices() if self._arrow.column in i.columns]
        if indexes:
            self.stored += f", kept in full beside its {', '.join(indexes)} index"

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        while offset < self.count:
            # One query a window: a single scan reads ahead by up to 2 GB, whatever the batch size.
            query = self._table.search().select(self._arrow.columns).offset(offset).limit(max(size, WINDOW))
            if self._arrow.id == "_rowid":
                query = query.with_row_id(True)
            start = offset
            for batch in query.to_batches(batch_size=size):
                yield self._arrow.raw(self, batch, offset)
                offset += batch.num_rows
            if offset == start:
                return


class ChromaStore(Store):
    """A collection of a Chroma persistent client: float32, always."""

    def __init__(self, url: StoreURL) -> None:
        super().__init__(url)
        chromadb = optional("chromadb")
        path = existing(url, folder=True)
        database = os.path.join(path, "chroma.sqlite3")
        if not os.path.isfile(database) or os.path.islink(database):
            raise StoreError(f"no Chroma store at {url.path!r}: the folder has no chroma.sqlite3 of its own")
        # Chroma writes to its folder even to read it (compaction, locks), so the reader works on a copy that
        # `close` removes: the original keeps its bytes, and may be read-only.  It costs disk, not memory.
        try:
            self._copy = tempfile.TemporaryDirectory(
                prefix="tutorial_lib_chroma_", ignore_cleanup_errors=True
            )
            shutil.copytree(
                path, self._copy.name, ignore=_links, dirs_exist_ok=True, copy_function=shutil.copyfile
            )
        except (OSError, shutil.Error) as error:
            raise StoreError(f"{url} could not be copied for reading: {first_line(error)}") from error
        self._client: Any = None
        try:
            # telemetry off: nothing leaves the machine.
            settings = chromadb.Settings(anonymized_telemetry=False)
            self._client = chromadb.PersistentClient(path=self._copy.name, settings=settings)
            names = sorted(c.name for c in self._client.list_collections())
            self._collection = self._client.get_collection(
                choose(url.table, names, (), "collection", str(url), "#collection")
            )
            self.count = self._collection.count()
            first = self._collection.get(limit=1, include=["embeddings"])
            documents = self._collection.get(limit=LOOKED_AT, include=["documents"])["documents"]
        except StoreError:
            self.close()
            raise
        except Exception as error:  # the Rust core raises its own classes
            self.close()
            raise StoreError(f"{url} could not be opened as a Chroma store: {first_line(error)}") from error
        self.dimension = len(first["embeddings"][0]) if self.count else 0
        self.has_text = url.options.get("text") != "" and any(text is not None for text in documents or ())
        self.stored = "float32 vectors in a Chroma collection"

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        include = ["embeddings", "documents"] if self.has_text else ["embeddings"]
        for start in range(offset, self.count, size):
            rows = self._collection.get(limit=size, offset=start, include=include)
            texts = texts_or_none(rows["documents"]) if self.has_text else None
            yield list(rows["ids"]), np.asarray(rows["embeddings"], dtype=np.float32), texts

    def close(self) -> None:
        getattr(self._client, "close", lambda: None)()  # the first clients of 1.x have none
        self._copy.cleanup()


def _links(folder: str, names: list[str]) -> list[str]:
    """What copytree leaves out: a link in a store that is not ours may lead to the whole disk, or back to itself."""
    return [name for name in names if os.path.islink(os.path.join(folder, name))]


VEC0 = re.compile(r"(\w+)\s+(float|f32|int8|i8|bit)\s*\[\s*(\d+)\s*\]", re.IGNORECASE)
VEC0_TYPES = {"float": "float32", "f32": "float32", "int8": "int8", "i8": "int8", "bit": "bit"}
VEC0_SHADOW = re.compile(r"_(info|chunks|rowids|auxiliary|(vector_chunks|metadatachunks|metadatatext)\d\d)")
BLOB_TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "bit": np.uint8}


class SQLiteStore(Store):
    """A sqlite-vec `vec0` table, or a column of vectors as BLOBs in an ordinary table.

    Read through apsw: many Python builds (macOS, pyenv) compile `sqlite3` without loadable extensions.
    """

    def __init__(self, url: StoreURL) -> None:
        super().__init__(url)
        apsw = optional("apsw")
        path = existing(url)
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        try:
            self._db = apsw.Connection(sqlite_uri(path), flags=flags)
            schema = dict(
                self._db.execute(
                    "select name, sql from sqlite_master"
                    " where type = 'table' and sql is not null and name not glob 'sqlite_*'"
                )
            )
        except apsw.Error as error:
            raise StoreError(
                f"{url.path!r} could not be opened as a SQLite database: {first_line(error)}"
            ) from error
        virtual = {
            n: VEC0.findall(sql)
            for n, sql in schema.items()
            if re.search(r"using\s+vec0", sql, re.IGNORECASE)
        }
        plain = {
            n: self._blobs(n)
            for n in schema
            if n not in virtual and not any(VEC0_SHADOW.fullmatch(n.removeprefix(v)) for v in virtual)
        }
        tables = sorted(virtual) or sorted(n for n, columns in plain.items() if columns)
        if url.table in plain:
            tables = [url.table]
        self._name = choose(url.table, tables, (), "table with vectors", str(url), "#table")
        if self._name in virtual:
            self._vec0(url, virtual[self._name])
        else:
            column = choose(
                url.options.get("column"),
                plain[self._name],
                VECTOR_COLUMNS,
                "BLOB column",
                str(url),
                "?column=",
            )
            self._plain(url, column)
        names = [row[1] for row in self._db.execute(f"pragma table_info({quote(self._name)})")]
        self._text = text_column(url, names)
        self.has_text = self._text is not None
        self._id = choose(
            url.options.get("id"), [*names, "rowid"], ("id", "rowid"), "column", str(url), "id="
        )
        self.count = next(self._db.execute(f"select count(*) from {quote(self._name)}"))[0]

    def _blobs(self, table: str) -> list[str]:
        try:
            columns = list(self._db.execute(f"pragma table_info({quote(table)})"))
        except optional("apsw").SQLError:  # a virtual table of a module that is not loaded here
            return []
        return [c[1] for c in columns if c[2].upper() in {"BLOB", ""} and c[1] != "rowid"]

    def _vec0(self, url: StoreURL, columns: list[tuple[str, str, str]]) -> None:
        """Dimension and type are in the table's own declaration; reading needs the sqlite-vec extension."""
        self._db.enable_load_extension(True)
        self._db.load_extension(optional("sqlite_vec").loadable_path())
        self._db.enable_load_extension(False)  # nothing in the audited file may load code
        names = [c[0] for c in columns]
        self._column = choose(
            url.options.get("column"), names, VECTOR_COLUMNS, "vector column", str(url), "?column="
        )
        _, kind, size = columns[names.index(self._column)]
        self._set(VEC0_TYPES[kind.lower()], int(size), f"sqlite-vec {kind.lower()}[{size}]")

    def _plain(self, url: StoreURL, column: str) -> None:
        self._column = column
        first = next(
            self._db.execute(
                f"select length({quote(column)}) from {quote(self._name)} "
                f"where {quote(column)} is not null limit 1"
            ),
            (0,),
        )
        kind = url.options.get("dtype", "float32")
        if kind not in BLOB_TYPES:
            raise StoreError(f"dtype={kind} is unknown: use {', '.join(BLOB_TYPES)}")
        size = first[0] * 8 if kind == "bit" else first[0] // np.dtype(BLOB_TYPES[kind]).itemsize
        self._set(kind, size, f"BLOB column {column!r} read as {kind}")

    def _set(self, kind: str, dimension: int, stored: str) -> None:
        self._dtype = BLOB_TYPES[kind]
        self.dimension, self.stored = dimension, stored
        self.quantisation = "binary" if kind == "bit" else kind  # type: ignore[assignment]

    def _vector(self, blob: bytes | None) -> np.ndarray | None:
        if blob is None:
            return None
        if len(blob) % np.dtype(self._dtype).itemsize:
            raise StoreError(
                f"{self.url}: a BLOB of {len(blob)} bytes is no {np.dtype(self._dtype)} vector; say dtype="
            )
        values = np.frombuffer(blob, dtype=self._dtype)
        if self.quantisation == "binary":
            return unpack_bits(values[None], len(values) * 8, self._url.options.get("bitorder", "little"))[0]
        return values.astype(np.float32)

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        columns = ", ".join(quote(c) for c in (self._id, self._column, *([self._text] if self._text else [])))
        cursor: Any = self._db.execute(
            f"select {columns} from {quote(self._name)} limit -1 offset ?", (offset,)
        )
        while rows := [row for _, row in zip(range(size), cursor, strict=False)]:
            texts = texts_or_none([r[2] for r in rows]) if self._text else None
            yield [str(r[0]) for r in rows], [self._vector(r[1]) for r in rows], texts

    def close(self) -> None:
        self._db.close()


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
