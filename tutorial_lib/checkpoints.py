"""Verified weights: where they are, whether they are whole, and what they were made for.

A folder of weights holds ``config.json``, ``model.safetensors`` (never a pickle; from 40 MB on in parts, with an
index), ``SHA256SUMS`` and a model card. Shipped ones lie in ``tutorial_lib/weights/EMBEDDER/inverter`` and
``.../corrector``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from tutorial_lib.cards import SCORES, write_card, write_whole
from tutorial_lib.embedder import canonical_name, sha256_of
from tutorial_lib.errors import CheckpointError

if TYPE_CHECKING:
    from tutorial_lib.modeling import VectorToText

Model = TypeVar("Model", bound="VectorToText")
WEIGHTS = Path(__file__).parent / "weights"
SUMS = "SHA256SUMS"


def shipped(kind: str) -> list[str]:
    """Names of the embedders that weights of this kind are shipped for."""
    return sorted(
        folder.parent.name for folder in WEIGHTS.glob(f"*/{kind}") if (folder / "config.json").exists()
    )


def resolve(name: str, kind: str) -> Path | None:
    """Folder of the weights ``name`` stands for: a folder, or the shipped ones; None when neither exists."""
    folder = Path(name)
    packaged = WEIGHTS / canonical_name(str(name)) / kind
    is_shipped = (packaged / "config.json").is_file()
    # A clone of the embedder may lie here under the very name that weights are shipped for.
    if (folder / "config.json").is_file() and not (is_shipped and _is_foreign(folder)):
        return folder
    if (folder / kind / "config.json").is_file():
        return folder / kind
    return packaged if is_shipped else None


def _is_foreign(folder: Path) -> bool:
    """Does the configuration say that this is no inverter or corrector? An unreadable one says nothing."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    if not isinstance(said, dict):
        return True
    return "embedder_model_name" not in said and not str(said.get("model_type")).startswith("tutorial_lib_")


def verify(folder: Path) -> None:
    """Compare the files that ``SHA256SUMS`` lists; raises :class:`CheckpointError` where one differs."""
    sums = folder / SUMS
    if not sums.exists():
        return
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{sums} is damaged; fetch the weights again.") from error
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks {name}, which {SUMS} lists; fetch the weights again.")
        if sha256_of(path) != digest:
            raise CheckpointError(
                f"{path} is truncated or was altered (its sha256 is not the one in {SUMS}); fetch the "
                "weights again."
            )


def load(
    cls: type[Model],
    name: str | Path,
    *args: Any,
    revision: str | None = None,
    embedder_name: str | None = None,
    **kwargs: Any,
) -> Model:
    """``from_pretrained`` of both model classes: resolve, verify, load in float32 and set to evaluation.

    ``name``: an embedder whose weights are shipped, a folder, or a Hub name (at ``revision``) in this
    library's layout or the paper's; for the latter ``embedder_name`` overrides what its configuration says.
    """
    from tutorial_lib import published
    from tutorial_lib.modeling import VectorToText

    source = resolve(str(name), cls.kind)
    if source is None and (Path(name).exists() or str(name).startswith((".", "/"))):
        raise CheckpointError(f"{name} holds no config.json; give a folder written by save_pretrained.")
    if source is None and "/" not in str(name):
        known = ", ".join(shipped(cls.kind)) or "none"
        raise CheckpointError(
            f"No {cls.kind} is shipped for {str(name)!r}; weights are shipped for: {known}; or give a "
            "folder or a Hub name (owner/name)."
        )
    source = source or published.download(str(name), revision)
    verify(source)
    if published.is_published(source):
        return _of_no_program(published.load(cls, source, str(name), embedder_name))
    kwargs.setdefault("dtype", torch.float32)
    loader = super(VectorToText, cls).from_pretrained  # type: ignore[misc]
    try:
        model, found = loader(source, *args, use_safetensors=True, output_loading_info=True, **kwargs)
    except Exception as error:  # transformers and safetensors raise many types
        raise CheckpointError(
            f"The {cls.kind} in {source} cannot be read ({type(error).__name__}): its files are truncated, "
            "damaged or of another kind; fetch the weights again."
        ) from error
    if found["missing_keys"]:  # transformers would fill them with random numbers
        raise CheckpointError(
            f"{str(source)!r} holds no {cls.kind}: it lacks {len(found['missing_keys'])} of its tensors "
            f"({min(found['missing_keys'])}, ...); give a folder that save_pretrained of this class wrote."
        )
    return _of_no_program(model.eval())


def _of_no_program(model: Model) -> Model:
    """The model, unless its configuration names a Python file or a table as its embedder.

    Whoever opens the embedder that weights name would run what came with them. Weights made for such an embedder
    have its name, not its file.
    """
    from tutorial_lib.cached import is_cached

    if is_cached(model.config.embedder_name):
        raise CheckpointError(
            f"The {model.kind} says that it was made for {model.config.embedder_name!r}, which is a program or a table "
            "and no embedder's name; do not use these weights unless you wrote them, and mend embedder_name if you did."
        )
    return model


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` over the config and weights of a folder."""
    found = (path.name for path in folder.iterdir() if path.suffix in {".safetensors", ".json"})
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in sorted(found) if name != SCORES]
    write_whole(folder / SUMS, "".join(lines))  # half a list would condemn good weights


def save_finished(model: VectorToText, folder: Path, run: dict[str, Any]) -> None:
    """Write a finished training run: bfloat16 weights, the run's settings and the sums."""
    whitening = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(torch.bfloat16)
    for name, buffer in whitening.items():  # a whitened difference needs all its digits
        model.get_submodule(name.rpartition(".")[0]).register_buffer(name.rpartition(".")[2], buffer)
    # The sums of an earlier end of this run would call the new weights altered if it were killed in between.
    (folder / SUMS).unlink(missing_ok=True)
    model.save_pretrained(folder, max_shard_size="40MB")
    write_whole(folder / "training.json", json.dumps(run, indent=1, default=str) + "\n")
    write_sums(folder)
    write_card(folder)
