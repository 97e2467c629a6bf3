"""Vectors that come with their texts: an embedder behind an API, or nothing but a table of both.

    embedder = open_embedder("my_embedder.py")        # a file that defines embed(texts) -> [n, d]
    embedder = open_embedder("parquet:vectors.parquet")  # columns text and vector, nobody left to ask

``my_embedder.py`` may also set ``NAME`` (what weights are named after), ``TOKENIZER`` (whose word pieces texts are
written in; default: all-MiniLM-L6-v2's, uncased) and ``MAX_TOKENS``. Whatever ``embed`` returned is kept in
``my_embedder.vectors/`` as Parquet, a text once, so a text is paid for once: a resumed run, another run and an
evaluation find it there. *Train your own* shows both.

Such an embedder is a black box: it has no gradient, so correctors are trained without slopes. With a table alone only
an inverter can be trained, since a corrector asks for its guesses' vectors.
"""

from __future__ import annotations

import atexit
import importlib.util
import re
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from tqdm.auto import tqdm

from tutorial_lib.embedder import _PROGRESS_FROM, DEFAULT_EMBEDDER, Embedder, canonical_name
from tutorial_lib.errors import CheckpointError, CorpusError, TextError, TutorialError, VectorError
from tutorial_lib.training_data import Windows

if TYPE_CHECKING:
    from tutorial_lib.training import TrainConfig

Embed = Callable[[list[str]], Any]  # n texts -> [n, d]
_VECTORS = ("vector", "embedding")  # names of the column of vectors in a table
_AT_ONCE = 256  # texts per call of embed
_KEEP_AFTER = 4096  # new vectors held in memory at most before they are written
_KEEP_SECONDS = 60.0  # and for so long at most
_PART = re.compile(r"([0-9]{6,})(?:-[0-9a-f]{32})?\.parquet")  # our files of vectors; older ones have a number alone


def is_cached(name: str) -> bool:
    """Does this embedder's name stand for a Python file or a table of vectors?"""
    return name.endswith(".py") or name.startswith("parquet:")


def open_embedder(name: str, *, device: str | None = None) -> CachedEmbedder:
    """The embedder that a Python file defines (``x.py``), or a table of texts and vectors (``parquet:FILE``).

    Raises :class:`CheckpointError` when the file is missing or defines no ``embed``, :class:`CorpusError` for a table
    without the columns text and vector.
    """
    if name.startswith("parquet:"):
        path = Path(name.removeprefix("parquet:"))
        table = dict(read_table(path))
        if not table:
            raise CorpusError(f"{path} holds no texts; give a table with the columns text and vector.")
        return CachedEmbedder(None, name=path.stem, table=table, device=device)
    path = Path(name)
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{uuid.uuid4().hex}", path)  # the name of no module
    if not path.is_file() or spec is None or spec.loader is None:
        raise CheckpointError(f"There is no file {name}; give a Python file that defines embed(texts).")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own file raises
        del sys.modules[spec.name]
        raise CheckpointError(f"{name} could not be run ({type(error).__name__}: {error}); mend it.") from error
    if not callable(getattr(module, "embed", None)):
        del sys.modules[spec.name]
        raise CheckpointError(f"{name} defines no function embed(texts) that returns an array [n, d]; add one.")
    return CachedEmbedder(
        module.embed,
        name=getattr(module, "NAME", path.stem),
        tokenizer=getattr(module, "TOKENIZER", None),
        max_tokens=getattr(module, "MAX_TOKENS", 512),
        folder=path.with_suffix(".vectors"),
        device=device,
    )


