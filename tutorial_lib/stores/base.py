"""What every store has in common: the URL, the batch, the checks on each row.

    parse_url(url)     -> StoreURL   scheme, path or server, table, options; `str()` hides the password
    Store              one vector column of one table: `.dimension`, `.count`, `.quantisation`, `.batches()`
    Batch              row ids, float32 vectors [b, d], texts if the store keeps them, offset to resume from
    unpack_bits        packed bits -> float32 signs, as binary stores keep them

A subclass yields what its engine stores (`_read`); the checks that make a bad row one clear sentence are
here, once.  Chapter 4 reads a stolen store through this interface.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import numpy as np

from ..errors import StoreError, VectorError

Quantisation = Literal["float32", "float16", "int8", "binary", "pq"]

# Columns that hold the text beside the vector under the names the common frameworks give them.
TEXT_COLUMNS = ("text", "document", "content", "chunk", "page_content", "body", "passage")
VECTOR_COLUMNS = ("vector", "embedding", "embeddings", "vec", "emb")

# `column`: the vectors; `text`: the text beside them; `id`: the row's name; `bitorder`: how bits are packed;
# `dtype`: what the bytes of a plain BLOB column are.
OPTIONS = {"column", "text", "id", "bitorder", "dtype"}

NO_URL = (
    "the store's URL cannot be taken apart: write signs such as % [ ] / ? # @ in a user or password as "
    "%25 %5B %5D %2F %3F %23 %40"
)


@dataclass(frozen=True)
class StoreURL:
    """A store's address, taken apart: `scheme:path#table?` in RFC 3986 order, see `open_store`."""

    scheme: str  # lower case, without "+https"
    path: str  # file or directory; database name for a server
    table: str  # "" when the URL names none
    options: dict[str, str] = field(default_factory=dict)
    netloc: str = ""  # user:password@host:port of a server, "" for a file
    secure: bool = False  # "+https" was asked for
    driver: str = ""  # options of a server's own driver (sslmode=...), as a query string

    def __str__(self) -> str:
        host = self.netloc
        if "@" in host:
            user, _, rest = host.rpartition("@")
            host = user.split(":")[0] + ":***@" + rest if ":" in user else host
        where = f"//{host}{self.path}" if host or self.path.startswith("/") else self.path
        query = "?" + "&".join(f"{k}={v}" for k, v in sorted(self.options.items())) if self.options else ""
        return f"{self.scheme}{'+https' if self.secure else ''}:{where}{query}" + (
            f"#{self.table}" if self.table else ""
        )


