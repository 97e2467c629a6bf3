"""Which training recipe? Every lead under one small budget, with several seeds, into a table that grows as it runs.

    python benchmarks/recipe.py run --output recipe.csv [--sequences 100000] [--seeds 0 1 2] [--questions batch ...]
    python benchmarks/recipe.py table --output recipe.csv       # mean and interval over seeds, and the decision
    python benchmarks/recipe.py list

A question has a default and its rivals; all train on equally many sequences from equal seeds and are scored on the same
validation passages (never on a test set). What decides is the surprise that is left, in nats per word piece of those
passages over the whole vocabulary: an inverter's given the vector, a corrector's given the vector and the inverter's
guess. Small budgets show in it long before BLEU moves; BLEU and exact matches stand beside it, of an inverter's first
guess or after a few rounds of greedy correction. Correctors of one seed start from one inverter, or all from
``--inverter``. A run that is in the file already is not repeated, so the program can be stopped at any moment, and
several files can be tabled together. Intervals are Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch.nn import functional

from tutorial_lib import Corrector, Embedder, Inverter, TrainConfig, evaluate, invert, passages, train, training
from tutorial_lib.modeling import END, PAD, UNKNOWN, Candidates

COLUMNS = ("question", "setting", "seed", "kind", "sequences", "max_tokens", "seconds", "loss", "nats", "bleu",
           "exact", "cosine", "queries", "n", "settings")  # fmt: skip
SUMMARY = ("question", "setting", "budget", "seeds", "nats", "low", "high", "gain", "gain_low", "gain_high", "bleu",
           "exact", "decision")  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One way to train: BASE but for ``changes``, and ``alter`` done to the fresh model.

    ``lasting``: ``alter`` changes how the network works rather than its weights, so it is done to the loaded one too.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    alter: Callable[[Any], None] | None = None
    lasting: bool = False


def random_table(model: Any) -> None:
    """Forget the embedder's token table."""
    table = model.backbone.get_input_embeddings().weight
    with torch.no_grad():
        table.normal_(std=float(table.std()))


def frozen_table(model: Any) -> None:
    """Keep the embedder's token table as it is."""
    model.backbone.get_input_embeddings().weight.requires_grad_(False)


def no_whitening(model: Any) -> None:
    """Leave the vectors' shape alone; only scale them to unit variance, as whitened ones have."""
    model.whiten_mean.zero_()
    model.whiten_matrix.copy_(torch.eye(len(model.whiten_mean)) * len(model.whiten_mean) ** 0.5)


def drop_embedding(model: Any) -> None:
    """Withhold one vector in ten in training, so that the decoder learns p(x) beside p(x | e)."""
    plain = model.whitened

    def whitened(embeddings: torch.Tensor) -> torch.Tensor:
        vectors = plain(embeddings)
        if not model.training:
            return vectors
        return vectors * (torch.rand(len(vectors), 1, device=vectors.device) >= 0.1)

    model.whitened = whitened


