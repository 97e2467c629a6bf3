"""Vector -> first guess: the base model of vec2text (Morris et al. 2023, section 3), generic over dimension.

Explained, and trained live, in chapter 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutorial_lib.modeling import Candidates, InversionConfig, VectorToText, pseudo_token_mlp


class InverterConfig(InversionConfig):
    """Configuration of an :class:`Inverter`."""

    model_type = "tutorial_lib_inverter"


class Inverter(VectorToText):
    """Writes a text from its embedding alone: p(x | e).

    ``embedding_transform`` takes a whitened vector [d] to ``num_pseudo_tokens`` encoder inputs [k, width]; see
    :class:`VectorToText` for the other tensors.
    """

    config_class = InverterConfig
    kind = "inverter"

    def __init__(self, config: InverterConfig) -> None:
        super().__init__(config)
        width = self.backbone.config.d_model
        self.embedding_transform = pseudo_token_mlp(config.dimension, width, config.num_pseudo_tokens)
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Inverter:
        """Load by the embedder's name (shipped weights), from a folder, or from the Hub.

        Raises :class:`CheckpointError` when the files are missing, truncated or altered.
        """
        from tutorial_lib.checkpoints import load

        return load(cls, name, *args, **kwargs)

    def encoder_inputs(self, embeddings: Tensor) -> Tensor:
        """[n, d] -> pseudo-tokens [n, k, width]."""
        pseudo = self.embedding_transform(self.whitened(embeddings))
        return pseudo.view(len(embeddings), self.config.num_pseudo_tokens, -1)

    def forward(self, embeddings: Tensor, labels: Tensor, sampled: int = 0) -> Tensor:
        """Training loss: embeddings [n, d], labels (model ids) [n, t] -> scalar, nats per token."""
        return self.decode_loss(self.encoder_inputs(embeddings), None, labels, sampled)

    def propose(
        self,
        embeddings: Tensor,
        *,
        candidates: int = 1,
        beams: int = 1,
        temperature: float = 0.0,
        max_tokens: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """Guess texts for vectors [n, d]: ``candidates`` each, by beam search or sampling (with the random numbers of
        ``generator``, or PyTorch's own)."""
        with self.autocast():
            inputs = self.encoder_inputs(embeddings)
        length = max_tokens or self.config.max_tokens
        return self._generate(inputs, None, beams, candidates, temperature, length, generator=generator)
