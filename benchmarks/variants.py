"""What each part of breeding guesses is worth, and what more rounds are, on validation speeches.

    python benchmarks/variants.py [--tokens 12] [--n 24] [--queries 2000] [--rounds 60] [--at 20 40] [--longest 28]
                                  [--only NAME ...]

Every row is the same search over the same texts with one part taken away: sense (texts ranked by cosine alone), content
(the values of pieces, so that a variant counts as near as its parent), the neighbours of good guesses (as many random
variants are read instead), the sampled first guesses, or all of it (chapter 3's search with local edits instead).
"surrogate" has something more: chapter 6's search, which knows pairs of pieces; "surrogate of pieces" is that without
pairs; "words" knows what words say alone, "ahead" looks three changes ahead, "words, ahead" does both, as in that
chapter, and its words are not counted in the queries. Rows are printed as they finish; each text of a row may spend
``--queries``. ``--at`` says where the search stood after fewer rounds, ``--longest`` lets variants have more pieces
than the few beyond the trained length that they may have else, ``--output`` keeps the rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rows import keep

from tutorial_lib import Corrector, Embedder, Inverter, evaluate, invert, passages, surrogate, variants
from tutorial_lib.surrogate import surrogate_search
from tutorial_lib.surrogate_model import Surrogate
from tutorial_lib.word_lists import WordList, whole_words

PARTS = ("all", "no sense", "no content", "no neighbours", "no samples", "local edits")
PARTS += ("surrogate", "surrogate of pieces", "words", "ahead", "words, ahead")


def without(part: str) -> dict[str, Any]:
    """Names in ``variants`` and what stands in for them when a part is taken away."""

    def moved(self: Any, texts: Any, parents: Any, known: np.ndarray) -> np.ndarray:
        return known / np.linalg.norm(known, axis=1, keepdims=True)

    def of(self: Any, pieces: Sequence[int]) -> np.ndarray:
        return 0 * real_of(self, pieces)

    worth, real_of = variants.score, variants.PieceValues.of

    def score(cosine: Any, nats: Any, sense: float = 0.0) -> np.ndarray:
        return worth(cosine, nats, 0.0)

    blind = type("Blind", (variants.PieceValues,), {"moved": moved, "of": of})
    parts = {
        "no sense": {"score": score, "SENSE": 1e-12},  # not 0: what sense takes off is divided by it
        "no content": {"PieceValues": blind},
        "no neighbours": {"_CHANGED": 0, "_ORDERS": 0, "_READ": 112, "_MOVED": 32},
        "no samples": {"SAMPLES": 1},
    }
    return parts.get(part, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--skip", type=int, default=0, help="passages to leave out, of those before the n taken")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--variants", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--output", type=Path, help="CSV to append the rows to")
    parser.add_argument("--longest", type=int, help="pieces of a variant, at most, beyond the trained length too")
    parser.add_argument("--at", nargs="+", type=int, default=[])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    embedder = Embedder.from_pretrained()
    inverter = Inverter.from_pretrained("all-MiniLM-L6-v2").to(embedder.device).eval()
    corrector = Corrector.from_pretrained("all-MiniLM-L6-v2").to(embedder.device).eval()
    texts = passages("sotu", given.split, given.tokens, n=given.skip + given.n, seed=given.seed, embedder=embedder)
    texts = texts[given.skip :]
    vectors = embedder.encode(texts)
    if given.longest:
        variants.SLACK = given.longest - inverter.config.max_tokens
        surrogate.SLACK = given.longest - surrogate.LONGER * inverter.config.max_tokens
    for part in given.only:
        stand_ins = without(part)
        real = {name: getattr(variants, name) for name in stand_ins}
        for name, value in stand_ins.items():
            setattr(variants, name, value)
        began = time.monotonic()
        options = {"steps": given.rounds, "max_queries": given.queries, "progress": False}
        if part == "local edits":
            result = invert(vectors, embedder, inverter, corrector, beam_width=4, edits=given.variants, **options)
        elif part.startswith("surrogate") or part in ("words", "ahead", "words, ahead"):
            distances = Surrogate.distances
            Surrogate.distances = () if part.endswith("pieces") else distances
            options |= {"ahead": 3} if "ahead" in part else {}
            options |= {"words": WordList.embed(whole_words(embedder), embedder)} if "words" in part else {}
            result = surrogate_search(vectors, embedder, inverter, corrector, variants=given.variants, **options)
            Surrogate.distances = distances
        else:
            result = variants.breed(vectors, embedder, inverter, corrector, variants=given.variants, **options)
        spent = time.monotonic() - began
        for name, value in real.items():
            setattr(variants, name, value)
        for rounds in sorted({*given.at, given.rounds}):
            scores = evaluate(texts, result.at(rounds), embedder)
            row = {
                "search": part,
                "split": given.split,
                "tokens": given.tokens,
                "rounds": rounds,
                "exact": f"{scores.exact}",
                "bleu": f"{scores.bleu}",
                "token_f1": f"{scores.token_f1}",
                "cosine": f"{scores.cosine}",
                "queries": f"{result.queries_at(rounds).mean():.0f}",
                "seconds": f"{spent / given.n:.1f}" if rounds == given.rounds else "",
            }
            print(", ".join(f"{key} {value}" for key, value in row.items() if value), flush=True)
            if given.output:
                keep(given.output, row)


if __name__ == "__main__":
    main()