def parallel(model: Any) -> None:
    """Write every place at once, from the guess and the vectors: no place sees what another one writes."""
    t5 = model.backbone
    t5.decoder.block[0].layer[0].SelfAttention.is_decoder = False  # relative positions in both directions

    def decoder_states(encoded: Any, mask: Any, labels: torch.Tensor, aligned: Any = None) -> torch.Tensor:
        n, t = labels.shape  # of the labels, the shape is all that is looked at
        blank = torch.full_like(labels, UNKNOWN)
        blank[:, 0] = t5.config.decoder_start_token_id
        words = t5.get_input_embeddings()(blank)
        hidden = t5.decoder(
            inputs_embeds=words + functional.pad(aligned, (0, 0, 0, t - aligned.shape[1])).to(words.dtype),
            attention_mask=torch.zeros(n, 1, t, t, device=words.device, dtype=words.dtype),  # added: all is seen
            encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False,
        ).last_hidden_state  # fmt: skip
        return hidden * t5.config.d_model**-0.5

    @torch.inference_mode()
    def propose(
        target: Any, guess: Any, guess_embedding: Any, slope: Any = None, *, candidates: int = 1, beams: int = 1,
        temperature: float = 0.0, max_tokens: int | None = None,
    ) -> Candidates:  # fmt: skip
        assert candidates == beams == 1, "places written at once have no beam"
        with model.autocast():
            inputs, mask = model.encoder_inputs(target, guess, guess_embedding, slope)
            length = (max_tokens or model.config.max_tokens) + 1
            places = torch.zeros(len(guess), length, dtype=torch.long, device=guess.device)
            hidden = decoder_states(model.encode(inputs, mask), mask, places, model.decoder_inputs(guess))
            logits = t5.lm_head(hidden).float()
        logits[:, :, [i for i in model.special if i != END]] = -torch.inf
        if temperature > 0:
            ids = torch.distributions.Categorical(logits=logits / temperature).sample()
        else:
            ids = logits.argmax(2)
        ids[:, -1] = END
        ended = (ids == END).cumsum(1) - (ids == END).long()
        return Candidates(ids.masked_fill(ended > 0, PAD)[:, None], torch.zeros(len(ids), 1))

    model.decoder_states, model.propose = decoder_states, propose


def _batches(*sizes: int) -> tuple[Setting, ...]:
    return tuple(Setting(f"batch {size}", {"batch_size": size}) for size in sizes)


def _rates(*rates: float) -> tuple[Setting, ...]:
    return tuple(Setting(f"rate {rate:g}", {"learning_rate": rate, "matrix_learning_rate": rate}) for rate in rates)