def parse_url(url: str) -> StoreURL:
    """Take a store's URL apart.  Raises StoreError on an option that does not exist, or where it is no URL."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its message, and the URL, may hold a password: neither is repeated
        raise StoreError(NO_URL) from None
    port = parts.netloc.partition(":")[2]
    rest = parts.path + parts.query + parts.fragment
    if "@" not in parts.netloc and "@" in rest and port and not port.isdigit():  # "user:pa" of user:pa/ss@host
        raise StoreError(NO_URL)
    scheme, _, plus = parts.scheme.lower().partition("+")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    # A server's URL may carry the driver's own options (sslmode, ...), which are passed on untouched.
    options = {k: v for k, v in pairs if k in OPTIONS}
    driver = urlencode([(k, v) for k, v in pairs if k not in OPTIONS])
    unknown = sorted({k for k, _ in pairs} - OPTIONS)
    if unknown and scheme not in {"postgresql", "postgres"}:
        raise StoreError(f"store option {unknown[0]!r} is unknown: use {', '.join(sorted(OPTIONS))}")
    return StoreURL(
        scheme, unquote(parts.path), unquote(parts.fragment), options, parts.netloc, plus == "https", driver
    )


class Batch(NamedTuple):
    """Consecutive rows of a store.

    ids: the store's own row names; vectors: float32 [b, d], decoded from what is stored, not normalised;
    texts: the text column, None where the store keeps no text; end: offset that resumes after this batch;
    skipped: rows left out because they held no finite vector (only with `bad_rows="skip"`).
    """

    ids: list[str]
    vectors: np.ndarray
    texts: list[str | None] | None
    end: int
    skipped: int = 0


# What `_read` hands over: ids, vectors as [b, d] or one array (or None) per row, texts or None.
Raw = tuple[list[str], "np.ndarray | Sequence[np.ndarray | None]", "list[str | None] | None"]


class Store(ABC):
    """One vector column, read-only.  Use as a context manager; made by `open_store`.

    dimension: values per vector; count: rows; quantisation: how each value is stored; stored: one sentence
    for a report, saying what a thief of this store holds; has_text: whether the text lies beside the vector.
    """

    dimension: int
    count: int
    quantisation: Quantisation = "float32"
    stored: str = ""
    has_text: bool = False

    def __init__(self, url: StoreURL) -> None:
        self._url = url

    @property
    def url(self) -> str:
        """The address, password hidden: safe to print in a report."""
        return str(self._url)

    @abstractmethod
    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        """Yield rows from `offset` on in the store's own stable order, about `size` at a time."""

    def close(self) -> None:  # noqa: B027 - a file needs no closing
        """Release files and connections."""

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def batches(
        self, size: int = 1024, *, offset: int = 0, bad_rows: Literal["raise", "skip"] = "raise"
    ) -> Iterator[Batch]:
        """Yield `Batch`es from row `offset` on; memory holds one batch, whatever the size of the store.

        bad_rows: a row without a finite vector (NaN, infinity, NULL) raises VectorError, or is left out and
        counted.  Vectors of mixed dimension always raise: no embedder fits such a column.
        Raises StoreError when the store disappears while it is read.
        """
        if size < 1 or offset < 0:
            raise StoreError(
                f"batches of {size} rows from row {offset} were asked for: use a size >= 1 and an offset >= 0"
            )
        rows = self._read(size, offset)
        while True:
            try:
                raw = next(rows, None)
            except (StoreError, VectorError):
                raise
            except Exception as error:  # engines raise their own classes; the reader needs one sentence
                raise StoreError(
                    f"{self.url} could not be read after row {offset}: {first_line(error)}"
                ) from error
            if raw is None:
                return
            ids, vectors, texts = raw
            if not ids:
                continue
            matrix = self._stack(ids, vectors)
            offset += len(ids)
            finite = np.isfinite(matrix).all(axis=1)
            skipped = int((~finite).sum())
            if skipped:
                if bad_rows == "raise":
                    row = ids[int(np.flatnonzero(~finite)[0])]
                    raise VectorError(
                        f"row {row!r} of {self.url} holds no finite vector (NaN, infinity or NULL): "
                        'repair or delete it, or read with bad_rows="skip"'
                    )
                keep = np.flatnonzero(finite)
                ids, matrix = [ids[i] for i in keep], matrix[keep]
                texts = [texts[i] for i in keep] if texts is not None else None
            yield Batch(ids, matrix, texts, offset, skipped)

    def _stack(self, ids: list[str], vectors: np.ndarray | Sequence[np.ndarray | None]) -> np.ndarray:
        """Rows -> float32 [b, d]; a missing row becomes NaN; a row of another length raises VectorError."""
        if isinstance(vectors, np.ndarray) and vectors.ndim == 2 and vectors.shape[1] == self.dimension:
            return np.ascontiguousarray(vectors, dtype=np.float32)
        out = np.full((len(ids), self.dimension), np.nan, dtype=np.float32)
        for i, vector in enumerate(vectors):
            if vector is None:
                continue
            if len(vector) != self.dimension:
                raise VectorError(
                    f"{self.url} mixes dimensions: row {ids[i]!r} has {len(vector)} values where the "
                    "first row has "
                    f"{self.dimension}; audit one embedder's rows at a time (its own table, or column=...)"
                )
            out[i] = vector
        return out


