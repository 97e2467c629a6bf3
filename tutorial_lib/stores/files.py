"""Vectors in files: `.npy` and FAISS indexes (memory-mapped), Parquet (row group by row group).

`arrow_rows` turns an Arrow list column into vectors; LanceDB hands over Arrow batches too and shares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import StoreError, VectorError
from .base import (
    VECTOR_COLUMNS,
    Raw,
    Store,
    StoreURL,
    choose,
    existing,
    first_line,
    optional,
    text_column,
    texts_or_none,
    unpack_bits,
)


class NpyStore(Store):
    """A matrix saved by `numpy.save`: [n, d] numbers, or uint8 [n, d/8] packed bits; rows are numbered."""

    def __init__(self, url: StoreURL) -> None:
        super().__init__(url)
        path = existing(url)
        try:
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)  # a pickle could run code: refused
        except (ValueError, OSError, EOFError) as error:
            raise StoreError(f"{url.path!r} is not a readable .npy file: {first_line(error)}") from error
        if self._array.ndim != 2:
            raise VectorError(
                f"{url.path!r} has shape {self._array.shape}: a store of vectors is a matrix [rows, "
                "dimension]"
            )
        kind = str(self._array.dtype)
        names = {
            "float64": "float32",
            "float32": "float32",
            "float16": "float16",
            "int8": "int8",
            "uint8": "binary",
        }
        if kind not in names:
            raise VectorError(
                f"{url.path!r} holds {kind}: expected float32, float64, float16, int8, or uint8 (packed bits)"
            )
        self.quantisation = names[kind]  # type: ignore[assignment]
        self.count, width = self._array.shape
        self.dimension = width * 8 if kind == "uint8" else width
        self.stored = f"{kind} matrix on disk" + (", eight sign bits to a byte" if kind == "uint8" else "")

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        for start in range(offset, self.count, size):
            rows = np.asarray(self._array[start : start + size])
            if self.quantisation == "binary":
                rows = unpack_bits(rows, self.dimension, self._url.options.get("bitorder", "big"))
            yield [str(start + i) for i in range(len(rows))], rows, None

    def close(self) -> None:
        del self._array


def arrow_type(field: Any, where: str) -> tuple[str, int | None]:
    """(name of the value type, list size or None) of an Arrow list column; StoreError if it is not one."""
    types = optional("pyarrow").types
    kind = field.type
    fixed = types.is_fixed_size_list(kind)
    if not (fixed or types.is_list(kind) or types.is_large_list(kind)):
        raise StoreError(
            f"column {field.name!r} of {where} holds {kind}, not vectors: choose another with column="
        )
    value = str(kind.value_type)
    if value not in {"float", "double", "halffloat", "int8", "uint8"}:
        raise StoreError(
            f"column {field.name!r} of {where} holds lists of {value}: expected float32, float16, int8 "
            "or uint8"
        )
    return value, kind.list_size if fixed else None


def vector_columns(schema: Any) -> list[str]:
    """Names of the Arrow columns that could be vectors: lists of numbers."""
    numbers = ("float", "double", "halffloat", "int8", "uint8")
    return [f.name for f in schema if str(getattr(f.type, "value_type", "")) in numbers]


def arrow_rows(column: Any) -> np.ndarray | list[np.ndarray | None]:
    """An Arrow list array -> [b, d] in one go, or one array per row if there are NULLs or mixed lengths."""
    types = optional("pyarrow").types
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if types.is_fixed_size_list(column.type) and not column.null_count:
        return flat.reshape(len(column), column.type.list_size)
    if not types.is_fixed_size_list(column.type) and not column.null_count:
        lengths = np.diff(column.offsets.to_numpy())
        if len(lengths) and (lengths == lengths[0]).all():
            return flat.reshape(len(column), int(lengths[0]))
    return [None if not v.is_valid else np.asarray(v.as_py(), dtype=np.float32) for v in column]


class ArrowReader:
    """Choice of columns and decoding, shared by Parquet and LanceDB: both hand over Arrow record batches."""

    def __init__(self, url: StoreURL, schema: Any, row_id: str | None = None) -> None:
        self.url = url
        self.column = choose(
            url.options.get("column"),
            vector_columns(schema),
            VECTOR_COLUMNS,
            "vector column",
            str(url),
            "?column=",
        )
        self.value, self.width = arrow_type(schema.field(self.column), str(url))
        self.text = text_column(url, schema.names)
        wanted = url.options.get("id")
        if wanted:
            choose(wanted, schema.names, (), "column", str(url), "id=")
        self.id = wanted or row_id or ("id" if "id" in schema.names else None)
        self.columns = list(
            dict.fromkeys(
                c for c in (self.column, self.text, wanted or ("id" if self.id == "id" else None)) if c
            )
        )

    def describe(self, store: Store, batches: Iterable[Any]) -> None:
        """Fill in dimension and quantisation; lists of no fixed size are as long as the first in `batches`."""
        width = self.width
        if width is None:
            present = (batch.column(self.column).drop_null() for batch in batches)
            width = next((len(column[0]) for column in present if len(column)), 0)
        names = {
            "float": "float32",
            "double": "float32",
            "halffloat": "float16",
            "int8": "int8",
            "uint8": "binary",
        }
        store.quantisation = names[self.value]  # type: ignore[assignment]
        store.dimension = width * 8 if self.value == "uint8" else width
        shown = {"float": "float32", "double": "float64", "halffloat": "float16", "uint8": "packed bits"}.get(
            self.value, self.value
        )
        store.stored = f"{shown} column {self.column!r}"
        store.has_text = self.text is not None

    def raw(self, store: Store, batch: Any, start: int) -> Raw:
        """One Arrow batch -> ids, vectors, texts."""
        vectors = arrow_rows(batch.column(self.column))
        if store.quantisation == "binary":
            if not isinstance(vectors, np.ndarray):
                raise VectorError(
                    f"{self.url} keeps packed bits of mixed length or NULL: delete those rows first"
                )
            vectors = unpack_bits(
                vectors.astype(np.uint8), store.dimension, self.url.options.get("bitorder", "big")
            )
        ids = batch.column(self.id).to_pylist() if self.id else range(start, start + batch.num_rows)
        texts = batch.column(self.text).to_pylist() if self.text else None
        return [str(i) for i in ids], vectors, texts_or_none(texts)


class ParquetStore(Store):
    """A Parquet file with a list column of numbers; memory holds one batch of one row group."""

    def __init__(self, url: StoreURL) -> None:
        super().__init__(url)
        parquet = optional("pyarrow.parquet")
        try:
            self._file = parquet.ParquetFile(existing(url), memory_map=True)
        except (OSError, optional("pyarrow").ArrowInvalid) as error:
            raise StoreError(f"{url.path!r} is not a readable Parquet file: {first_line(error)}") from error
        self._arrow = ArrowReader(url, self._file.schema_arrow)
        self.count = self._file.metadata.num_rows
        self._arrow.describe(self, self._file.iter_batches(64, columns=[self._arrow.column]))

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        start = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if start + rows <= offset:  # a finished row group is not even decompressed
                start += rows
                continue
            for batch in self._file.iter_batches(size, row_groups=[group], columns=self._arrow.columns):
                cut = max(0, offset - start)
                if cut < batch.num_rows:
                    yield self._arrow.raw(self, batch.slice(cut), start + cut)
                start += batch.num_rows

    def close(self) -> None:
        self._file.close()


# Index types whose vectors can be rebuilt.  Others (LSH, graph-only, GPU) abort the whole process inside
# FAISS instead of raising, so the list is checked before anything is asked of the index.
FAISS_TYPES = {
    "IndexFlat": "float32",
    "IndexScalarQuantizer": "sq",
    "IndexPQ": "pq",
    "IndexIVFFlat": "float32",
    "IndexIVFScalarQuantizer": "sq",
    "IndexIVFPQ": "pq",
}


def faiss_store(url: StoreURL) -> Store:
    """A FAISS index file of floats or of bits."""
    faiss = optional("faiss")
    path = existing(url)
    with open(path, "rb") as file:
        binary = file.read(2) == b"IB"  # the four-letter tag of every binary index starts so
    try:
        # Memory-mapped where the index type allows it: FAISS reads the rest of the file into memory.
        index = (
            faiss.read_index_binary(path)
            if binary
            else faiss.read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        )
    except RuntimeError as error:
        raise StoreError(f"{url.path!r} is not a readable FAISS index: {first_line(error)}") from error
    return FaissBinaryStore(url, index) if binary else FaissStore(url, index)


class FaissStore(Store):
    """A float index; what a scalar or product quantiser stores is decoded with the codebook beside it."""

    def __init__(self, url: StoreURL, index: Any) -> None:
        super().__init__(url)
        faiss = optional("faiss")
        self._owner = index  # the downcast views below do not keep it alive
        self._ids: np.ndarray | None = None
        self._index = faiss.downcast_index(index)
        if type(self._index).__name__ in {"IndexIDMap", "IndexIDMap2"}:
            self._ids = faiss.vector_to_array(self._index.id_map)
            self._index = faiss.downcast_index(self._index.index)
        core, notes = self._index, []
        if (
            type(core).__name__ == "IndexPreTransform"
        ):  # rotation or PCA before storage: undone by reconstruct
            notes.append("after a linear transform kept in the same file")
            core = faiss.downcast_index(core.index)
        if type(core).__name__.startswith("IndexHNSW"):
            core = faiss.downcast_index(core.storage)
        name = type(core).__name__
        kind = FAISS_TYPES.get("IndexFlat" if name in {"IndexFlatIP", "IndexFlatL2"} else name)
        if kind is None:
            raise StoreError(
                f"{url.path!r} is a FAISS {name}: supported are flat, scalar, product, IVF, HNSW and "
                "binary indexes"
            )
        if kind == "sq":
            bits = core.sq.bits if hasattr(core.sq, "bits") else 8
            kind = {16: "float16", 8: "int8"}.get(bits, "pq")
            notes.insert(0, f"scalar quantiser, {bits} bits a value, ranges kept in the same file")
        elif kind == "pq":
            notes.insert(
                0,
                f"product quantiser, {core.pq.M} codes of {core.pq.nbits} bits a vector, codebook kept "
                "in the same file",
            )
        self.quantisation = kind  # type: ignore[assignment]
        self.dimension, self.count = self._index.d, self._index.ntotal
        self.stored = f"FAISS {name}" + "".join(f", {n}" for n in notes)
        self._core = core
        self._places: np.ndarray | None = None
        if hasattr(core, "invlists"):
            self._find_rows(url)

    def _find_rows(self, url: StoreURL) -> None:
        """Where an IVF index keeps each row: (list, place in it), in the order of the ids stored beside the vectors.

        Its ids need not be 0..n-1; reconstruct_n assumes so, and gives uninitialised memory for the ids it misses.
        """
        faiss, lists = optional("faiss"), self._core.invlists
        sizes = [lists.list_size(k) for k in range(lists.nlist)]
        stored = [np.zeros(0, dtype=np.int64)]
        for k in np.flatnonzero(sizes):
            pointer = lists.get_ids(int(k))
            stored.append(faiss.rev_swig_ptr(pointer, sizes[k]).copy())
            lists.release_ids(int(k), pointer)
        ids = np.concatenate(stored)
        order = np.argsort(ids, kind="stable")
        within = np.concatenate([np.arange(n) for n in sizes])
        self._places = np.stack([np.repeat(np.arange(len(sizes)), sizes), within], axis=1)[order]
        self.count = len(ids)
        if self._ids is None:
            self._ids = ids[order]
        elif not np.array_equal(ids[order], np.arange(len(self._ids))):
            raise StoreError(
                f"{url.path!r} is a FAISS id map over an IVF index from which rows were removed, so its ids "
                "no longer belong to its vectors: build it anew"
            )

    def _rows(self, start: int, size: int) -> np.ndarray:
        """float32 [size, d]: consecutive rows, decoded."""
        if self._places is None:
            return self._index.reconstruct_n(start, size)
        faiss = optional("faiss")
        rows = np.empty((size, self._core.d), dtype=np.float32)
        for row, (number, place) in zip(rows, self._places[start : start + size].tolist(), strict=True):
            self._core.reconstruct_from_offset(number, place, faiss.swig_ptr(row))
        if type(self._index).__name__ != "IndexPreTransform":
            return rows
        out = np.empty((size, self.dimension), dtype=np.float32)
        self._index.reverse_chain(size, faiss.swig_ptr(rows), faiss.swig_ptr(out))
        return out

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        for start in range(offset, self.count, size):
            rows = self._rows(start, min(size, self.count - start))
            ids = (
                self._ids[start : start + len(rows)]
                if self._ids is not None
                else range(start, start + len(rows))
            )
            yield [str(i) for i in ids], rows, None


class FaissBinaryStore(Store):
    """A flat index of bits (FAISS keeps them in memory: one 32nd of the float vectors)."""

    quantisation = "binary"

    def __init__(self, url: StoreURL, index: Any) -> None:
        super().__init__(url)
        faiss = optional("faiss")
        index = faiss.downcast_IndexBinary(index)
        if type(index).__name__ != "IndexBinaryFlat":
            raise StoreError(
                f"{url.path!r} is a FAISS {type(index).__name__}: among binary indexes only "
                "IndexBinaryFlat is supported"
            )
        self.dimension, self.count = index.d, index.ntotal
        self._codes = faiss.vector_to_array(index.xb).reshape(self.count, self.dimension // 8)
        self.stored = "FAISS IndexBinaryFlat, one bit a value"

    def _read(self, size: int, offset: int) -> Iterator[Raw]:
        order = self._url.options.get("bitorder", "little")  # what faiss.real_to_binary packs
        for start in range(offset, self.count, size):
            rows = self._codes[start : start + size]
            yield [str(start + i) for i in range(len(rows))], unpack_bits(rows, self.dimension, order), None
