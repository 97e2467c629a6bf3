"""The paper's own checkpoints (Morris et al. 2023), read straight into this library's classes.

    inverter = Inverter.from_pretrained("jxm/gtr__nq__32")
    corrector = Corrector.from_pretrained("jxm/gtr__nq__32__correct")
    embedder = Embedder.from_pretrained(inverter.config.embedder_name)  # gtr-base-mean

A published folder names its tensors ``encoder_decoder.*``, ``embedding_transform[_1|_2|_3].*`` and
``layernorm.*``, in safetensors or in PyTorch files, whole or in shards; it also holds a copy of the embedder,
which is never read. The T5's shape follows from its tensors. *Reproduce the paper* uses these weights.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from tutorial_lib.embedder import canonical_name
from tutorial_lib.errors import CheckpointError

if TYPE_CHECKING:
    from tutorial_lib.modeling import VectorToText

Model = TypeVar("Model", bound="VectorToText")

#: What published configurations call an embedder -> our name. ``gtr_base`` is *not* sentence-transformers'
# GTR.
EMBEDDERS = {"gtr_base": "gtr-base-mean", "gtr_base_st": "gtr-t5-base"}
#: Repositories whose embedder is known whatever their configuration calls it.
_MADE_FOR = {
    "jxm/gtr__nq__32": "gtr-base-mean",
    "jxm/gtr__nq__32__correct": "gtr-base-mean",
    "ielabgroup/vec2text_gtr-base-st_inversion": "gtr-t5-base",
    "ielabgroup/vec2text_gtr-base-st_corrector": "gtr-t5-base",
}
_OURS = ("config.json", "training.json", "SHA256SUMS", "*.safetensors", "*.safetensors.index.json")
_PYTORCH = ("config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
# T5 keeps one table under four names; a file may hold any of them.
_TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def download(name: str, revision: str | None = None) -> Path:
    """Folder with a Hub repository's configuration and weights: safetensors where it has them, else PyTorch
    files.

    Raises :class:`CheckpointError` when it cannot be reached and is not in the local cache.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_OURS)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_PYTORCH)))
    except Exception as error:  # offline, unknown, gated, another revision: the Hub client raises many types
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{name!r}{at} could not be fetched from the Hub ({type(error).__name__}); check the name, the "
            "revision "
            "and the network, or give a folder."
        ) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{name!r} holds no config.json on the Hub; give the name of an inverter or corrector."
        )
    return folder


def is_published(folder: Path) -> bool:
    """Is this folder in the layout of the paper's checkpoints?"""
    return "embedder_model_name" in _config(folder)


def load(cls: type[Model], folder: Path, name: str = "", embedder_name: str | None = None) -> Model:
    """A published inverter or corrector as ``cls``, in float32.

    ``name`` is the Hub name it came from, if any; ``embedder_name`` says which embedder it was made for when
    its configuration does not. Raises :class:`CheckpointError` when files or tensors are missing, damaged,
    unknown, or of the other kind of model.
    """
    settings = _config(folder)
    tensors = dict(_tensors(folder))
    found = "corrector" if "layernorm.weight" in tensors else "inverter"
    if found != cls.kind:
        raise CheckpointError(
            f"{name or folder} holds a published {found}, and a {cls.kind} was asked for; load it with "
            f"{found.capitalize()}.from_pretrained."
        )
    said = str(settings["embedder_model_name"])
    try:
        backbone = t5_fields(tensors)
        name_of = "embedding_transform" if cls.kind == "inverter" else "embedding_transform_1"
        first, last = tensors[f"{name_of}.0.weight"], tensors[f"{name_of}.3.weight"]
        length = int(settings["max_seq_length"]) - 1  # the published limit counts T5's closing </s>
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name or folder} lacks tensors or settings of a published {cls.kind} ({error}); fetch it again."
        ) from error
    config = cls.config_class(
        dimension=first.shape[1],
        num_pseudo_tokens=last.shape[0] // backbone["d_model"],
        embedder_name=embedder_name or _MADE_FOR.get(name) or EMBEDDERS.get(said) or canonical_name(said),
        max_tokens=length,
        backbone=backbone,
        whiten=False,
        own_vocabulary=False,
    )
    with torch.device("meta"):  # no memory, no random numbers: every tensor comes from the files
        model = cls(config)
    try:
        problems = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{name or folder} holds tensors of other shapes than a published {cls.kind} has; give another folder."
        ) from error
    _tie(model)
    missing = [key for key in problems.missing_keys if key.removeprefix("backbone.") not in _TABLES]
    if missing or problems.unexpected_keys:
        raise CheckpointError(
            f"{name or folder} is not a published {cls.kind}: missing {missing[:3]}, unknown "
            f"{problems.unexpected_keys[:3]}; fetch it again, or give another folder."
        )
    model.name_or_path = name or str(folder)
    return model.eval()


