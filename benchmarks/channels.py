"""What the corrector makes of its guess: nats per word piece of held-out text, by channel and by quality of the guess.

    python benchmarks/channels.py [--split validation] [--n 512] [--corrector FOLDER]

First row: guesses as the inverter writes them. Below: the text itself with 1, 2 or 3 pieces replaced at random, which a
corrector that looks at its guess finds easier the fewer there are. Columns withhold a channel (see
``CorrectorConfig``). The inverter's own figure stands above, since it is what a corrector has to beat.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from tutorial_lib import Corrector, Embedder, Inverter, metrics
from tutorial_lib.modeling import END, UNKNOWN
from tutorial_lib.training import TrainConfig
from tutorial_lib.training_data import Guesses, Windows, special_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--inverter", default="all-MiniLM-L6-v2")
    parser.add_argument("--corrector", default="all-MiniLM-L6-v2")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    embedder = Embedder.from_pretrained()
    inverter = Inverter.from_pretrained(given.inverter).to(embedder.device).eval()
    corrector = Corrector.from_pretrained(given.corrector).to(embedder.device).eval()
    config = TrainConfig(
        kind="corrector", output="", inverter=given.inverter, corrupted=0.0, records=0.0, max_steps=1,
        max_tokens=corrector.config.max_tokens, slopes=bool(corrector.config.slope_width),
    )  # fmt: skip
    windows = Windows(config, embedder, given.split)
    guesses = Guesses(config, windows, embedder, inverter, corrector, special_ids(embedder)[1])
    rng = np.random.default_rng(given.seed)
    with torch.no_grad(), corrector.autocast():
        batch = guesses._new(rng, given.n)
        batch.pop("age")
        labels, target = batch["labels"], batch["target"]
        own = [inverter(target[i : i + 1], labels[i : i + 1]) for i in range(given.n)]
        print("inverter", json.dumps(estimate(own)))
        rows = {"the inverter's": batch}
        for wrong in (1, 2, 3):
            guess = labels.clone()
            for row in guess:
                places = np.arange(int((row == END).nonzero()[0]))
                for place in rng.choice(places, min(wrong, len(places)), replace=False):
                    row[place] = int(rng.integers(UNKNOWN + 1, len(corrector.vocabulary)))
            rows[f"{wrong} wrong"] = {"labels": labels, "target": target, "guess": guess}
            rows[f"{wrong} wrong"] |= guesses._feedback(guess, target)
        for name, values in rows.items():
            for blind in ("", "difference", "feedback"):
                corrector.config.blind = blind
                losses = [corrector(**{k: v[i : i + 1] for k, v in values.items()}) for i in range(given.n)]
                print(f"guess: {name}, without: {blind or 'nothing'}", json.dumps(estimate(losses)))


def estimate(losses: list[torch.Tensor]) -> dict[str, float]:
    """Mean over texts of nats per piece, with its 95 % bootstrap interval."""
    found = metrics.bootstrap(np.array([float(loss) for loss in losses]))
    return {"nats": round(found.value, 3), "low": round(found.low, 3), "high": round(found.high, 3), "n": found.n}


if __name__ == "__main__":
    main()
