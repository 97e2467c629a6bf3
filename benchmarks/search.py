"""Where the search spends its time, and how fast it is beside the published loop written out plainly.

    python benchmarks/search.py [--n 32] [--steps 50] [--beam 8] [--max-tokens 6] [--threads 2] [--profile-only]
    python benchmarks/search.py --embedder gtr-base-mean --inverter jxm/gtr__nq__32 \\
        --corrector jxm/gtr__nq__32__correct --max-tokens 32 --batch 8     # the paper's weights, on a GPU

Both sides get the same weights, texts, steps and beam, in one process, one after the other. The plain loop
is what Morris et al. (2023, section 3) describe and nothing more: every round it decodes `beam` candidates
from each of the `beam` guesses in float32, embeds every candidate whether met before or not, keeps the `beam`
nearest by cosine, and never stops early. (The published code ranks by language-model probability; ranking by
cosine is the better of the two, so the comparison is not made easier than it should be. A corrector that reads
slopes gets them on both sides.)

The last lines say how often both sides end with the same text, and which is nearer where they differ. The exit
status is 1 where we are less than `--at-least` times as fast or less than 80 % of our time is inside the models.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from clock import Clock, hardware, now

from tutorial_lib import Corrector, Embedder, Inverter, invert, passages
from tutorial_lib.modeling import fast_dtype
from tutorial_lib.search import GRADIENT_QUERIES, slopes


@torch.no_grad()
def plain_loop(
    target: torch.Tensor,
    embedder: Embedder,
    inverter: Inverter,
    corrector: Corrector,
    steps: int,
    beam: int,
    batch: int,
) -> tuple[list[str], np.ndarray, int]:
    """The published loop: texts, their cosines float32 [n], and the number of texts embedded."""
    texts: list[str] = []
    cosines: list[float] = []
    queries = 0
    for e in target.split(batch):  # [b, d]
        b, width = len(e), 1
        guesses = decode(inverter, inverter.encoder_inputs(e), None, 1, embedder)  # b x width texts
        vectors = embed(guesses, embedder).to(e.device)  # [b x width, d]
        queries += len(guesses)
        for _ in range(steps):
            tokens, wanted = embedder.token_ids(guesses), e.repeat_interleave(width, 0)
            ids = corrector.to_model_ids(tokens)
            slope = None
            if corrector.reads_slopes:
                slope = slopes(embedder, tokens, wanted, ids.shape[1])
                queries += GRADIENT_QUERIES * len(guesses)
            inputs, mask = corrector.encoder_inputs(wanted, ids, vectors, slope)
            aligned = corrector.decoder_inputs(ids, slope)  # None in the paper's layout
            found = decode(corrector, inputs, mask, beam, embedder, aligned)  # b x width x beam texts
            candidates = embed(found, embedder).to(e.device).reshape(b, width * beam, -1)
            queries += len(found)
            near = torch.nn.functional.cosine_similarity(candidates, e[:, None], dim=-1)  # [b, width x beam]
            best = near.topk(beam).indices  # [b, beam]
            guesses = [
                found[row * width * beam + column] for row in range(b) for column in best[row].tolist()
            ]
            vectors = candidates[torch.arange(b)[:, None], best].reshape(b * beam, -1)
            width = beam
        texts += guesses[::width]
        cosines += torch.nn.functional.cosine_similarity(vectors[::width], e).tolist()
    return texts, np.asarray(cosines, dtype=np.float32), queries


def embed(texts: Sequence[str], embedder: Embedder) -> torch.Tensor:
    """float32 [n, d]; a decoder may write nothing, which no embedder takes."""
    return torch.from_numpy(
        embedder.encode([text if text.strip() else "." for text in texts], progress=False)
    )


def decode(
    model: Any,
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    beam: int,
    embedder: Embedder,
    aligned: torch.Tensor | None = None,
) -> list[str]:
    """Encoder inputs [n, s, width] -> n x beam texts, with the library's own `generate` and its defaults."""
    length = model.config.max_tokens + 1
    more: dict[str, Any] = {}
    if aligned is not None:
        more["aligned"] = torch.nn.functional.pad(aligned, (0, 0, 0, length - aligned.shape[1]))
    ids = model.backbone.generate(
        inputs_embeds=inputs,
        attention_mask=torch.ones(inputs.shape[:2], device=inputs.device) if mask is None else mask,
        num_beams=beam,
        num_return_sequences=beam,
        do_sample=False,
        max_new_tokens=length,
        forced_eos_token_id=model.end,
        **more,
    )
    return embedder.decode(model.to_embedder_ids(ids[:, 1:]))


