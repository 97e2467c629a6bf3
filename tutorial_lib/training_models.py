"""What a run starts from: a fresh inverter, or a corrector that begins as its inverter; and what updates them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tutorial_lib.corrector import Corrector, CorrectorConfig
from tutorial_lib.errors import CheckpointError, TutorialError
from tutorial_lib.inverter import Inverter, InverterConfig
from tutorial_lib.modeling import VectorToText, build_vocabulary, fast_dtype, small_backbone
from tutorial_lib.training_data import Windows, embed_model_ids, special_ids

if TYPE_CHECKING:
    from tutorial_lib.embedder import Embedder
    from tutorial_lib.training import TrainConfig

_UNKNOWN = 0.01  # share of the training text's word pieces that a corrector may lack without a word


def build_model(config: TrainConfig, embedder: Embedder, windows: Windows) -> VectorToText:
    """A fresh model whose token table starts from the embedder's; a corrector starts from its inverter.

    With ``config.begin_from``, every tensor those weights hold is taken from them.
    """
    model = _fresh_model(config, embedder, windows)
    if config.begin_from is not None:
        start = type(model).from_pretrained(config.begin_from)
        known = start.state_dict()
        _check_start(config.begin_from, start, model)
        try:
            left = model.load_state_dict(known, strict=False)
        except RuntimeError as error:
            raise CheckpointError(
                f"{config.begin_from} has other shapes than these settings ask for; give the settings it was made with."
            ) from error
        if left.unexpected_keys:
            raise CheckpointError(f"{config.begin_from} holds tensors this model lacks: {left.unexpected_keys}.")
    return model


def _check_start(name: str, start: VectorToText, model: VectorToText) -> None:
    """Raises :class:`CheckpointError` for weights of another embedder, or that write other word pieces."""
    if start.config.embedder_name != model.config.embedder_name:
        raise CheckpointError(
            f"{name} was made for {start.config.embedder_name}, not for {model.config.embedder_name}; give weights of "
            "this embedder."
        )
    # Their order may differ: it is by counts, which other records change.
    if start.config.own_vocabulary and not torch.equal(start.vocabulary.sort()[0], model.vocabulary.sort()[0]):
        raise CheckpointError(
            f"{name} writes other word pieces than the training text has; give the corpus it was made with."
        )


def _fresh_model(config: TrainConfig, embedder: Embedder, windows: Windows) -> VectorToText:
    if config.kind == "corrector":
        return _corrector_from(config, embedder, windows)
    special, _ = special_ids(embedder)
    vocabulary = build_vocabulary(windows.counts(len(embedder.tokenizer)), special)
    model = Inverter(
        InverterConfig(
            dimension=embedder.dimension,
            num_pseudo_tokens=config.num_pseudo_tokens,
            embedder_name=embedder.name,
            max_tokens=config.max_tokens,
            backbone=small_backbone(len(vocabulary), config.width, config.layers),
        )
    )
    model.vocabulary.copy_(torch.from_numpy(vocabulary))
    table = embedder.transformer.get_input_embeddings().weight.detach().float().cpu()[vocabulary]
    if table.shape[1] == config.width:
        # T5 expects a table of unit variance, MiniLM's is twenty times smaller.
        with torch.no_grad():
            model.backbone.get_input_embeddings().weight.copy_((table - table.mean()) / table.std())
    _fit_whitening(model, config, embedder, windows)
    return model


def _fit_whitening(model: VectorToText, config: TrainConfig, embedder: Embedder, windows: Windows) -> None:
    rng = np.random.default_rng([config.seed, 1])
    _, start = special_ids(embedder)
    device, parts = embedder.device, []
    at_once = min(512, config.whiten_on)
    for _ in range(-(-config.whiten_on // at_once)):
        ids = windows.model_ids(rng, at_once, model)
        parts.append(embed_model_ids(ids.to(device), model.vocabulary.to(device), embedder, start).cpu())
    vectors = torch.cat(parts).double()
    mean = vectors.mean(0)
    values, basis = torch.linalg.eigh(torch.cov((vectors - mean).T))
    # A floor keeps directions that hold no text (an embedder of low rank) from being blown up.
    scale = values.clamp_min(values.max() * 1e-6).rsqrt()
    model.whiten_mean.copy_(mean.float())
    model.whiten_matrix.copy_((basis * scale).float())


def _corrector_from(config: TrainConfig, embedder: Embedder, windows: Windows) -> Corrector:
    assert config.inverter is not None
    inverter = Inverter.from_pretrained(config.inverter)
    if inverter.config.embedder_name != embedder.name:
        raise CheckpointError(
            f"The inverter {config.inverter!r} was made for {inverter.config.embedder_name}, not for "
            f"{embedder.name}."
        )
    if not inverter.config.own_vocabulary:
        raise CheckpointError(
            f"The inverter {config.inverter!r} is in the published layout, which is read here and not "
            "trained; train an inverter first."
        )
    if inverter.config.max_tokens != config.max_tokens:
        raise TutorialError(
            f"The inverter {config.inverter!r} was trained for {inverter.config.max_tokens} word pieces, not "
            f"{config.max_tokens}; leave --max-tokens out, or give an inverter of that length."
        )
    _warn_of_unknown(inverter, windows, len(embedder.tokenizer))
    shared = {key: value for key, value in inverter.config.to_dict().items() if key in _SHARED_FIELDS}
    width = embedder.transformer.get_input_embeddings().weight.shape[1] if config.slopes else 0
    if config.slopes and not width:
        raise TutorialError(f"{embedder.name} is known by its vectors alone and has no gradient; leave --slopes out.")
    model = Corrector(CorrectorConfig(blind=config.blind, aligned=True, slope_width=width, **shared))
    known = inverter.state_dict()
    own = model.state_dict()
    start = {key: value for key, value in known.items() if key in own}
    for name in ("1", "2", "3"):
        start |= {
            key.replace("embedding_transform", f"embedding_transform_{name}"): value
            for key, value in known.items()
            if key.startswith("embedding_transform.")
        }
    model.load_state_dict(start, strict=False)
    with torch.no_grad():  # begin as the inverter, but for a hint of the guess: nothing it knows is lost
        for feedback in (model.embedding_transform_2[-1], model.embedding_transform_3[-1]):
            feedback.weight.zero_()
            feedback.bias.zero_()
        width = model.backbone.config.d_model
        model.align.weight.zero_()
        model.align.weight[:, width : 2 * width] = 0.1 * torch.eye(width)
        if config.slopes:
            model.slope_transform.weight.zero_()
    return model


def _warn_of_unknown(inverter: Inverter, windows: Windows, size: int) -> None:
    """Say how much of the training text an inverter, and so a corrector that begins as it, cannot write."""
    counts = windows.counts(size)
    unknown = 1 - counts[inverter.vocabulary.cpu().numpy()].sum() / max(1, counts.sum())
    if unknown > _UNKNOWN:
        warnings.warn(
            f"{unknown:.1%} of the word pieces of the training text are none that the inverter can write, and no text "
            "that holds one can come back: give the inverter that was trained on this text.",
            stacklevel=2,
        )


_SHARED_FIELDS = (
    "dimension", "num_pseudo_tokens", "embedder_name", "max_tokens", "backbone", "whiten", "own_vocabulary",
)  # fmt: skip


def optimizers(model: torch.nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for tables, norms and biases; Muon (Jordan 2024) for the matrices between, unless ``adamw``."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "shared" not in name and "relative_attention_bias" not in name
        inner = inner and "lm_head" not in name and "embed_tokens" not in name
        (matrices if inner else others).append(parameter)
    if config.optimizer == "adamw":
        matrices, others = [], matrices + others
    adam = torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    if not matrices:
        return [adam]
    muon = Muon(
        matrices, lr=config.matrix_learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, muon]


class Muon(torch.optim.Muon):
    """PyTorch's Muon (Jordan 2024), in float32 on hardware that has no bfloat16.

    PyTorch turns every update into an orthogonal matrix in bfloat16, which a processor without such units only
    emulates: a product there takes forty times as long as in float32, and the optimiser longer than all the rest of a
    step. State and settings are PyTorch's, so a run may go on on another machine.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every matrix [a, b] that has a gradient."""
        devices = {parameter.device for group in self.param_groups for parameter in group["params"]}
        if all(fast_dtype(device) == torch.bfloat16 for device in devices):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state, grad = self.state[matrix], matrix.grad
                average = state.setdefault("momentum_buffer", torch.zeros_like(grad))
                average.lerp_(grad, 1 - group["momentum"])
                update = grad.lerp(average, group["momentum"])  # Nesterov's
                update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)  # as large as AdamW's
        return loss


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The nearest matrix [a, b] with all singular values about 1 (0.7 to 1.2), by ``steps`` of Newton and Schulz."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    out = wide / wide.norm().clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = out @ out.T
        out = torch.addmm(out, torch.addmm(gram, gram, gram, beta=b, alpha=c), out, beta=a)
    return out if wide is matrix else out.T
