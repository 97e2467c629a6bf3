"""Train an inverter or a corrector for any embedder: resumable, on a laptop or on several GPUs.

``tutorial-lib train`` calls :func:`train`. A step draws random windows of real text (and some synthetic
records), embeds them, and for the corrector pairs each with a guess: the inverter's, what the corrector itself
wrote last time, so that it learns from its own mistakes, or, if asked, a corruption of the text
(``training_data``). Chapter 2 trains a small inverter live; *Train your own* walks through a full run.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, parse_flag_from_env
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from tutorial_lib.cached import CachedEmbedder, TableWindows
from tutorial_lib.cards import lineage, provenance
from tutorial_lib.checkpoints import save_finished
from tutorial_lib.corrector import Blind, Corrector
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import CheckpointError, TutorialError
from tutorial_lib.inverter import Inverter
from tutorial_lib.modeling import VectorToText, fast_dtype
from tutorial_lib.training_data import Guesses, Windows, check_training_vectors, embed_model_ids, special_ids
from tutorial_lib.training_models import build_model, optimizers

CSV_FIELDS = ("step", "seconds", "sequences", "loss", "learning_rate")
#: Peak learning rates. A corrector begins with the inverter's weights, which higher ones spoil (*What we tried*).
PEAK = {"inverter": 4e-3, "corrector": 1e-3}
_ROW = 10  # steps per row of the loss curve
_FINISHED = ("config.json", "training.json")  # either lies in a folder of finished weights


@dataclass(frozen=True)
class Ended:
    """How a call of :func:`train_segment` ended."""

    output: Path  # the run's folder
    main: bool  # is this the process that reports?
    result: dict[str, Any] | None  # steps, seconds, sequences and loss of a finished run; None: the segment is over


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on; saved with the checkpoint and compared when it resumes."""

    kind: Literal["inverter", "corrector"]
    output: str  # folder for the checkpoint, the loss curve and the finished weights
    embedder: str = "all-MiniLM-L6-v2"
    corpus: tuple[str, ...] = ("sotu",)  # sources as in corpora.passages, drawn in equal parts
    records: float = 0.15  # share of synthetic records in each batch
    min_tokens: int = 4  # word pieces in the shortest window
    max_tokens: int = 8  # word pieces in the longest window
    longest: float = 0.5  # share of windows drawn at the longest length; the others take any, all equally often
    max_minutes: float | None = None  # of training, over all segments, what comes before it left out; None: no limit
    max_steps: int | None = None  # optimiser steps, over all segments; None: no limit
    segment_minutes: float | None = None  # stop (resumably) after this long; None: run to the end
    batch_size: int = 256  # sequences per step and process
    learning_rate: float | None = None  # peak of AdamW, linear warm-up, linear decay to zero; None: PEAK of the kind
    matrix_learning_rate: float | None = None  # the same of Muon for weight matrices, scaled to AdamW's update size
    optimizer: Literal["adamw", "muon"] = "muon"
    warmup: float = 0.02  # share of the run
    layers: int = 3  # encoder layers, and as many decoder layers
    width: int = 384  # values per token in the backbone
    num_pseudo_tokens: int = 8  # encoder positions each vector becomes
    sampled: int = 2048  # classes drawn for the sampled softmax; 0: full softmax
    seed: int = 0
    inverter: str | None = None  # corrector only: whose guesses it learns from, and its warm start
    blind: Blind = ""  # corrector only: channels to take away, for the ablation
    pool: int = 16  # corrector only: batches of guesses rewritten together; a small pool is learnt by heart
    reuse: int = 1  # corrector only: steps each guess takes part in before it is rewritten
    fresh: float = 0.5  # corrector only: share of guesses replaced by a new window each time round
    rewrites: int = 2  # corrector only: times a guess is rewritten before its text is given up
    slopes: bool = False  # corrector only: does it read the embedder's gradient at each token of the guess?
    begin_from: str | None = None  # weights of the same kind to go on from; None: a fresh model
    blinded: float = 0.15  # corrector only: share of rows with a channel withheld, so that ablations are fair
    corrupted: float = 0.0  # corrector only: of new windows, the share that starts from a worse text
    checkpoint_minutes: float = 3.0  # time between checkpoints
    whiten_on: int = 8192  # windows from which the whitening is estimated

    def __post_init__(self) -> None:
        for name in ("learning_rate", "matrix_learning_rate"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, PEAK.get(self.kind))

    def check(self) -> None:
        """Raises :class:`TutorialError` for a setting out of its range."""
        if self.max_minutes is None and self.max_steps is None:
            raise TutorialError("Training needs an end: give --max-minutes or --max-steps.")
        if not self.corpus:
            raise TutorialError("corpus is empty; name at least one source of text, such as sotu.")
        choices = {
            "kind": ("inverter", "corrector"),
            "optimizer": ("adamw", "muon"),
            "blind": tuple(Corrector.LEFT),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise TutorialError(
                    f"{name} is {getattr(self, name)!r}; use {' or '.join(filter(None, allowed))}."
                )
        least = dict.fromkeys(
            ("min_tokens", "batch_size", "layers", "width", "num_pseudo_tokens", "pool", "reuse", "max_steps"), 1
        )
        least |= {"whiten_on": 2, "sampled": 0, "rewrites": 0, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise TutorialError(f"{name} is {value}; it is at least {low}.")
        for name in ("max_minutes", "segment_minutes", "learning_rate", "matrix_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TutorialError(f"{name} is {value}; it is a number above 0.")
        for name in ("records", "longest", "warmup", "fresh", "blinded", "corrupted"):
            if not 0 <= getattr(self, name) <= 1:
                raise TutorialError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1.")
        if self.min_tokens > self.max_tokens:
            raise TutorialError(
                f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}; the shortest window "
                "cannot be longer than the longest."
            )
        if self.kind == "corrector" and self.inverter is None:
            raise TutorialError(
                "A corrector learns from an inverter's guesses; give --inverter NAME_OR_FOLDER."
            )


def train(config: TrainConfig, resume: bool = False, progress: bool = True) -> Path:
    """Train, or resume, and write the finished weights; returns their folder.

    A checkpoint every ``checkpoint_minutes`` replaces the last one in a single rename, so a kill at any moment loses
    minutes at most; a run of one process that ``max_steps`` limits, resumed, follows the same loss curve as one left
    alone (of several processes all but the first draw new guesses). Raises :class:`TutorialError` when there is no
    limit, the folder already holds another run or weights without one, the embedder reads less than ``max_tokens``,
    the loss or its gradient is no longer a number, or the disk is full (the last checkpoint stays).
    """
    return train_segment(config, resume, progress).output


def train_segment(config: TrainConfig, resume: bool = False, progress: bool = True) -> Ended:
    """:func:`train`, which says whether the run is finished or only a segment of it."""
    config.check()
    output = Path(config.output)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise TutorialError(
            f"{output} holds a run already; pass --resume to go on, or choose another folder."
        )
    if not checkpoint.exists() and any((output / name).exists() for name in _FINISHED):
        raise TutorialError(
            f"{output} holds finished weights and no checkpoint to go on from; choose another folder, and give "
            "these weights with --begin-from to go on from them."
        )
    accelerator = Accelerator(mixed_precision=_precision())
    torch.manual_seed(config.seed + accelerator.process_index)
    output.mkdir(parents=True, exist_ok=True)
    embedder = Embedder.from_pretrained(config.embedder, device=str(accelerator.device))
    if config.max_tokens > embedder.max_tokens:  # the vector of a longer window says nothing of its end
        raise TutorialError(
            f"max_tokens is {config.max_tokens} and {embedder.name} reads {embedder.max_tokens} word pieces; give "
            f"--max-tokens {embedder.max_tokens} or less."
        )
    # A table of vectors has nothing but its own texts to train on.
    table = isinstance(embedder, CachedEmbedder) and embedder.closed
    windows = TableWindows(config, cast(CachedEmbedder, embedder)) if table else Windows(config, embedder)
    model = build_model(config, embedder, windows)
    check_training_vectors(windows, embedder, model, special_ids(embedder)[1])
    # What the card says of data and lineage is gathered first: what could fail there must not cost a run.
    made = provenance(asdict(config), model, embedder, accelerator.device)
    settings, before = lineage(asdict(config))
    run = _Run(config, accelerator, embedder, windows, model)
    if resume and checkpoint.exists():
        run.load(checkpoint)
    run.hardware = list(dict.fromkeys([*run.hardware, made["hardware"]]))
    made["hardware"] = ", then ".join(run.hardware)
    finished = run.loop(checkpoint, progress)
    main = accelerator.is_main_process
    result = run.summary(output / "loss.csv") if finished and main else None
    if result is not None:
        facts = {"settings": settings, "result": result, "provenance": made, "before": before}
        try:
            save_finished(accelerator.unwrap_model(run.model), output, facts)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, as each library reports it
            raise TutorialError(
                f"The finished weights could not be written to {output} ({error}); the checkpoint is "
                "intact: free "
                "some space and run again with --resume."
            ) from error
    return Ended(output, main, result)


def _precision() -> str:
    # `accelerate launch --cpu` on a machine with a GPU; asking accelerate itself would set up its processes too early.
    gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    device = torch.device("cuda" if gpu else "cpu")
    return "bf16" if fast_dtype(device) == torch.bfloat16 else "no"


class _Run:
    """The state of one training run and the loop over it."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        embedder: Embedder,
        windows: Windows,
        model: VectorToText,
    ) -> None:
        self.config, self.accelerator, self.embedder, self.windows = config, accelerator, embedder, windows
        self.step, self.seconds, self.sequences = 0, 0.0, 0
        self.hardware: list[str] = []  # of all segments
        self.losses: list[float] = []  # since the last row of the curve
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
        """The random numbers of a step, from seed, step and process alone, so a resumed run repeats them."""
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
        """Learning rate as a share of its peak: linear up, for 50 steps at least, then on a line that falls to zero at
        the end of the run. Of a run of a few dozen steps little but the ascent is left."""
        done = self.progress()
        warm = min(1.0, (self.step + 1) / 50, done / self.config.warmup if self.config.warmup else 1.0)
        return max(warm, min(1.0, (self.step + 1) / 200) * 0.1) if warm < 1 else 1 - done

    def one_step(self) -> float:
        """One optimiser step; returns the loss in nats per token."""
        raw = self.accelerator.unwrap_model(self.model)
        if self.guesses is None:
            labels = self.windows.model_ids(self.rng(2), self.config.batch_size, raw)
            target = embed_model_ids(labels, raw.vocabulary, self.embedder, self.start)
            inputs: dict[str, Any] = {"embeddings": target, "labels": labels}
        else:
            if not self.guesses.state:
                self.guesses.fill(self.rng(3))
            inputs = dict(self.guesses.next())
            inputs["left"] = self._channels(len(inputs["labels"]))
        share = self.rate()
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self.model.train()
        with self.accelerator.autocast():
            loss = self.model(**inputs, sampled=self.config.sampled)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        value = float(loss.detach())
        # before they reach the weights: clipping makes NaN of an infinite gradient, whatever the loss is
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise TutorialError(
                f"The loss or its gradient is no longer a number at step {self.step + 1}; resume from the last "
                "checkpoint with --resume, or start again with a lower learning rate."
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.guesses is not None:
            raw.eval()
            self.guesses.advance(self.rng(4))
        self.step += 1
        self.sequences += self.config.batch_size * self.accelerator.num_processes
        return value

    def _channels(self, n: int) -> Tensor:
        """[n, 3]: which of (e - ê, ê, slope) each row may see: as ``config.blind`` says, else a few see less."""
        left = Corrector.LEFT
        if self.config.blind:
            rows = [left[self.config.blind]] * n
        else:
            kinds = [kind for kind in left if kind and (self.config.slopes or kind != "slope")]
            draw = self.rng(5).random(n) / (self.config.blinded or 1e-9)  # below 1: blinded
            rows = [left[kinds[int(u * len(kinds))] if u < 1 else ""] for u in draw]
        return torch.tensor(rows, device=self.accelerator.device)

    def clock(self) -> float:
        """Seconds on the main process's clock: by clocks of their own one process would leave and the rest wait."""
        now = time.monotonic()
        if self.accelerator.num_processes == 1:
            return now
        return float(broadcast(torch.tensor(now, dtype=torch.float64, device=self.accelerator.device)))

    def loop(self, checkpoint: Path, progress: bool) -> bool:
        """Run to the end of the budget (True) or of the segment (False)."""
        began = saved = mark = self.clock()
        main = self.accelerator.is_main_process
        bar = tqdm(total=100.0, initial=100 * self.progress(), unit="%", disable=not (progress and main),
                   bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}")  # fmt: skip
        bar.set_description(f"Training the {self.config.kind}")
        with _Curve(checkpoint.parent / "loss.csv", self.step, main) as curve:
            while self.progress() < 1:
                self.losses.append(self.one_step())
                now = self.clock()
                self.seconds, mark = self.seconds + now - mark, now
                if self.step % _ROW == 0:
                    loss = float(np.mean(self.losses))
                    self.losses.clear()
                    curve.write(self.step, self.seconds, self.sequences, loss, self.rate())
                    bar.update(100 * self.progress() - bar.n)
                    bar.set_postfix_str(f"loss {loss:.3f}, {self.sequences / self.seconds:.0f} sequences/s")
                if now - saved > 60 * self.config.checkpoint_minutes:
                    self.save(checkpoint)
                    saved = now
                if self.config.segment_minutes and now - began > 60 * self.config.segment_minutes:
                    break
        bar.close()
        self.save(checkpoint)
        return self.progress() >= 1

    def summary(self, curve: Path) -> dict[str, Any]:
        """What the model card says of the run; its loss is the last row of the curve, if there is one."""
        rows = list(_rows(curve))
        loss = float(rows[-1]["loss"]) if rows else float(np.mean(self.losses))
        return {
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "sequences": self.sequences,
            "processes": self.accelerator.num_processes,
            "loss": loss,
        }

    def save(self, path: Path) -> None:
        """Write the checkpoint beside the old one, then replace it in one rename."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "config": _settings(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "sequences": self.sequences,
            "hardware": self.hardware,
            "losses": self.losses,
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
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
            left = "the previous one is intact: free some space and run again with --resume"
            raise TutorialError(
                f"The checkpoint could not be written to {path.parent} ({error}); "
                f"{left if path.exists() else 'free some space and start again'}."
            ) from error

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises :class:`CheckpointError` if it is unreadable or of another run."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a truncated file raises whatever its first broken byte meets
            raise CheckpointError(f"{path} is not a readable checkpoint ({type(error).__name__}).") from error
        if not isinstance(state, dict) or not state.keys() >= _SAVED or not isinstance(state["config"], dict):
            raise CheckpointError(f"{path} is not a checkpoint of this library; move it away, or give another folder.")
        self.compare(state["config"], path)
        try:
            self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        except RuntimeError as error:  # tensors of other shapes: the vocabulary comes from the text
            raise CheckpointError(
                f"{path} does not fit the model: the training text has changed since; restore it, or start "
                "again in "
                "another folder."
            ) from error
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses = list(state.get("losses", []))
        steps = self.step * self.config.batch_size * self.accelerator.num_processes  # what older checkpoints leave out
        self.sequences, self.hardware = state.get("sequences", steps), list(state.get("hardware", []))
        if self.guesses is not None and state["guesses"] is not None:
            self.guesses.cursor = state["guesses"][1]  # of every process: they rewrite in the same step, or wait
        if not self.accelerator.is_main_process:
            return  # only the main process saved its random state and guesses; the others draw new ones
        torch.set_rng_state(state["random"])
        if state.get("random_cuda") is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random_cuda"])
        if self.guesses is not None and state["guesses"] is not None:
            pool, _ = state["guesses"]
            self.guesses.state = {key: value.to(self.accelerator.device) for key, value in pool.items()}

    def compare(self, saved: dict[str, Any], path: Path) -> None:
        """Raises :class:`CheckpointError` when the run's settings are not those of the checkpoint."""
        # A setting that did not exist when the checkpoint was written cannot differ.
        differing = [key for key, value in _settings(self.config).items() if saved.get(key, value) != value]
        if differing:
            raise CheckpointError(
                f"{path} belongs to a run with other settings ({', '.join(differing)}); resume with the "
                "same ones."
            )


_SAVED = {"config", "step", "seconds", "model", "optimizers", "random"}  # in every checkpoint
_MAY_CHANGE = {"output", "max_minutes", "max_steps", "segment_minutes", "checkpoint_minutes"}


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run cannot change half-way."""
    return {key: value for key, value in asdict(config).items() if key not in _MAY_CHANGE}


class _Curve:
    """The loss curve as CSV; rows after the step resumed from are dropped, so the file tells one story."""

    def __init__(self, path: Path, step: int, active: bool) -> None:
        self.path, self.step, self.active = path, step, active

    def __enter__(self) -> _Curve:
        if self.active:
            try:
                kept = [[row[key] for key in CSV_FIELDS] for row in _rows(self.path) if int(row["step"]) <= self.step]
            except (KeyError, TypeError, ValueError) as error:  # somebody else's table
                raise TutorialError(f"{self.path} is not a loss curve of this library; move it away.") from error
            part = self.path.with_suffix(".part")
            with self._written():
                with part.open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file, lineterminator="\n").writerow(CSV_FIELDS)
                    csv.writer(file, lineterminator="\n").writerows(kept)
                part.replace(self.path)  # never half a curve, whatever happens here
                self._file = self.path.open("a", newline="", encoding="utf-8")
        return self

    def write(self, step: int, seconds: float, sequences: int, loss: float, rate: float) -> None:
        if self.active:
            with self._written():
                csv.writer(self._file, lineterminator="\n").writerow(
                    [step, f"{seconds:.3f}", sequences, f"{loss:.5f}", f"{rate:.5f}"]
                )
                self._file.flush()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TutorialError(
                f"{self.path} could not be written ({error}); the last checkpoint is intact: free some "
                "space and run "
                "again with --resume."
            ) from error

    def __exit__(self, *exception: object) -> None:
        if self.active:
            with contextlib.suppress(OSError):  # what could not be flushed was reported when it was written
                self._file.close()


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Whole rows of a curve; a kill may have torn the last one."""
    if path.exists():
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        yield from csv.DictReader(whole.splitlines())