DEFAULT = Setting("default")
#: What a default means here, for good: TrainConfig's own have moved to what these runs found better.
BASE: dict[str, Any] = {
    "learning_rate": 4e-3, "matrix_learning_rate": 4e-3, "optimizer": "muon", "warmup": 0.02, "sampled": 2048,
    "min_tokens": 4, "longest": 0.5, "corrupted": 0.3, "fresh": 0.5, "rewrites": 2, "reuse": 1, "slopes": False,
    "pool": 16, "blinded": 0.15,
}  # fmt: skip
#: question -> (kind, settings with the default first)
QUESTIONS: dict[str, tuple[str, tuple[Setting, ...]]] = {
    "optimizer": ("inverter", (DEFAULT, Setting("AdamW", {"optimizer": "adamw"}),
                               Setting("AdamW, rate 0.001", {"optimizer": "adamw", "learning_rate": 1e-3}))),
    "inverter rate": ("inverter", (DEFAULT, *_rates(1e-3, 2e-3, 8e-3))),
    "batch": ("inverter", (DEFAULT, *_batches(64, 128, 256, 512))),
    "token table": ("inverter", (DEFAULT, Setting("random start", alter=random_table),
                                 Setting("frozen", alter=frozen_table))),
    "whitening": ("inverter", (DEFAULT, Setting("none", alter=no_whitening))),
    "pseudo-tokens": ("inverter", (DEFAULT, *(Setting(str(k), {"num_pseudo_tokens": k}) for k in (2, 4, 16)))),
    "lengths": ("inverter", (DEFAULT, Setting("longest only", {"min_tokens": "max_tokens"}))),
    "softmax": ("inverter", (DEFAULT, Setting("whole vocabulary", {"sampled": 0}))),
    "embedding dropout": ("inverter", (DEFAULT, Setting("one in ten withheld", alter=drop_embedding))),
    "corrector rate": ("corrector", (DEFAULT, *_rates(4e-4, 8e-4, 2e-3))),
    "hypotheses": ("corrector", (DEFAULT, Setting("no corruptions", {"corrupted": 0.0}),
                                 Setting("corruptions only", {"corrupted": 1.0, "fresh": 1.0}),
                                 Setting("base guesses only", {"corrupted": 0.0, "fresh": 1.0}))),
    "on-policy": ("corrector", (DEFAULT, Setting("never its own guesses", {"fresh": 1.0}),
                                Setting("mostly its own", {"fresh": 0.2, "rewrites": 6}))),
    "reuse": ("corrector", (DEFAULT, *(Setting(f"{n} uses", {"reuse": n}) for n in (2, 4)))),
    "channels": ("corrector", (DEFAULT, Setting("no difference", {"blind": "difference"}),
                               Setting("no feedback", {"blind": "feedback"}))),
    "decoder": ("corrector", (DEFAULT, Setting("parallel", alter=parallel, lasting=True))),
    "slopes": ("corrector", (DEFAULT, Setting("other way", {"slopes": True}))),
}  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    """What is in the file already."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, Any]) -> None:
    """One more row, on the disk when this returns."""
    rows = [*rows_of(path), row]
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def config_of(
    kind: str, setting: Setting, seed: int, folder: str, given: argparse.Namespace, **more: Any
) -> TrainConfig:
    """TrainConfig of one run: as many sequences as any other, whatever the batch."""
    known = {each.name for each in fields(TrainConfig)}
    changes = {key: getattr(given, value) if value == "max_tokens" else value for key, value in setting.changes.items()}
    assert set(changes) <= known, f"{setting.name}: TrainConfig has no {sorted(set(changes) - known)}"
    base = {"batch_size": given.batch_size, "max_tokens": given.max_tokens, "corpus": tuple(given.corpus)}
    base |= {"layers": given.layers, "width": given.width, "num_pseudo_tokens": given.num_pseudo_tokens}
    base |= BASE | {"records": given.records, "whiten_on": given.whiten_on}
    merged = base | changes | more
    steps = max(1, given.sequences // merged["batch_size"])
    return TrainConfig(kind, folder, seed=seed, max_steps=steps, checkpoint_minutes=1e9, **merged)  # type: ignore[arg-type]


def shortened(name: str, max_tokens: int, folder: Path) -> Path:
    """A copy of an inverter that writes at most ``max_tokens`` pieces, for correctors of that length to start from."""
    if not folder.exists():
        inverter = Inverter.from_pretrained(name)
        inverter.config.max_tokens = max_tokens
        inverter.save_pretrained(folder)
    return folder


def trained(config: TrainConfig, alter: Callable[[Any], None] | None) -> tuple[float, float]:
    """Train; (seconds, last loss of the curve). ``alter`` changes the model before its first step."""
    build = training.build_model

    def altered(*arguments: Any) -> Any:
        model = build(*arguments)
        if alter is not None:
            alter(model)
        return model

    training.build_model = altered  # type: ignore[assignment]
    began = time.perf_counter()
    try:
        output = train(config, progress=False)
    finally:
        training.build_model = build
    rows = list(csv.DictReader((output / "loss.csv").read_text(encoding="utf-8").splitlines()))
    return time.perf_counter() - began, float(rows[-1]["loss"]) if rows else float("nan")


def scored(
    inverter: Path | str, corrector: Path | None, setting: Setting, embedder: Embedder, given: argparse.Namespace
) -> dict[str, Any]:
    """Greedy inversion of validation passages: their mean scores and the queries spent per text."""
    texts = passages(given.corpus[0], "validation", given.max_tokens, given.n, 0, embedder)
    device = embedder.device
    first = Inverter.from_pretrained(inverter).to(device)
    second = None if corrector is None else Corrector.from_pretrained(corrector).to(device)
    if setting.lasting and setting.alter is not None:
        setting.alter(second or first)
    vectors = embedder.encode(texts)
    steps = 0 if corrector is None else given.rounds
    result = invert(vectors, embedder, first, second, steps=steps, beam_width=1)
    scores = evaluate(texts, result.texts, embedder)
    nats = surprise(texts, torch.from_numpy(vectors).to(device), first, second, embedder)
    return {
        "nats": nats, "bleu": scores.bleu.value, "exact": scores.exact.value, "cosine": scores.cosine.value,
        "queries": float(result.queries.mean()), "n": len(texts),
    }  # fmt: skip


@torch.no_grad()
def surprise(
    texts: list[str], target: torch.Tensor, inverter: Inverter, corrector: Corrector | None, embedder: Embedder
) -> float:
    """Nats per word piece of ``texts`` given their vectors [n, d]; for a corrector, the inverter's guesses too."""
    model = corrector or inverter
    labels = model.to_model_ids(embedder.token_ids(texts))
    inputs: list[torch.Tensor] = [target]
    if corrector is not None:
        written = embedder.decode(inverter.to_embedder_ids(inverter.propose(target).ids[:, 0]))
        guesses = [guess if guess.strip() else "." for guess in written]  # an untrained one may write nothing
        inputs.append(corrector.to_model_ids(embedder.token_ids(guesses)))
        inputs.append(torch.from_numpy(embedder.encode(guesses, truncate=True)).to(target.device))
    with model.eval().autocast():
        return float(model(*inputs, labels))


