"""Vectors in servers: Qdrant (and its local mode) and PostgreSQL with pgvector."""

from __future__ import annotations

import io
import json
import os
import pickle
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

import numpy as np

from ..errors import StoreError
from .base import (
    LOOKED_AT,
    NO_URL,
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
)


def qdrant_store(url: StoreURL) -> Store:
    """A Qdrant collection: of a server where the URL names a host, of local mode where it names a folder."""
    return QdrantServerStore(url) if url.netloc else QdrantLocalStore(url)


class QdrantStore(Store):
    """What the two Qdrant readers share: named vectors, payload text, and what quantisation means there."""

    _named: str  # "" for the collection's unnamed vector

    def _describe(self, url: StoreURL, vectors: Any, quantised: Any) -> None:
        """vectors: the collection's `vectors` configuration as JSON; quantised: its `quantization_config`."""
        named = vectors if "size" not in vectors else {"": vectors}
        self._named = choose(
            url.options.get("column"), sorted(named), (), "named vector", str(url), "?column="
        )
        chosen = named[self._named]
        if chosen.get("multivector_config"):
            raise StoreError(
                f"{url} keeps several vectors a point (multivector): only one vector a row can be audited"
            )
        self.dimension = chosen["size"]
        kind = chosen.get("datatype") or "float32"
        self.quantisation = {"float32": "float32", "float16": "float16", "uint8": "int8"}[kind]  # type: ignore[assignment]
        self._centre = 128.0 if kind == "uint8" else 0.0  # uint8 has no sign: its middle stands for zero
        self.stored = f"{kind} vectors, distance {chosen.get('distance')}"
        if quantised:
            kinds = ", ".join(k for k, v in quantised.items() if v)
            self.stored += f", kept in full beside their quantised index ({kinds})"

    def _row(self, vector: Any, payload: dict[str, Any] | None) -> tuple[np.ndarray | None, str | None]:
        if isinstance(vector, dict):
            vector = vector.get(self._named)
        text = (payload or {}).get(self._text) if self._text else None
        values = None if vector is None else np.asarray(vector, dtype=np.float32) - self._centre
        return values, None if text is None else str(text)

    def _find_text(self, url: StoreURL, payloads: Iterable[dict[str, Any] | None]) -> None:
        self._text = text_column(url, sorted({key for payload in payloads for key in payload or {}}))
        self.has_text = self._text is not None


class QdrantServerStore(QdrantStore):
    """A collection behind Qdrant's HTTP interface, read by scrolling in the order of point ids."""

    def __init__(self, url: StoreURL, client: Any = None) -> None:
        super().__init__(url)
        if client is None:
            qdrant = optional("qdrant_client")
            # The key stays out of the URL, hence out of shell histories and reports.
            client = qdrant.QdrantClient(
                url=f"{'https' if url.secure else 'http'}://{url.netloc}",
                api_key=os.environ.get("QDRANT_API_KEY"),
                timeout=30,
            )
        self._client = client
        try:
            names = sorted(c.name for c in client.get_collections().collections)
            self._name = choose(url.table, names, (), "collection", str(url), "#collection")
            info = client.get_collection(self._name)
            self.count = client.count(self._name, exact=True).count
            points, _ = client.scroll(self._name, limit=LOOKED_AT, with_vectors=False)
        except StoreError:
            raise
        except Exception as error:  # HTTP and connection errors of several classes
            if "401" in str(error) or "403" in str(error):
                raise StoreError(
                    f"{url} refused the credentials: set QDRANT_API_KEY to a key that may read the collection"
                ) from error
            raise StoreError(f"no Qdrant server answered at {url}: {first_line(error)}") from error
        config = info.config.model_dump()
        self._describe(url, config["params"]["vectors"], config.get("quantization_config"))
        self._find_text(url, [point.payload for point in points])

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        # Qdrant resumes from a point id, not a row number: finished rows are scrolled past without vectors.
        cursor: Any = None
        payload = [self._text] if self._text else False
        while offset > 0:
            points, cursor = self._client.scroll(
                self._name, limit=min(offset, 10_000), offset=cursor, with_vectors=False, with_payload=False
            )
            offset -= len(points)
            if cursor is None:
                return
        while True:
            points, cursor = self._client.scroll(
                self._name, limit=size, offset=cursor, with_vectors=True, with_payload=payload
            )
            rows = [self._row(p.vector, p.payload) for p in points]
            yield (
                [str(p.id) for p in points],
                [r[0] for r in rows],
                [r[1] for r in rows] if self._text else None,
            )
            if cursor is None:
                return

    def close(self) -> None:
        self._client.close()