def t5_fields(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """T5Config fields of the T5 whose tensors are named ``backbone.*``: all of them follow from shapes."""
    layer = "backbone.encoder.block.0.layer."
    bias = tensors[layer + "0.SelfAttention.relative_attention_bias.weight"]  # [buckets, heads]
    inner, width = tensors[layer + "0.SelfAttention.q.weight"].shape
    gated = layer + "1.DenseReluDense.wi_0.weight" in tensors
    table, head = tensors["backbone.shared.weight"], tensors.get("backbone.lm_head.weight")
    if head is not None and not torch.equal(head, table):
        raise CheckpointError(
            "The output table of this T5 is not its input table (T5 1.1 and later); the published models "
            "build on "
            "the first T5, whose tables are one: give one of those."
        )

    def blocks(side: str) -> int:
        found = [re.match(rf"backbone\.{side}\.block\.(\d+)\.", key) for key in tensors]
        return 1 + max(int(match[1]) for match in found if match)

    return {
        "vocab_size": table.shape[0],
        "d_model": width,
        "d_kv": inner // bias.shape[1],
        "num_heads": bias.shape[1],
        "d_ff": tensors[layer + f"1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"].shape[0],
        "num_layers": blocks("encoder"),
        "num_decoder_layers": blocks("decoder"),
        "relative_attention_num_buckets": bias.shape[0],
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} is not readable JSON; fetch the weights again."
        ) from error


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(our name, float32 tensor) for every tensor of a published folder but the embedder's."""
    files = _files(folder)
    table: Tensor | None = None
    for path in files:
        if not path.is_file():
            raise CheckpointError(
                f"{folder} lacks {path.name}, which its index lists; fetch the weights again."
            )
        try:
            for key, tensor in _read(path):
                yield our_name(key), tensor.float()
                if table is None and key.removeprefix("encoder_decoder.") in _TABLES:
                    table = tensor.float()
        except CheckpointError:
            raise
        except Exception as error:  # a damaged file raises whatever its first broken byte meets
            raise CheckpointError(
                f"{path} is truncated or not a file of plain tensors ({type(error).__name__}); fetch the "
                "weights again."
            ) from error
    if table is not None:
        yield "backbone.shared.weight", table


def our_name(key: str) -> str:
    """Our name of a published tensor: ``encoder_decoder.*`` -> ``backbone.*``; the second Linear is our 3."""
    if key.startswith("encoder_decoder."):
        return "backbone." + key.removeprefix("encoder_decoder.")
    return re.sub(r"^(embedding_transform(?:_[123])?)\.2\.", r"\1.3.", key)


def _files(folder: Path) -> list[Path]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            try:
                files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                return [folder / name for name in sorted(files)]
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{index} is damaged; fetch the weights again.") from error
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
    raise CheckpointError(
        f"{folder} holds neither model.safetensors nor pytorch_model.bin; fetch the weights again."
    )


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one file, the embedder's copy left on disk. A pickle may hold tensors only, never code."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                if not key.startswith("embedder."):
                    yield key, file.get_tensor(key)
        return
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    yield from ((key, tensor) for key, tensor in state.items() if not key.startswith("embedder."))


def _tie(model: VectorToText) -> None:
    """Give T5's one table its other names again; loading by assignment parted them."""
    t5 = model.backbone
    t5.set_input_embeddings(t5.shared)
    t5.lm_head.weight = t5.shared.weight
