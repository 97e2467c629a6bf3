"""What training reads: windows of real text, their embeddings, and guesses of every quality for the
corrector.

Random numbers come from generators that the caller passes, so a resumed run draws what it would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from tutorial_lib.corpora import TokenStream, token_stream
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import CorpusError, TutorialError
from tutorial_lib.modeling import END, PAD, UNKNOWN, fast_dtype
from tutorial_lib.records import synthetic_records

if TYPE_CHECKING:
    from tutorial_lib.corrector import Corrector
    from tutorial_lib.inverter import Inverter
    from tutorial_lib.modeling import VectorToText
    from tutorial_lib.training import TrainConfig

RECORDS = 20_000  # synthetic records to draw from
#: Guesses written and embedded at once: a processor's caches hold the logits of a few hundred, a GPU wants thousands.
_ROWS, _ROWS_ON_CPU = 8192, 256


class Windows:
    """Random windows of training text as embedder ids, the same for the same (seed, step)."""

    def __init__(
        self, config: TrainConfig, embedder: Embedder, split: Literal["train", "validation"] = "train"
    ):
        self.config = config
        self.streams: list[TokenStream] = [token_stream(source, split, embedder) for source in config.corpus]
        # All streams in one row, so that a batch is drawn by a few array operations whatever its size.
        sizes = np.array([len(stream) for stream in self.streams])
        offsets = np.cumsum(sizes) - sizes
        self._ids = np.concatenate([stream.ids for stream in self.streams])
        starts = np.concatenate([stream.starts for stream in self.streams])
        self._ends = np.concatenate([s.ends + offset for s, offset in zip(self.streams, offsets, strict=True)])
        self._starts = np.flatnonzero(starts)
        self._first = np.searchsorted(self._starts, np.append(offsets, sizes.sum()))  # of each stream in _starts
        # [positions + 1]: the last beginning of a word at or before each; a paragraph's end is the next one's beginning
        self._bound = np.append(np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0)), len(starts))
        self._records = np.zeros((0, 0), dtype=np.int32)  # padded with 0
        self._record_lengths = np.zeros(0, dtype=np.int64)
        if config.records:
            made = synthetic_records(RECORDS, split, config.seed, max(config.max_tokens, 6), embedder)
            rows = embedder.token_ids([record.text for record in made])
            rows = [row for row in rows if config.min_tokens <= len(row) <= config.max_tokens]
            if not rows:
                raise CorpusError(
                    f"No synthetic record has {config.min_tokens} to {config.max_tokens} word pieces; give --records 0."
                )
            self._record_lengths = np.array([len(row) for row in rows])
            self._records = np.zeros((len(rows), self._record_lengths.max()), dtype=np.int32)
            for row, ids in zip(self._records, rows, strict=True):
                row[: len(ids)] = ids

    def counts(self, size: int) -> np.ndarray:
        """int [size]: occurrences of each embedder id in the training text."""
        used = np.arange(self._records.shape[1]) < self._record_lengths[:, None]
        return np.bincount(np.concatenate([self._ids, self._records[used]]), minlength=size)

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n windows of ``min_tokens`` to ``max_tokens`` pieces: embedder ids int32 [n, longest], padded with 0, and
        lengths int64 [n]."""
        shortest, longest = self.config.min_tokens, self.config.max_tokens
        from_records = int(rng.binomial(n, self.config.records)) if len(self._records) else 0
        wanted = n - from_records
        begins, lengths = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        for _ in range(100):  # most candidates are taken; the others were cut too short by a paragraph's end
            if len(begins) >= wanted:
                break
            stream = rng.integers(len(self.streams), size=wanted + 16)
            low, high = self._first[stream], self._first[stream + 1]
            begin = self._starts[low + (rng.random(len(stream)) * (high - low)).astype(np.int64)]
            length = np.where(rng.random(len(stream)) < self.config.longest, longest,
                              rng.integers(shortest, longest + 1, size=len(stream)))  # fmt: skip
            length = self._bound[np.minimum(begin + length, self._ends[begin])] - begin
            kept = length >= shortest
            begins, lengths = np.append(begins, begin[kept]), np.append(lengths, length[kept])
        if len(begins) < wanted:
            raise CorpusError(f"{self.config.corpus} has too few runs of {shortest} word pieces to train on.")
        begins, lengths = begins[:wanted], lengths[:wanted]
        chosen = rng.integers(len(self._records), size=from_records) if from_records else np.zeros(0, dtype=np.int64)
        lengths = np.append(self._record_lengths[chosen], lengths)
        out = np.zeros((n, int(lengths.max(initial=1))), dtype=np.int32)
        places = np.arange(out.shape[1])
        width = min(out.shape[1], self._records.shape[1])
        out[:from_records, :width] = self._records[chosen, :width]
        reach = np.minimum(begins[:, None] + places, len(self._ids) - 1)
        out[from_records:] = np.where(places < lengths[from_records:, None], self._ids[reach], 0)
        return out, lengths

    def model_ids(self, rng: np.random.Generator, n: int, model: VectorToText) -> Tensor:
        """:meth:`draw` in a model's vocabulary and on its device: int64 [n, longest + 1], closed by ``END``."""
        ids, lengths = self.draw(rng, n)
        places = np.arange(ids.shape[1] + 1)
        out = np.full((n, len(places)), PAD, dtype=np.int64)
        out[:, :-1] = model._model_ids_of(ids)
        out[places > lengths[:, None]] = PAD
        out[np.arange(n), lengths] = END
        return torch.from_numpy(out).to(model.device)


