"""Train an inverter or a corrector for any embedder: resumable, on a laptop or on several GPUs.

``tutorial-lib train`` calls :func:`train`. A step draws random windows of real text (and some synthetic
records), embeds them, and for the corrector pairs each with a guess: the inverter's, a corruption of the text,
or what the corrector itself wrote last time, so that it learns from its own mistakes. Chapter 2 trains a small
inverter live; *Train your own* walks through a full run.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from tutorial_lib.corpora import TokenStream, token_stream, window_end
from tutorial_lib.corrector import Blind, Corrector, CorrectorConfig
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import CheckpointError, CorpusError, TutorialError
from tutorial_lib.inverter import Inverter, InverterConfig
from tutorial_lib.modeling import (
    END,
    PAD,
    START,
    UNKNOWN,
    VectorToText,
    build_vocabulary,
    fast_dtype,
    small_backbone,
)
from tutorial_lib.records import synthetic_records

CSV_FIELDS = ("step", "seconds", "sequences", "loss", "learning_rate")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on; saved with the checkpoint and compared when it resumes."""

    kind: Literal["inverter", "corrector"]
    output: str  # folder for the checkpoint, the loss curve and the finished weights
    embedder: str = "all-MiniLM-L6-v2"
    corpus: tuple[str, ...] = ("sotu",)  # sources as in corpora.passages, drawn in equal parts
    records: float = 0.15  # share of synthetic records in each batch
    min_tokens: int = 4  # word pieces in the shortest window
    max_tokens: int = 8  # word pieces in the longest window; half of all windows have this length
    max_minutes: float | None = None  # wall clock, over all segments; None: no limit
    max_steps: int | None = None  # optimiser steps, over all segments; None: no limit
    segment_minutes: float | None = None  # stop (resumably) after this long; None: run to the end
    batch_size: int = 256  # sequences per step and process
    learning_rate: float = 4e-3  # peak of AdamW; the schedule is linear warm-up, then linear decay to zero
    matrix_learning_rate: float = 4e-3  # peak of Muon for weight matrices, scaled to AdamW's update size
    optimizer: Literal["adamw", "muon"] = "muon"
    warmup: float = 0.02  # share of the run
    layers: int = 3  # encoder layers, and as many decoder layers
    width: int = 384  # values per token in the backbone
    num_pseudo_tokens: int = 8  # encoder positions each vector becomes
    sampled: int = 2048  # classes drawn for the sampled softmax; 0: full softmax
    seed: int = 0
    inverter: str | None = None  # corrector only: the inverter whose guesses it learns from, and its warm start
    blind: Blind = ""  # corrector only: channels to take away, for the ablation
    fresh: float = 0.3  # corrector only: share of guesses replaced by a new window each time round
    blinded: float = 0.15  # corrector only: share of rows with a channel withheld, so that ablations are fair
    corrupted: float = 0.3  # corrector only: of new windows, the share that starts from a corruption of the text
    checkpoint_minutes: float = 3.0  # time between checkpoints
    whiten_on: int = 8192  # windows from which the whitening is estimated


# ---- data ---------------------------------------------------------------------------------------------------


class Windows:
    """Random windows of training text as embedder ids, the same for the same (seed, step)."""

    def __init__(self, config: TrainConfig, embedder: Embedder, split: Literal["train", "validation"] = "train"):
        self.config = config
        self.streams: list[TokenStream] = [token_stream(source, split, embedder) for source in config.corpus]
        self._starts = [np.flatnonzero(stream.starts) for stream in self.streams]
        self._records: list[list[int]] = []
        if config.records:
            made = synthetic_records(20_000, split, config.seed, max(config.max_tokens, 6), embedder)
            self._records = embedder.token_ids([record.text for record in made])

    def counts(self, size: int) -> np.ndarray:
        """int [size]: occurrences of each embedder id in the training text."""
        parts = [stream.ids for stream in self.streams]
        parts += [np.concatenate([np.asarray(row) for row in self._records])] if self._records else []
        return np.bincount(np.concatenate(parts), minlength=size)

    def sample(self, rng: np.random.Generator, n: int) -> list[np.ndarray]:
        """n windows, ragged, of ``min_tokens`` to ``max_tokens`` embedder ids."""
        rows: list[np.ndarray] = []
        from_records = rng.binomial(n, self.config.records) if self._records else 0
        for index in rng.integers(0, len(self._records), from_records) if from_records else ():
            rows.append(np.asarray(self._records[index]))
        for _ in range(100 * n):
            if len(rows) == n:
                return rows
            which = int(rng.integers(len(self.streams)))
            stream, starts = self.streams[which], self._starts[which]
            start = int(starts[rng.integers(len(starts))])
            longest = self.config.max_tokens
            length = longest if rng.random() < 0.5 else int(rng.integers(self.config.min_tokens, longest + 1))
            end = window_end(stream, start, length)
            if end - start >= min(self.config.min_tokens, length):
                rows.append(stream.ids[start:end])
        raise CorpusError(
            f"{self.config.corpus} has too few runs of {self.config.min_tokens} word pieces to train on."
        )