def optional(module: str) -> ModuleType:
    """Import an engine's package, or say in one sentence how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StoreError(
            f"reading this store needs the package {module.split('.')[0]!r}: pip install "
            "'tutorial_lib[stores]'"
        ) from error


def existing(url: StoreURL, *, folder: bool = False) -> str:
    """The path of a store that must exist already: opening must never create one."""
    if url.netloc:
        raise StoreError(
            f"{url} names a host {url.netloc!r}: a file is {url.scheme}:///absolute/path or "
            f"{url.scheme}:relative/path"
        )
    path = os.path.expanduser(url.path)
    if not (os.path.isdir(path) if folder else os.path.isfile(path)):
        raise StoreError(
            f"no {url.scheme} store at {url.path!r}: give the path of an existing "
            f"{'directory' if folder else 'file'}"
        )
    if not os.access(path, os.R_OK):
        raise StoreError(f"{url.path!r} cannot be read by this user: ask its owner for read permission")
    return path


def sqlite_uri(path: str) -> str:
    """The URI that opens a SQLite file for reading only.

    Unescaped, a ? or # in the path would end it, and `mode=ro` with it: SQLite would then create a file.  Even a reader
    leaves files beside a database with a write-ahead log, unless told that nobody writes; where there is no log, nobody
    does.
    """
    at = os.path.abspath(path)
    with open(at, "rb") as file:
        logged = file.read(20)[18:] == b"\x02\x02"  # https://www.sqlite.org/fileformat.html, 1.3.3
    unchanging = "&immutable=1" if logged and not os.path.exists(f"{at}-wal") else ""
    return f"file://{quote(at)}?mode=ro{unchanging}"


def choose(
    wanted: str | None, available: Sequence[str], preferred: Sequence[str], what: str, where: str, how: str
) -> str:
    """One of `available`: the wanted one, else a preferred name, else the only one; StoreError otherwise."""
    if wanted:
        if wanted in available:
            return wanted
        raise StoreError(
            f"{where} has no {what} {wanted!r}: it has {', '.join(map(repr, available)) or 'none'}"
        )
    found = [name for name in preferred if name in available]
    if found or len(available) == 1:
        return found[0] if found else available[0]
    if not available:
        raise StoreError(f"{where} has no {what}: nothing in it can be read as vectors")
    raise StoreError(f"{where} has several {what}s ({', '.join(available)}): choose one with {how}")


def text_column(url: StoreURL, available: Sequence[str]) -> str | None:
    """The text beside the vectors: the one asked for, else a usual name, else None."""
    if "text" in url.options:
        wanted = url.options["text"]  # text= (empty) says: ignore the text, audit the vectors alone
        return choose(wanted, available, (), "text column", str(url), "text=") if wanted else None
    return next((name for name in TEXT_COLUMNS if name in available), None)


def unpack_bits(packed: np.ndarray, dimension: int, order: str) -> np.ndarray:
    """Packed bits uint8 [b, ceil(d/8)] -> float32 [b, d] of -1/+1: a sign is all a bit says of a value."""
    if order not in {"big", "little"}:
        raise StoreError(
            f"bitorder={order} is unknown: use big (numpy.packbits) or little (sqlite-vec, FAISS)"
        )
    bits = np.unpackbits(packed, axis=1, count=dimension, bitorder=order)  # type: ignore[call-overload]
    return bits.astype(np.float32) * 2 - 1


def first_line(error: BaseException) -> str:
    """An engine's error message cut to its first line, for the end of a sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


LOOKED_AT = 200  # rows in which a text is looked for: the first may be without one


def texts_or_none(values: Sequence[Any] | None) -> list[str | None] | None:
    """A text column as strings, NULL kept as None."""
    return None if values is None else [None if v is None else str(v) for v in values]