def plan(given: argparse.Namespace) -> Iterator[tuple[str, str, Setting, int]]:
    """(question, kind, setting, seed), seed by seed, so that a first answer to everything comes early."""
    for seed in given.seeds:
        for question in given.questions:
            kind, settings = QUESTIONS[question]
            for setting in settings:
                # what the command line makes the default is no rival of it
                if setting is DEFAULT or setting.changes != {"batch_size": given.batch_size}:
                    yield question, kind, setting, seed


def shared(given: argparse.Namespace) -> str:
    """Everything that all runs of a call have in common: rows of other calls answer another question."""
    own = {"what", "output", "questions", "seeds"}
    return json.dumps({key: value for key, value in vars(given).items() if key not in own}, sort_keys=True)


def run(given: argparse.Namespace) -> None:
    """Train and score what the file lacks."""
    path = Path(given.output[0])
    embedder = Embedder.from_pretrained(given.embedder)
    inverters: dict[int, Path | str] = {}  # seed -> name or folder
    with tempfile.TemporaryDirectory() as folder:
        for question, kind, setting, seed in plan(given):
            mine = [row for row in rows_of(path) if row["settings"] == shared(given)]
            mine = [row for row in mine if row["seed"] == str(seed) and row["setting"] == setting.name]
            # one run of the default answers every question about its kind
            same = [row for row in mine if row["question"] == question]
            same += [row for row in mine if setting is DEFAULT and row["kind"] == kind]
            about = {"question": question, "setting": setting.name, "seed": seed, "kind": kind}
            about |= {"sequences": given.sequences, "max_tokens": given.max_tokens, "settings": shared(given)}
            if same:
                if same[0]["question"] != question:
                    append(path, same[0] | about)
                continue
            if kind == "corrector" and given.inverter:
                inverters[seed] = shortened(given.inverter, given.max_tokens, Path(folder) / "start")
            elif kind == "corrector" and seed not in inverters:
                inverters[seed] = Path(folder) / f"start-{seed}"
                trained(config_of("inverter", DEFAULT, seed, str(inverters[seed]), given), None)
            output = Path(folder) / f"{kind}-{len(rows_of(path))}"
            more = {"inverter": str(inverters[seed])} if kind == "corrector" else {}
            config = config_of(kind, setting, seed, str(output), given, **more)
            seconds, loss = trained(config, setting.alter)
            first, second = (output, None) if kind == "inverter" else (inverters[seed], output)
            row = about | {"seconds": round(seconds, 1), "loss": loss}
            row |= scored(first, second, setting, embedder, given)
            append(path, row)
            print(f"{question}: {setting.name}, seed {seed}: {row['nats']:.3f} nats, BLEU {row['bleu']:.1f}, "
                  f"exact {row['exact']:.1f} %, {seconds:.0f} s", flush=True)  # fmt: skip