def watch(clock: Clock, embedder: Embedder, models: Sequence[Any]) -> None:
    """Count the time in the three models, and the part of it in their networks."""
    clock.watch("embedder", embedder, "encode")
    clock.watch("networks", embedder._model, "forward")
    for model in models:
        clock.watch("models", model, "propose")
        clock.watch("networks", model, "encoder_inputs")
        if hasattr(model, "decoder_inputs"):
            clock.watch("networks", model, "decoder_inputs")
        clock.watch("networks", model.backbone.encoder, "forward")
        clock.watch("networks", model.backbone.decoder, "forward")
        clock.watch("networks", model.backbone, "forward")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=32, help="held-out passages")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--beam", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=6, help="word pieces in a passage, as in chapter 3")
    parser.add_argument("--batch", type=int, default=32, help="texts at once in the plain loop")
    parser.add_argument("--embedder", default="all-MiniLM-L6-v2", help="name or folder")
    parser.add_argument("--inverter", help="name or folder (default: the embedder's)")
    parser.add_argument("--corrector", help="name or folder (default: the inverter's)")
    parser.add_argument("--corpus", default="sotu", help="held-out text, as in tutorial_lib.passages")
    parser.add_argument("--at-least", type=float, default=0.0, help="times as fast, or the exit status is 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile-only", action="store_true", help="leave the plain loop out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    embedder = Embedder.from_pretrained(arguments.embedder)
    named = arguments.inverter or arguments.embedder
    inverter = Inverter.from_pretrained(named).to(embedder.device)
    corrector = Corrector.from_pretrained(arguments.corrector or named).to(embedder.device)
    texts = passages(arguments.corpus, "test", arguments.max_tokens, arguments.n, embedder=embedder)
    vectors = embedder.encode(texts)
    search = (embedder, inverter, corrector)
    invert(vectors[:2], *search, steps=2, beam_width=arguments.beam)  # first calls allocate and compile

    clock = Clock()
    watch(clock, embedder, (inverter, corrector))
    began = now()
    ours = invert(vectors, *search, steps=arguments.steps, beam_width=arguments.beam)
    seconds = now() - began
    inside = clock.seconds["embedder"] + clock.seconds["models"]
    said: dict[str, Any] = {
        "hardware": hardware(arguments.threads),
        "dtype": str(fast_dtype(embedder.device)).removeprefix("torch."),
        "n": arguments.n,
        "steps": arguments.steps,
        "beam": arguments.beam,
        "ours": _about(texts, ours.texts, ours.cosines, int(ours.queries.sum()), seconds),
        "share_inside_models": inside / seconds,
        "share_in_networks": clock.seconds["networks"] / seconds,
        "share_decoding": clock.seconds["models"] / seconds,
        "share_embedding": clock.seconds["embedder"] / seconds,
    }
    if not arguments.profile_only:
        target = torch.from_numpy(vectors).to(embedder.device)
        began = now()
        plain, cosines, queries = plain_loop(
            target, *search, arguments.steps, arguments.beam, arguments.batch
        )
        said["plain"] = _about(texts, plain, cosines, queries, now() - began)
        said["times_faster"] = said["plain"]["seconds"] / said["ours"]["seconds"]
        said["times_fewer_queries"] = queries / int(ours.queries.sum())
        said["same_text"] = sum(a == b for a, b in zip(ours.texts, plain, strict=True))
        said["ours_nearer"] = int((ours.cosines > cosines + 1e-4).sum())
        said["plain_nearer"] = int((ours.cosines < cosines - 1e-4).sum())
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(said, indent=1) if arguments.json else _table(said))
    return 0 if inside >= 0.8 * seconds and said.get("times_faster", np.inf) >= arguments.at_least else 1


def _about(
    texts: Sequence[str], found: Sequence[str], cosines: np.ndarray, queries: int, seconds: float
) -> dict[str, float]:
    exact = 100 * float(np.mean([a == b for a, b in zip(texts, found, strict=True)]))
    return {
        "seconds": seconds,
        "texts_per_second": len(texts) / seconds,
        "queries_per_text": queries / len(texts),
        "exact_percent": exact,
        "mean_cosine": float(cosines.mean()),
    }


def _table(said: dict[str, Any]) -> str:
    lines = [
        f"{said['hardware']}, {said['dtype']}; n = {said['n']}, {said['steps']} steps x beam {said['beam']}",
        f"{'':<8}{'texts/s':>9}{'queries/text':>14}{'exact %':>9}{'cosine':>9}",
    ]
    for name in ("ours", "plain"):
        if row := said.get(name):
            lines.append(
                f"{name:<8}{row['texts_per_second']:>9.3f}{row['queries_per_text']:>14.0f}"
                f"{row['exact_percent']:>9.1f}{row['mean_cosine']:>9.4f}"
            )
    if "plain" in said:
        lines.append(
            f"{said['times_faster']:.1f} times the texts a second, {said['times_fewer_queries']:.1f} times fewer "
            "queries"
        )
        lines.append(
            f"of {said['n']} texts the same by both: {said['same_text']}; nearer to the target by ours: "
            f"{said['ours_nearer']}, by the plain loop: {said['plain_nearer']}"
        )
    lines.append(
        f"inside the models {100 * said['share_inside_models']:.1f} % of our time (at least 80 wanted): "
        f"decoding {100 * said['share_decoding']:.1f}, embedding {100 * said['share_embedding']:.1f}"
    )
    lines.append(f"of which in the networks proper: {100 * said['share_in_networks']:.1f} %")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