class CachedEmbedder(Embedder):
    """An :class:`Embedder` around a function or a table; asks the function only for texts not met before.

    ``asked`` counts the texts that the function was called with, ``queries`` all that were asked of this object.
    """

    def __init__(
        self,
        embed: Embed | None,
        *,
        name: str,
        tokenizer: str | None = None,
        max_tokens: int = 512,
        folder: Path | None = None,
        table: dict[str, np.ndarray] | None = None,
        device: str | None = None,
    ) -> None:
        self.name = canonical_name(name)
        self.tokenizer = _tokenizer(tokenizer)
        self.max_tokens = max_tokens
        self.queries = self.asked = 0
        self._embed, self._folder = embed, folder
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._known = {} if embed is None else _read_parts(folder)
        self._new: dict[str, np.ndarray] = {}  # not on the disk yet
        self._kept = time.monotonic()
        if embed is None:  # found by what the tokenizer gives back, which is all that a model reads and writes
            texts = self.normalise(list(table or {}))
            self._known = dict(zip(texts, (table or {}).values(), strict=True))
        self._texts = list(self._known)
        sample = next(iter(self._known.values()), None)
        self.dimension = len(sample if sample is not None else self._ask(["a"])[0])
        atexit.register(_flush, weakref.ref(self))

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def closed(self) -> bool:
        """Is there only a table, and nobody to ask for another text's vector?"""
        return self._embed is None

    @property
    def texts(self) -> list[str]:
        """The texts whose vectors were known when this embedder was opened."""
        return self._texts

    @property
    def transformer(self) -> nn.Module:
        """What an API shows of the network: a token table of no columns, which no model starts from."""
        shown = nn.Module()
        shown.get_input_embeddings = lambda: nn.Embedding(len(self.tokenizer), 0)  # type: ignore[assignment]
        return shown

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = _AT_ONCE,
        truncate: bool = False,
        progress: bool | None = None,
    ) -> np.ndarray:
        """As :meth:`Embedder.encode`; ``batch_size`` texts go into each call of the function, and of a text that is
        truncated the beginning alone. A table's texts are found whole.

        Raises :class:`TextError` for a text that a table does not hold, and :class:`TutorialError`, with everything
        embedded so far on the disk, when the function fails.
        """
        self._check_strings(texts)
        if not len(texts):
            return np.zeros((0, self.dimension), dtype=np.float32)
        self._check_lengths(texts, truncate)
        keys = self.normalise(texts) if self.closed else self._beginnings(texts) if truncate else list(texts)
        wanted = [text for text in dict.fromkeys(keys) if text not in self._known]
        if wanted and self.closed:
            raise TextError(
                f"The table {self.name!r} holds no vector of {wanted[0][:40]!r}; with a table alone an inverter can be "
                "trained; everything else needs an embedder to ask (a Python file with embed)."
            )
        if progress is None:
            progress = len(wanted) >= _PROGRESS_FROM
        for start in tqdm(range(0, len(wanted), batch_size), desc="Embedding", disable=not progress):
            self._ask(wanted[start : start + batch_size])
        self.queries += len(texts)
        return np.stack([self._known[text] for text in keys])

    def encode_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[n, t], [n, t] -> [n, dimension]: the ids as the tokenizer writes them, embedded as text."""
        rows = [row[kept.bool()].tolist() for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)]
        texts = [text if text.strip() else "." for text in self.decode(rows)]  # a guess may be empty
        return torch.from_numpy(self.encode(texts, truncate=True, progress=False)).to(ids.device)

    def gradients_of_ids(
        self, ids: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises :class:`TutorialError`, as :meth:`gradients` does."""
        raise TutorialError(f"{self.name} is known by its vectors alone and has no gradient; leave slopes out.")

    def gradients(self, ids: Sequence[Sequence[int]], targets: torch.Tensor) -> list[torch.Tensor]:
        """Raises :class:`TutorialError`: there is no gradient behind an API."""
        raise TutorialError(f"{self.name} is known by its vectors alone and has no gradient; leave slopes out.")

    def flush(self) -> None:
        """Write what is new to the disk, as one more Parquet file."""
        if not self._new or self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((number for number, _ in _parts(self._folder)), default=-1)
        # two processes may come to the same number: the rest of the name is nobody else's
        path = self._folder / f"{number:06}-{uuid.uuid4().hex}.parquet"
        part = path.with_suffix(".part")
        values = pa.array(np.stack(list(self._new.values())).ravel())
        table = pa.table({
            "text": pa.array(list(self._new)),
            "vector": pa.FixedSizeListArray.from_arrays(values, self.dimension),
        })  # fmt: skip
        pq.write_table(table, part)
        part.replace(path)
        self._new, self._kept = {}, time.monotonic()

    def __del__(self) -> None:
        # at the interpreter's end modules are None already; atexit has flushed by then
        if sys is not None and not sys.is_finalizing() and getattr(self, "_new", None):
            self.flush()

    def _beginnings(self, texts: Sequence[str]) -> list[str]:
        """Each text, or as much of its beginning as ``max_tokens`` word pieces write (the whole of it if they write
        nothing)."""
        found = []
        for text, ids in zip(texts, self.token_ids(texts), strict=True):
            beginning = text
            if len(ids) > self.max_tokens and self.tokenizer.is_fast:  # which knows where a piece stands
                options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
                beginning = text[: self.tokenizer(text, **options)["offset_mapping"][self.max_tokens - 1][1]]
            elif len(ids) > self.max_tokens:
                beginning = self.decode([ids[: self.max_tokens]])[0]
            found.append(beginning if beginning.strip() else text)
        return found

    def _ask(self, texts: list[str]) -> np.ndarray:
        """Call the function: n new texts -> float32 [n, d], remembered."""
        assert self._embed is not None
        try:
            vectors = np.asarray(self._embed(texts), dtype=np.float32)
        except Exception as error:  # whatever an API's client raises
            self.flush()
            raise TutorialError(
                f"embed of {self.name} failed ({type(error).__name__}: {error}); what it returned before is kept: "
                "mend it and run the same command again, training with --resume."
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise VectorError(
                f"embed of {self.name} returned shape {vectors.shape} for {len(texts)} texts, or numbers that are not "
                f"finite; an array [{len(texts)}, d] was expected."
            )
        if self._known and vectors.shape[1] != self.dimension:
            raise VectorError(
                f"embed of {self.name} returned {vectors.shape[1]} values a text and those kept before have "
                f"{self.dimension}: it asks another model; delete {self._folder} or mend embed."
            )
        self.asked += len(texts)
        found = dict(zip(texts, vectors, strict=True))
        self._known |= found
        self._new |= found
        self.dimension = vectors.shape[1]
        if len(self._new) >= _KEEP_AFTER or time.monotonic() - self._kept > _KEEP_SECONDS:
            self.flush()
        return vectors


def _flush(reference: weakref.ref[CachedEmbedder]) -> None:
    embedder = reference()
    if embedder is not None:
        embedder.flush()


class TableWindows(Windows):
    """What training draws from a table: its texts, whole, since nobody knows the vectors of their parts."""

    def __init__(self, config: TrainConfig, embedder: CachedEmbedder) -> None:
        rows = [np.asarray(ids, dtype=np.int32) for ids in embedder.token_ids(embedder.texts)]
        self._rows = [row for row in rows if config.min_tokens <= len(row) <= config.max_tokens]
        if not self._rows:
            raise CorpusError(
                f"The table {embedder.name!r} has no text of {config.min_tokens} to {config.max_tokens} word pieces; "
                "widen --min-tokens and --max-tokens."
            )

    def counts(self, size: int) -> np.ndarray:
        """int [size]: occurrences of each embedder id."""
        return np.bincount(np.concatenate(self._rows), minlength=size)

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n texts drawn with replacement: embedder ids int32 [n, longest], padded with 0, and lengths int64 [n]."""
        rows = [self._rows[index] for index in rng.integers(len(self._rows), size=n)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        out = np.zeros((n, int(lengths.max(initial=1))), dtype=np.int32)
        for line, row in zip(out, rows, strict=True):
            line[: len(row)] = row
        return out, lengths


def read_table(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(text, float32 [d]) of a Parquet file with the columns text and vector (or embedding).

    Raises :class:`CorpusError` for a file without them, :class:`VectorError` for a row whose vector is of another
    length than the first, or not finite. Rows without a text or a vector are left out.
    """
    try:
        schema = pq.read_schema(path)
        names = schema.names
        column = next((name for name in _VECTORS if name in names), None)
        if column is None or "text" not in names:
            raise CorpusError(f"{path} has the columns {', '.join(names)}; text and vector are needed.")
        _check_types(path, schema.field("text").type, schema.field(column))
        table = pq.read_table(path, columns=["text", column])
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{path} cannot be read as Parquet ({type(error).__name__}); check the file.") from error
    dimension, start = None, 0
    for batch in table.to_batches():
        vectors = batch.column(1)
        for row, (text, vector) in enumerate(zip(batch.column(0).to_pylist(), vectors, strict=True), start):
            if not text or not vector.is_valid:
                continue
            values = np.asarray(vector.values.to_numpy(zero_copy_only=False), dtype=np.float32)
            dimension = len(values) if dimension is None else dimension
            if len(values) != dimension or not dimension:
                raise VectorError(
                    f"Row {row} of {path} has {len(values)} values where {dimension or 'some'} were expected; give "
                    "vectors of one length."
                )
            if not np.isfinite(values).all():
                raise VectorError(f"Row {row} of {path} holds a vector that is not finite; mend or remove the row.")
            yield text, values
        start += batch.num_rows


def _check_types(path: Path, text: pa.DataType, vectors: pa.Field) -> None:
    if pa.types.is_dictionary(text):
        text = text.value_type
    if not (pa.types.is_string(text) or pa.types.is_large_string(text)):
        raise CorpusError(f"The column text of {path} holds {text}; strings are needed.")
    kind = vectors.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise CorpusError(f"The column {vectors.name} of {path} holds {kind}; lists of numbers are needed.")


def _parts(folder: Path) -> list[tuple[int, Path]]:
    """(number, file) of what :meth:`CachedEmbedder.flush` wrote here, in order; whatever else lies here is not ours."""
    found = ((_PART.fullmatch(path.name), path) for path in folder.glob("*.parquet"))
    return sorted((int(name[1]), path) for name, path in found if name is not None)


def _read_parts(folder: Path | None) -> dict[str, np.ndarray]:
    known: dict[str, np.ndarray] = {}
    for _, path in _parts(folder) if folder is not None else ():
        known |= read_table(path)
    lengths = {len(vector) for vector in known.values()}
    if len(lengths) > 1:
        raise VectorError(
            f"{folder} holds vectors of {' and '.join(map(str, sorted(lengths)))} values, so more than one model wrote "
            "there; keep the files of one."
        )
    return known


def _tokenizer(name: str | None) -> Any:
    from transformers import AutoTokenizer

    from tutorial_lib.embedder import _packaged_minilm

    source = name or str(_packaged_minilm() or f"sentence-transformers/{DEFAULT_EMBEDDER}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # the libraries below raise a dozen types for "not found"
        raise CheckpointError(
            f"The tokenizer {source!r} could not be loaded ({type(error).__name__}); TOKENIZER names one by folder or "
            "Hub name."
        ) from error
    if tokenizer.pad_token_id is None:  # as in GPT-2's; padding is never read, so that any special token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"The tokenizer {source!r} has no token for padding, the end or the unknown; name another as TOKENIZER."
        )
    return tokenizer