class _PointsOnly(pickle.Unpickler):
    """Qdrant's local mode pickles its points; a pickle from a stolen store could run code: points only."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("qdrant_client.http.models") and name in {"PointStruct", "SparseVector"}:
            return super().find_class(module, name)
        raise StoreError(
            f"a point of this Qdrant store holds a Python object ({module}.{name}) that is no point: "
            "not opened"
        )


class QdrantLocalStore(QdrantStore):
    """A folder written by `QdrantClient(path=...)`.

    Its SQLite file is read directly: the client would load the whole collection into memory, lock the folder
    against its owner, and unpickle whatever is in it.
    """

    def __init__(self, url: StoreURL) -> None:
        super().__init__(url)
        optional("qdrant_client")
        folder = existing(url, folder=True)
        try:
            with open(os.path.join(folder, "meta.json"), encoding="utf-8") as file:
                collections = json.load(file)["collections"]
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"no Qdrant store at {url.path!r}: the folder has no readable meta.json"
            ) from error
        name = choose(url.table, sorted(collections), (), "collection", str(url), "#collection")
        path = os.path.join(folder, "collection", name, "storage.sqlite")
        if not os.path.isfile(path):
            raise StoreError(
                f"the Qdrant collection {name!r} at {url.path!r} has lost its storage.sqlite: restore "
                "it from a copy"
            )
        self._db = sqlite3.connect(sqlite_uri(path), uri=True)
        try:
            self.count = self._db.execute("select count(*) from points").fetchone()[0]
            first = self._db.execute("select point from points limit ?", (LOOKED_AT,)).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{url} could not be read: {first_line(error)}") from error
        self._describe(url, collections[name]["vectors"], collections[name].get("quantization_config"))
        self._find_text(url, [self._point(blob).payload for (blob,) in first])

    def _point(self, blob: bytes) -> Any:
        return _PointsOnly(io.BytesIO(blob)).load()

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        cursor = self._db.execute("select point from points order by rowid limit -1 offset ?", (offset,))
        while blobs := cursor.fetchmany(size):
            points = [self._point(b[0]) for b in blobs]
            rows = [self._row(p.vector, p.payload) for p in points]
            yield (
                [str(p.id) for p in points],
                [r[0] for r in rows],
                [r[1] for r in rows] if self._text else None,
            )

    def close(self) -> None:
        self._db.close()


# PostgreSQL type -> (quantisation, how to ask for it).  Vectors are cast to real[], which the driver decodes
# in binary without knowing pgvector, so that plain array columns and every version of the extension work.
PG_TYPES = {
    "vector": ("float32", "::real[]"),
    "halfvec": ("float16", "::real[]"),
    "bit": ("binary", "::text"),
    "varbit": ("binary", "::text"),
    "_float4": ("float32", ""),
    "_float8": ("float32", "::real[]"),
}


class PostgresStore(Store):
    """A table with a pgvector column (or `real[]`), read through a server-side cursor, read-only."""

    def __init__(self, url: StoreURL) -> None:
        super().__init__(url)
        self._psycopg = optional("psycopg")
        self._connect(url)
        try:
            self._find_column(url)
        except BaseException:
            self._connection.close()
            raise

    def _connect(self, url: StoreURL) -> None:
        address = f"postgresql://{url.netloc}{quote(url.path)}" + (f"?{url.driver}" if url.driver else "")
        try:
            self._connection = self._psycopg.connect(
                address, connect_timeout=10, options="-c default_transaction_read_only=on"
            )
        except self._psycopg.ProgrammingError:  # its message may repeat the password
            raise StoreError(NO_URL) from None
        except self._psycopg.OperationalError as error:
            reason = first_line(error)
            if any(word in str(error) for word in ("authentication", "password", "no pg_hba", "role ")):
                raise StoreError(
                    f"{url} refused the credentials: check user and password (or PGPASSWORD)"
                ) from error
            raise StoreError(f"no PostgreSQL database answered at {url}: {reason}") from error

    def _find_column(self, url: StoreURL) -> None:
        schema, _, table = url.table.rpartition(".")
        query = (
            "select table_schema, table_name, column_name, udt_name from information_schema.columns "
            "where table_schema not in ('pg_catalog', 'information_schema') order by ordinal_position"
        )
        columns = self._connection.execute(query).fetchall()
        found = [c for c in columns if (not schema or c[0] == schema) and (not table or c[1] == table)]
        if table and not found:
            raise StoreError(f"{url} has no table {url.table!r} that this user may read")
        holders = sorted({f"{c[0]}.{c[1]}" for c in found if c[3] in PG_TYPES})
        schema, table = choose(None, holders, (), "table with vectors", str(url), "#table").split(".", 1)
        here = {c[2]: c[3] for c in found if (c[0], c[1]) == (schema, table)}
        vectors = [n for n, kind in here.items() if kind in PG_TYPES]
        self._column = choose(
            url.options.get("column"), vectors, VECTOR_COLUMNS, "vector column", str(url), "?column="
        )
        kind = here[self._column]
        quantisation, self._cast = PG_TYPES[kind]
        self.quantisation = quantisation  # type: ignore[assignment]
        self._text = text_column(url, list(here))
        self.has_text = self._text is not None
        # ctid, the row's place in the file, names a row of a table without a usual key.
        self._id = choose(url.options.get("id"), [*here, "ctid"], ("id", "ctid"), "column", str(url), "id=")
        sql = self._psycopg.sql
        self._table = sql.Identifier(schema, table)
        try:
            self.count = self._connection.execute(
                sql.SQL("select count(*) from {}").format(self._table)
            ).fetchone()[0]
            first = self._connection.execute(
                sql.SQL("select {}" + self._cast + " from {} where {} is not null limit 1").format(
                    sql.Identifier(self._column), self._table, sql.Identifier(self._column)
                )
            ).fetchone()
        except self._psycopg.Error as error:
            raise StoreError(
                f"table {schema}.{table} of {url} could not be read: {first_line(error)}"
            ) from error
        self.dimension = len(first[0]) if first else 0
        shown = {"_float4": "real[]", "_float8": "double precision[]"}.get(kind, kind)
        self.stored = f"PostgreSQL column {self._column!r} of type {shown}"

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        sql = self._psycopg.sql
        text = sql.SQL(", {}").format(sql.Identifier(self._text)) if self._text else sql.SQL("")
        query = sql.SQL("select {}::text, {}" + self._cast + "{} from {}").format(
            sql.Identifier(self._id), sql.Identifier(self._column), text, self._table
        )
        # Physical order, always from the start of the table: offsets then mean the same rows on a resume.
        self._connection.execute("set synchronize_seqscans = off")
        self._connection.execute("set max_parallel_workers_per_gather = 0")
        with self._connection.cursor(name="tutorial_lib", binary=True) as cursor:
            cursor.itersize = size
            cursor.execute(query)
            if offset:
                cursor.scroll(offset)
            while rows := cursor.fetchmany(size):
                texts = [None if r[2] is None else str(r[2]) for r in rows] if self._text else None
                yield [r[0] for r in rows], [self._decode(r[1]) for r in rows], texts

    def _decode(self, value: Any) -> np.ndarray | None:
        if value is None:
            return None
        if isinstance(value, str):  # bits as "0110"
            return np.frombuffer(value.encode(), dtype=np.uint8).astype(np.float32) * 2 - 97
        return np.asarray(value, dtype=np.float32)

    def close(self) -> None:
        self._connection.close()