def embed_model_ids(ids: Tensor, vocabulary: Tensor, embedder: Embedder, start: int | None) -> Tensor:
    """Model ids [n, t] closed by ``END`` -> embeddings [n, d], as if the text had been written and read again."""
    tokens = vocabulary.long()[ids]
    mask = (ids != PAD).long()
    if start is not None:
        tokens = torch.cat([torch.full_like(tokens[:, :1], start), tokens], dim=1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    dtype = fast_dtype(tokens.device)
    with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
        return embedder.encode_ids(tokens, mask).float()


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


# ---- models -------------------------------------------------------------------------------------------------


def build_model(config: TrainConfig, embedder: Embedder, windows: Windows) -> VectorToText:
    """A fresh model, its token table warm-started from the embedder's; a corrector starts from its inverter."""
    if config.kind == "corrector":
        return _corrector_from(config, embedder)
    special, _ = special_ids(embedder)
    vocabulary = build_vocabulary(windows.counts(len(embedder.tokenizer)), special)
    model = Inverter(
        InverterConfig(
            dimension=embedder.dimension,
            num_pseudo_tokens=config.num_pseudo_tokens,
            embedder_name=embedder.name,
            max_tokens=config.max_tokens,
            backbone=small_backbone(len(vocabulary), config.width, config.layers),
        )
    )
    model.vocabulary.copy_(torch.from_numpy(vocabulary))
    table = embedder.transformer.get_input_embeddings().weight.detach().float().cpu()[vocabulary]
    if table.shape[1] == config.width:
        # T5 expects a table of unit variance, MiniLM's is twenty times smaller.
        with torch.no_grad():
            model.backbone.get_input_embeddings().weight.copy_((table - table.mean()) / table.std())
    _fit_whitening(model, config, embedder, windows)
    return model


def _fit_whitening(model: VectorToText, config: TrainConfig, embedder: Embedder, windows: Windows) -> None:
    rng = np.random.default_rng([config.seed, 1])
    _, start = special_ids(embedder)
    device, parts = embedder.device, []
    for _ in range(-(-config.whiten_on // 512)):
        ids = model.to_model_ids([row.tolist() for row in windows.sample(rng, 512)])
        parts.append(embed_model_ids(ids.to(device), model.vocabulary.to(device), embedder, start).cpu())
    vectors = torch.cat(parts).double()
    mean = vectors.mean(0)
    values, basis = torch.linalg.eigh(torch.cov((vectors - mean).T))
    # A floor keeps directions that hold no text (an embedder of low rank) from being blown up.
    scale = values.clamp_min(values.max() * 1e-6).rsqrt()
    model.whiten_mean.copy_(mean.float())
    model.whiten_matrix.copy_((basis * scale).float())


def _corrector_from(config: TrainConfig, embedder: Embedder) -> Corrector:
    if config.inverter is None:
        raise TutorialError("A corrector learns from an inverter's guesses; give --inverter NAME_OR_FOLDER.")
    inverter = Inverter.from_pretrained(config.inverter)
    if inverter.config.embedder_name != embedder.name:
        raise CheckpointError(
            f"The inverter {config.inverter!r} was made for {inverter.config.embedder_name}, not for {embedder.name}."
        )
    fields = {key: value for key, value in inverter.config.to_dict().items() if key in _SHARED_FIELDS}
    model = Corrector(CorrectorConfig(blind=config.blind, **fields))
    known = inverter.state_dict()
    own = model.state_dict()
    start = {key: value for key, value in known.items() if key in own}
    for name in ("1", "2", "3"):
        start |= {
            key.replace("embedding_transform", f"embedding_transform_{name}"): value
            for key, value in known.items()
            if key.startswith("embedding_transform.")
        }
    model.load_state_dict(start, strict=False)
    return model


_SHARED_FIELDS = (
    "dimension", "num_pseudo_tokens", "embedder_name", "max_tokens", "backbone", "whiten", "own_vocabulary",
)  # fmt: skip


def optimizers(model: torch.nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for tables, norms and biases; Muon (Jordan 2024) for the matrices in between, unless ``adamw``."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "shared" not in name and "relative_attention_bias" not in name
        inner = inner and "lm_head" not in name and "embed_tokens" not in name
        (matrices if inner else others).append(parameter)
    if config.optimizer == "adamw":
        matrices, others = [], matrices + others
    adam = torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    if not matrices:
        return [adam]
    muon = torch.optim.Muon(
        matrices, lr=config.matrix_learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, muon]


# ---- guesses for the corrector ------------------------------------------------------------------------------


@dataclass
class Guesses:
    """A pool of (text, its embedding, a guess, the guess's embedding); rows age as the corrector rewrites them."""

    config: TrainConfig
    windows: Windows
    embedder: Embedder
    inverter: Inverter
    corrector: Corrector
    start: int | None
    state: dict[str, Tensor] = field(default_factory=dict)
    cursor: int = 0

    def fill(self, rng: np.random.Generator) -> None:
        """Start the pool: four batches of new windows."""
        batches = [self._new(rng, self.config.batch_size) for _ in range(4)]
        self.state = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    def next(self) -> dict[str, Tensor]:
        """The next batch: ``labels``, ``target``, ``guess``, ``guess_embedding``."""
        b = self.config.batch_size
        self._rows = slice(self.cursor, self.cursor + b)
        self.cursor = (self.cursor + b) % len(self.state["labels"])
        return {key: value[self._rows] for key, value in self.state.items()}

    def advance(self, rng: np.random.Generator) -> None:
        """Replace the guesses just used: by the corrector's own rewriting, or the row by a new window."""
        batch = {key: value[self._rows] for key, value in self.state.items()}
        solved = (batch["labels"] == batch["guess"]).all(1).cpu().numpy()
        renew = solved | (rng.random(len(solved)) < self.config.fresh)
        keep = torch.from_numpy(np.flatnonzero(~renew)).to(batch["labels"].device)
        if len(keep):
            # Half the rounds greedy, as in use; half sampled, for variety.
            proposed = self.corrector.propose(
                batch["target"][keep],
                batch["guess"][keep],
                batch["guess_embedding"][keep],
                temperature=float(rng.random() < 0.5),
            )
            guess = self._pad(proposed.ids[:, 0])
            batch["guess"][keep] = guess
            batch["guess_embedding"][keep] = self._embed(guess)
        new = torch.from_numpy(np.flatnonzero(renew)).to(batch["labels"].device)
        if len(new):
            for key, value in self._new(rng, len(new)).items():
                batch[key][new] = value
        # Slices are views, so the pool itself has changed.

    def _new(self, rng: np.random.Generator, n: int) -> dict[str, Tensor]:
        rows = self.windows.sample(rng, n)
        labels = self._pad(self.corrector.to_model_ids([row.tolist() for row in rows]))
        target = self._embed(labels)
        guess = self._pad(self.inverter.propose(target, temperature=float(rng.random() < 0.5)).ids[:, 0])
        vocabulary = len(self.corrector.vocabulary)
        for row in np.flatnonzero(rng.random(n) < self.config.corrupted):
            text = labels[row].cpu().numpy()
            worse = corrupt(text[: int((text == END).argmax())], rng, vocabulary)
            guess[row] = PAD
            guess[row, : len(worse)] = torch.from_numpy(worse).to(guess.device)
            guess[row, len(worse)] = END
        return {"labels": labels, "target": target, "guess": guess, "guess_embedding": self._embed(guess)}

    def _pad(self, ids: Tensor) -> Tensor:
        """[n, t] -> [n, max_tokens + 1], closed by ``END``."""
        width = self.config.max_tokens + 1
        out = torch.full((len(ids), width), PAD, dtype=torch.long, device=ids.device)
        out[:, : min(width, ids.shape[1])] = ids[:, :width]
        unclosed = (out == END).sum(1) == 0
        out[unclosed, -1] = END
        return out

    def _embed(self, ids: Tensor) -> Tensor:
        return embed_model_ids(ids, self.corrector.vocabulary, self.embedder, self.start)


# ---- the loop -----------------------------------------------------------------------------------------------


def train(config: TrainConfig, resume: bool = False, progress: bool = True) -> Path:
    """Train, or resume, and write the finished weights; returns their folder.

    A checkpoint every ``checkpoint_minutes`` replaces the last one in a single rename, so a kill at any moment
    loses minutes at most; a run limited by ``max_steps`` and resumed follows the same loss curve as one left
    alone. Raises :class:`TutorialError` when there is no limit, the folder already holds another run, or the disk is
    full (the last checkpoint stays).
    """
    if config.max_minutes is None and config.max_steps is None:
        raise TutorialError("Training needs an end: give --max-minutes or --max-steps.")
    accelerator = Accelerator(mixed_precision=_precision())
    torch.manual_seed(config.seed + accelerator.process_index)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    embedder = Embedder.from_pretrained(config.embedder, device=str(accelerator.device))
    windows = Windows(config, embedder)
    model = build_model(config, embedder, windows)
    run = _Run(config, accelerator, embedder, windows, model)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise TutorialError(f"{output} holds an unfinished run; pass --resume to go on, or choose another folder.")
    if resume and checkpoint.exists():
        run.load(checkpoint)
    finished = run.loop(checkpoint, progress)
    if finished and accelerator.is_main_process:
        from tutorial_lib.cards import provenance
        from tutorial_lib.checkpoints import save_finished

        raw = accelerator.unwrap_model(run.model)
        facts = {
            "settings": {key: value for key, value in asdict(config).items() if key != "output"},
            "result": run.summary(),
            "provenance": provenance(asdict(config), raw, embedder),
        }
        save_finished(raw, output, facts)
    return output


def _precision() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16" if fast_dtype(device) == torch.bfloat16 else "no"


class _Run:
    """The state of one training run and the loop over it."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, embedder: Embedder, windows: Windows, model: VectorToText
    ) -> None:
        self.config, self.accelerator, self.embedder, self.windows = config, accelerator, embedder, windows
        self.step, self.seconds, self.loss = 0, 0.0, float("nan")
        _, self.start = special_ids(embedder)
        self.optimizers = optimizers(model, config)
        model.to(accelerator.device)
        self.model = accelerator.prepare(model)
        self.optimizers = [accelerator.prepare(optimizer) for optimizer in self.optimizers]
        self.peaks = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.guesses: Guesses | None = None
        if config.kind == "corrector":
            assert config.inverter is not None
            inverter = Inverter.from_pretrained(config.inverter).to(accelerator.device).eval()
            raw = accelerator.unwrap_model(self.model)
            assert isinstance(raw, Corrector)
            self.guesses = Guesses(config, windows, embedder, inverter, raw, self.start)

    def rng(self, purpose: int) -> np.random.Generator:
        """The random numbers of a step: a function of seed, step and process, so a resumed run repeats them."""
        return np.random.default_rng([self.config.seed, purpose, self.step, self.accelerator.process_index])

    def progress(self) -> float:
        """Share of the run that is done, 0 to 1: the schedule's clock."""
        shares = [0.0]
        if self.config.max_minutes is not None:
            shares.append(self.seconds / (60 * self.config.max_minutes))
        if self.config.max_steps is not None:
            shares.append(self.step / self.config.max_steps)
        return min(1.0, max(shares))

    def rate(self) -> float:
        """Learning rate as a share of its peak: linear up, then linear down to zero."""
        done = self.progress()
        warm = min(1.0, (self.step + 1) / 50, done / self.config.warmup if self.config.warmup else 1.0)
        return max(warm, min(1.0, (self.step + 1) / 200) * 0.1) if warm < 1 else 1 - done

    def one_step(self) -> float:
        """One optimiser step; returns the loss in nats per token."""
        raw = self.accelerator.unwrap_model(self.model)
        if self.guesses is None:
            rows = self.windows.sample(self.rng(2), self.config.batch_size)
            labels = raw.to_model_ids([row.tolist() for row in rows])
            target = embed_model_ids(labels, raw.vocabulary, self.embedder, self.start)
            inputs: dict[str, Any] = {"embeddings": target, "labels": labels}
        else:
            if not self.guesses.state:
                self.guesses.fill(self.rng(3))
            # Copies: the pool is rewritten in place while autograd may still hold the batch.
            inputs = {key: value.clone() for key, value in self.guesses.next().items()}
            inputs["left"] = self._channels(len(inputs["labels"]))
        share = self.rate()
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self.model.train()
        with self.accelerator.autocast():
            loss = self.model(**inputs, sampled=self.config.sampled)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.guesses is not None:
            raw.eval()
            self.guesses.advance(self.rng(4))
        self.step += 1
        return float(loss.detach())

    def _channels(self, n: int) -> Tensor:
        """[n, 2]: which of (e - ê, ê) each row may see; ``config.blind`` decides for all, else a few are blinded."""
        left = Corrector.LEFT
        if self.config.blind:
            rows = [left[self.config.blind]] * n
        else:
            draw = self.rng(5).random(n) / (self.config.blinded or 1e-9)  # below 1: blinded
            rows = [left["difference"] if u < 0.5 else left["feedback"] if u < 1 else left[""] for u in draw]
        return torch.tensor(rows, device=self.accelerator.device)

    def loop(self, checkpoint: Path, progress: bool) -> bool:
        """Run to the end of the budget (True) or of the segment (False)."""
        began, saved, mark = time.monotonic(), time.monotonic(), time.monotonic()
        bar = tqdm(total=100.0, unit="%", disable=not (progress and self.accelerator.is_main_process),
                   bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}")  # fmt: skip
        bar.set_description(f"Training the {self.config.kind}")
        losses: list[float] = []
        with _Curve(checkpoint.parent / "loss.csv", self.step, self.accelerator.is_main_process) as curve:
            while self.progress() < 1:
                losses.append(self.one_step())
                now = time.monotonic()
                self.seconds, mark = self.seconds + now - mark, now
                self.loss = float(np.mean(losses))
                if self.step % 10 == 0:
                    losses.clear()
                    curve.write(self.step, self.seconds, self.sequences, self.loss, self.rate())
                    bar.update(100 * self.progress() - bar.n)
                    bar.set_postfix_str(f"loss {self.loss:.3f}, {self.sequences / self.seconds:.0f} sequences/s")
                if now - saved > 60 * self.config.checkpoint_minutes:
                    self.save(checkpoint)
                    saved = now
                if self.config.segment_minutes and now - began > 60 * self.config.segment_minutes:
                    break
        bar.close()
        self.save(checkpoint)
        return self.progress() >= 1

    @property
    def sequences(self) -> int:
        return self.step * self.config.batch_size * self.accelerator.num_processes

    def summary(self) -> dict[str, Any]:
        """What the model card says of the run."""
        return {"steps": self.step, "seconds": round(self.seconds, 1), "sequences": self.sequences, "loss": self.loss}

    def save(self, path: Path) -> None:
        """Write the checkpoint beside the old one, then replace it in one rename."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "config": {k: v for k, v in asdict(self.config).items() if k not in _MAY_CHANGE},
            "step": self.step,
            "seconds": self.seconds,
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": torch.get_rng_state(),
            "guesses": (self.guesses.state, self.guesses.cursor) if self.guesses else None,
        }
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            part.unlink(missing_ok=True)
            raise TutorialError(
                f"The checkpoint could not be written to {path.parent} ({error}); the previous one is intact: free "
                "some space and run again with --resume."
            ) from error

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises :class:`CheckpointError` if it is unreadable or of another run."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a truncated file raises whatever its first broken byte meets
            raise CheckpointError(f"{path} is not a readable checkpoint ({type(error).__name__}).") from error
        mine = {k: v for k, v in asdict(self.config).items() if k not in _MAY_CHANGE}
        differing = [key for key, value in mine.items() if _plain(state["config"].get(key)) != _plain(value)]
        if differing:
            raise CheckpointError(
                f"{path} belongs to a run with other settings ({', '.join(differing)}); resume with the same ones."
            )
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["random"])
        self.step, self.seconds = state["step"], state["seconds"]
        if self.guesses is not None and state["guesses"] is not None:
            pool, self.guesses.cursor = state["guesses"]
            self.guesses.state = {key: value.to(self.accelerator.device) for key, value in pool.items()}


_MAY_CHANGE = {"output", "max_minutes", "max_steps", "segment_minutes", "checkpoint_minutes"}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class _Curve:
    """The loss curve as CSV; rows after the step resumed from are dropped, so the file tells one story."""

    def __init__(self, path: Path, step: int, active: bool) -> None:
        self.path, self.step, self.active = path, step, active

    def __enter__(self) -> _Curve:
        if self.active:
            kept = [row for row in _rows(self.path) if int(row["step"]) <= self.step]
            self._file = self.path.open("w", newline="", encoding="utf-8")
            self._writer = csv.writer(self._file)
            self._writer.writerow(CSV_FIELDS)
            self._writer.writerows([row[key] for key in CSV_FIELDS] for row in kept)
        return self

    def write(self, step: int, seconds: float, sequences: int, loss: float, rate: float) -> None:
        if self.active:
            self._writer.writerow([step, f"{seconds:.1f}", sequences, f"{loss:.5f}", f"{rate:.5f}"])
            self._file.flush()

    def __exit__(self, *exception: object) -> None:
        if self.active:
            self._file.close()


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