def interval(values: list[float]) -> tuple[float, float, float]:
    """(mean, low, high): Student's t over the seeds; one seed has no interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def table(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One row per question, budget and setting. The decision compares seed by seed with the default."""
    found: list[dict[str, Any]] = []
    keys = ("sequences", "max_tokens", "settings")
    for question, (_, settings) in QUESTIONS.items():
        asked = [row for row in rows if row["question"] == question]
        # the files may hold several budgets; each is a table of its own
        for budget in dict.fromkeys(tuple(row[key] for key in keys) for row in asked):
            runs: dict[str, dict[str, dict[str, str]]] = {}  # setting -> seed -> row
            for row in asked:
                if tuple(row[key] for key in keys) == budget:
                    runs.setdefault(row["setting"], {})[row["seed"]] = row
            base = runs.get(settings[0].name, {})
            for name, by_seed in runs.items():
                nats, low, high = interval([float(row["nats"]) for row in by_seed.values()])
                pairs = [(base[seed], row) for seed, row in by_seed.items() if seed in base]
                gains = [float(one["nats"]) - float(other["nats"]) for one, other in pairs]
                gain, gain_low, gain_high = (round(g, 6) for g in interval(gains)) if gains else (float("nan"),) * 3
                default = name == settings[0].name
                compared = {} if default else {"gain": gain, "gain_low": gain_low, "gain_high": gain_high}
                found.append({
                    "question": question, "setting": name, "budget": f"{budget[0]} sequences, {budget[1]} word pieces",
                    "seeds": len(by_seed), "nats": round(nats, 6), "low": round(low, 6), "high": round(high, 6),
                    "bleu": round(statistics.fmean(float(row["bleu"]) for row in by_seed.values()), 1),
                    "exact": round(statistics.fmean(float(row["exact"]) for row in by_seed.values()), 1),
                    **compared, "decision": "default" if default else decision(gains),
                })  # fmt: skip
    return found


def decision(gains: list[float]) -> str:
    """What the gains over the default, seed by seed, allow one to say."""
    if len(gains) < 2:
        return "one seed: nothing to decide"
    _, low, high = interval(gains)
    return "take it" if low > 0 else "worse: default stays" if high < 0 else "no difference seen"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "list"))
    parser.add_argument("--output", nargs="+", default=["recipe.csv"], help="one file; 'table' takes several")
    parser.add_argument("--questions", nargs="+", choices=tuple(QUESTIONS), default=list(QUESTIONS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sequences", type=int, default=100_000, help="texts each run trains on")
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--layers", type=int, default=TrainConfig.layers)
    parser.add_argument("--width", type=int, default=TrainConfig.width)
    parser.add_argument("--num-pseudo-tokens", type=int, default=TrainConfig.num_pseudo_tokens)
    parser.add_argument("--records", type=float, default=TrainConfig.records)
    parser.add_argument("--whiten-on", type=int, default=TrainConfig.whiten_on)
    parser.add_argument("--corpus", nargs="+", default=["sotu"], help="the first also gives the validation passages")
    parser.add_argument("--inverter", help="all correctors start here, a name or folder; default: one trained a seed")
    parser.add_argument("--embedder", default=TrainConfig.embedder)
    parser.add_argument("--n", type=int, default=200, help="validation passages")
    parser.add_argument("--rounds", type=int, default=5, help="of correction, when a corrector is scored")
    given = parser.parse_args(words)
    if given.what == "run" and len(given.output) > 1:
        parser.error("'run' writes one file; give one --output")
    return given


def main(words: list[str] | None = None) -> int:
    given = parse(words)
    if given.what == "list":
        for question, (kind, settings) in QUESTIONS.items():
            print(f"{question:<16}{kind:<11}{', '.join(setting.name for setting in settings)}")
    elif given.what == "run":
        run(given)
    else:
        writer = csv.DictWriter(sys.stdout, SUMMARY)
        writer.writeheader()
        writer.writerows(table([row for name in given.output for row in rows_of(Path(name))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