def embed_model_ids(ids: Tensor, vocabulary: Tensor, embedder: Embedder, start: int | None) -> Tensor:
    """Model ids [n, t] closed by ``END`` -> embeddings [n, d], as if it had read the text."""
    tokens, mask = _embedder_input(ids, vocabulary, start, embedder.closes)
    dtype = fast_dtype(tokens.device)
    with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
        return embedder.encode_ids(tokens, mask).float()


def embed_with_slopes(
    ids: Tensor, target: Tensor, vocabulary: Tensor, embedder: Embedder, start: int | None
) -> tuple[Tensor, Tensor]:
    """:func:`embed_model_ids`, and the slope of the cosine with ``target`` at each token: [n, d], [n, t, width]."""
    tokens, mask = _embedder_input(ids, vocabulary, start, embedder.closes)
    dtype = fast_dtype(tokens.device)
    with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
        embeddings, slopes = embedder.gradients_of_ids(tokens, mask, target)
    slopes = slopes[:, tokens.shape[1] - ids.shape[1] :]
    words = (ids != PAD) & (ids != END)  # the search has no slope for what closes a text
    return embeddings.float(), slopes.float() * words[:, :, None]


def _embedder_input(ids: Tensor, vocabulary: Tensor, start: int | None, closes: bool) -> tuple[Tensor, Tensor]:
    tokens = vocabulary.long()[ids]
    mask = (ids != PAD).long()
    if not closes:  # our end mark closes every text, this embedder's inputs end with their last piece
        mask[ids == END] = 0
    if start is not None:
        tokens = torch.cat([torch.full_like(tokens[:, :1], start), tokens], dim=1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    return tokens, mask


def check_training_vectors(windows: Windows, embedder: Embedder, model: VectorToText, start: int | None) -> None:
    """Raises :class:`TutorialError` if training would see other vectors than an attacker of this embedder meets.

    Training embeds token ids and the search texts. Eight windows that read the same both ways are embedded in both.
    """
    if getattr(embedder, "closed", False):
        return  # a table is asked for its own texts only
    ids = windows.model_ids(np.random.default_rng(0), 64, model)
    rows = model.to_embedder_ids(ids)
    texts = embedder.decode(rows)
    same = [i for i, (row, back) in enumerate(zip(rows, embedder.token_ids(texts), strict=True)) if row == back][:8]
    if not same:
        return
    device = embedder.device
    ours = embed_model_ids(ids[same].to(device), model.vocabulary.to(device), embedder, start)
    theirs = torch.from_numpy(embedder.encode([texts[i] for i in same], progress=False)).to(device)
    cosine = float(torch.nn.functional.cosine_similarity(ours, theirs).min())
    if not cosine > 0.999:
        raise TutorialError(
            f"{embedder.name} gives a text's word pieces another vector than the text (cosine {cosine:.3f}), so that "
            "weights trained on them would fail; write a Python file with embed(texts) around the model and give its "
            "name instead (Train your own shows one)."
        )


def special_ids(embedder: Embedder) -> tuple[list[int], int | None]:
    """Embedder ids of padding, start, end and unknown; and the id its inputs begin with, if any."""
    tokenizer = embedder.tokenizer
    begin = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id
    first = tokenizer("a")["input_ids"][0]
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else pad
    return [pad, begin if begin is not None else pad, end, unknown], begin if first == begin else None


def corrupt(row: np.ndarray, rng: np.random.Generator, vocabulary: int) -> np.ndarray:
    """A worse version of a text: some of replaced, shuffled, dropped, moved tokens, at a random strength."""
    out = row.copy()
    kind = rng.integers(4)
    if kind == 0 or len(out) < 2:  # replace each token with probability u
        hit = rng.random(len(out)) < rng.random()
        out[hit] = rng.integers(UNKNOWN + 1, vocabulary, hit.sum())
    elif kind == 1:  # shuffle within a window of random size
        reach = rng.uniform(1, len(out))
        out = out[np.argsort(np.arange(len(out)) + rng.uniform(0, reach, len(out)), kind="stable")]
    elif kind == 2:  # drop some
        kept = rng.random(len(out)) > rng.uniform(0.1, 0.5)
        out = out[kept] if kept.any() else out[:1]
    else:  # move one run elsewhere
        cut = int(rng.integers(1, len(out)))
        out = np.concatenate([out[cut:], out[:cut]])
    return out


@dataclass
class Guesses:
    """A pool of (text, its embedding, a guess, the guess's embedding), which the corrector rewrites."""

    config: TrainConfig
    windows: Windows
    embedder: Embedder
    inverter: Inverter
    corrector: Corrector
    start: int | None
    state: dict[str, Tensor] = field(default_factory=dict)
    cursor: int = 0  # rows given out since the guesses were last rewritten

    def fill(self, rng: np.random.Generator) -> None:
        """Start the pool with new windows."""
        batches = [self._new(rng, self.config.batch_size) for _ in range(self.config.pool)]
        self.state = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    def next(self) -> dict[str, Tensor]:
        """The next batch: ``labels``, ``target``, ``guess``, ``guess_embedding`` and perhaps ``slope``."""
        begin = self.cursor % len(self.state["labels"])
        rows = slice(begin, begin + self.config.batch_size)
        self.cursor += self.config.batch_size
        # Copies: the pool is rewritten in place while autograd may still hold the batch.
        return {key: value[rows].clone() for key, value in self.state.items() if key != "age"}

    def advance(self, rng: np.random.Generator) -> None:
        """Once the pool was used ``config.reuse`` times, replace every guess: by the corrector's rewriting,
        or a new window's."""
        if self.cursor < self.config.reuse * len(self.state["labels"]):
            return
        self.cursor = 0
        pool = self.state
        solved = (pool["labels"] == pool["guess"]).all(1).cpu().numpy()
        # What resists for long is hopeless rather than instructive, and would crowd out the rest.
        old = pool["age"].cpu().numpy() >= self.config.rewrites
        renew = solved | old | (rng.random(len(solved)) < self.config.fresh)
        # Half the rows greedily, as in use; half sampled, for variety.
        sampled = rng.random(len(solved)) < 0.5
        for temperature in (0.0, 1.0):
            chosen = torch.from_numpy(np.flatnonzero(~renew & (sampled == (temperature > 0))))
            rows = chosen.to(pool["labels"].device)
            if len(rows):
                inputs = [pool[key][rows] for key in ("target", "guess", "guess_embedding")]
                inputs += [pool["slope"][rows]] if "slope" in pool else []
                pool["guess"][rows] = self._written(self.corrector, inputs, temperature)
                pool["age"][rows] += 1
                for key, value in self._feedback(pool["guess"][rows], pool["target"][rows]).items():
                    pool[key][rows] = value
        rows = torch.from_numpy(np.flatnonzero(renew)).to(pool["labels"].device)
        if len(rows):
            for key, value in self._new(rng, len(rows)).items():
                pool[key][rows] = value

    def _new(self, rng: np.random.Generator, n: int) -> dict[str, Tensor]:
        labels = self._pad(self.windows.model_ids(rng, n, self.corrector))
        vocabulary = self.corrector.vocabulary
        parts = [embed_model_ids(ids, vocabulary, self.embedder, self.start) for (ids,) in _in_parts(labels)]
        target = torch.cat(parts)
        guess = self._written(self.inverter, [target], float(rng.random() < 0.5))
        chosen = np.flatnonzero(rng.random(n) < self.config.corrupted)
        texts = labels.cpu().numpy()[chosen]  # one copy from the device and one back, not one a row
        worse = np.full_like(texts, PAD)
        for row, text in zip(worse, texts, strict=True):
            changed = corrupt(text[: int((text == END).argmax())], rng, len(vocabulary))
            row[: len(changed)] = changed
            row[len(changed)] = END
        guess[torch.from_numpy(chosen).to(guess.device)] = torch.from_numpy(worse).to(guess.device)
        age = torch.zeros(n, dtype=torch.long, device=labels.device)
        new = {"labels": labels, "target": target, "guess": guess, "age": age}
        return new | self._feedback(guess, target)

    def _written(self, model: Inverter | Corrector, inputs: list[Tensor], temperature: float) -> Tensor:
        """One text for each row of ``inputs``, as model ids [n, max_tokens + 1]."""
        parts = _in_parts(*inputs)
        return torch.cat([self._pad(model.propose(*part, temperature=temperature).ids[:, 0]) for part in parts])

    def _feedback(self, guess: Tensor, target: Tensor) -> dict[str, Tensor]:
        vocabulary, parts = self.corrector.vocabulary, _in_parts(guess, target)
        if not self.config.slopes:
            found = [embed_model_ids(ids, vocabulary, self.embedder, self.start) for ids, _ in parts]
            return {"guess_embedding": torch.cat(found)}
        both = [embed_with_slopes(ids, of, vocabulary, self.embedder, self.start) for ids, of in parts]
        embeddings, slopes = zip(*both, strict=True)
        return {"guess_embedding": torch.cat(embeddings), "slope": torch.cat(slopes)}

    def _pad(self, ids: Tensor) -> Tensor:
        """[n, t] -> [n, max_tokens + 1], closed by ``END``."""
        width = self.config.max_tokens + 1
        out = torch.full((len(ids), width), PAD, dtype=torch.long, device=ids.device)
        out[:, : min(width, ids.shape[1])] = ids[:, :width]
        unclosed = (out == END).sum(1) == 0
        out[unclosed, -1] = END
        return out


def _in_parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors [n, ...] row by row, as many rows at once as their device takes well."""
    size = _ROWS_ON_CPU if tensors[0].device.type == "cpu" else _ROWS
    return list(zip(*(rows.split(size) for rows in tensors), strict=True))
