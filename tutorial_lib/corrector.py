"""(target vector, guess) -> better guess: the corrector of vec2text (Morris et al. 2023, section 4).

    [SEP] MLP1(e) [SEP] MLP3(ê) [SEP] MLP2(e - ê) [SEP] tokens of the guess  --LayerNorm--> encoder -> decoder

where e is the target's embedding and ê the guess's own. Chapter 3 explains why the difference matters.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tutorial_lib.modeling import Candidates, InversionConfig, VectorToText, pseudo_token_mlp

Blind = Literal["", "difference", "feedback"]


class CorrectorConfig(InversionConfig):
    """Configuration of a :class:`Corrector`; ``blind`` takes channels away for the ablation of chapter 3.

    ``"difference"`` zeroes e - ê; ``"feedback"`` zeroes e - ê and ê, so that the guess is seen without its
    embedding (the paper's ablation). Training takes them away now and then (``TrainConfig.blinded``), so that
    weights with a channel withheld are not asked for something they never saw.
    """

    model_type = "tutorial_lib_corrector"

    blind: str = ""


class Corrector(VectorToText):
    """Writes a better text from a target embedding, a guess and the guess's embedding: p(x | e, guess, ê).

    ``embedding_transform_1``, ``_2`` and ``_3`` take e, e - ê and ê (whitened, [d]) to ``num_pseudo_tokens``
    encoder inputs each; ``layernorm`` [width] normalises the whole input sequence.
    """

    config_class = CorrectorConfig
    config: CorrectorConfig
    kind = "corrector"

    def __init__(self, config: CorrectorConfig) -> None:
        super().__init__(config)
        width, k = self.backbone.config.d_model, config.num_pseudo_tokens
        self.embedding_transform_1 = pseudo_token_mlp(config.dimension, width, k)
        self.embedding_transform_2 = pseudo_token_mlp(config.dimension, width, k)
        self.embedding_transform_3 = pseudo_token_mlp(config.dimension, width, k)
        self.layernorm = nn.LayerNorm(width)
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Corrector:
        """Load by the embedder's name (shipped weights), from a folder, or from the Hub.

        Raises :class:`CheckpointError` when the files are missing, truncated or altered.
        """
        from tutorial_lib.checkpoints import load

        return load(cls, name, *args, **kwargs)

    #: What each kind of blindness leaves of (e - ê, ê).
    LEFT: ClassVar[dict[str, tuple[float, float]]] = {
        "": (1.0, 1.0), "difference": (0.0, 1.0), "feedback": (0.0, 0.0),
    }  # fmt: skip

    def encoder_inputs(
        self, target: Tensor, guess: Tensor, guess_embedding: Tensor, left: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """e [n, d], guess [n, t], ê [n, d] -> inputs [n, 4 + 3k + t, width] and their mask [n, 4 + 3k + t].

        ``left`` [n, 2] scales the channels e - ê and ê of each row; by default all follow ``config.blind``.
        """
        n = len(target)
        if left is None:
            left = torch.tensor([self.LEFT[self.config.blind]], device=target.device)
        e, ê = self.whitened(target), self.whitened(guess_embedding)
        difference = (e - ê) * left[:, :1]
        ê = ê * left[:, 1:]

        def tokens(transform: nn.Module, vector: Tensor) -> Tensor:
            return transform(vector).view(n, self.config.num_pseudo_tokens, -1)

        table = self.backbone.get_input_embeddings()
        mark = table(torch.full((n, 1), self.end, device=guess.device))  # [n, 1, width]
        parts = [
            mark, tokens(self.embedding_transform_1, e),
            mark, tokens(self.embedding_transform_3, ê),
            mark, tokens(self.embedding_transform_2, difference),
            mark, table(guess),
        ]  # fmt: skip
        inputs = self.layernorm(torch.cat([part.to(mark.dtype) for part in parts], dim=1))
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=guess.device)
        mask[:, -guess.shape[1] :] = (guess != self.pad).long()
        return inputs, mask

    def forward(
        self,
        target: Tensor,
        guess: Tensor,
        guess_embedding: Tensor,
        labels: Tensor,
        sampled: int = 0,
        left: Tensor | None = None,
    ) -> Tensor:
        """Training loss: e [n, d], guess ids [n, t], ê [n, d], labels [n, t'] -> scalar, nats per token."""
        inputs, mask = self.encoder_inputs(target, guess, guess_embedding, left)
        return self.decode_loss(inputs, mask, labels, sampled)

    def propose(
        self,
        target: Tensor,
        guess: Tensor,
        guess_embedding: Tensor,
        *,
        candidates: int = 1,
        beams: int = 1,
        temperature: float = 0.0,
        max_tokens: int | None = None,
    ) -> Candidates:
        """Correct guesses: e [n, d], guess ids [n, t], ê [n, d] -> ``candidates`` texts each."""
        with self.autocast():
            inputs, mask = self.encoder_inputs(target, guess, guess_embedding)
        return self._generate(
            inputs, mask, beams, candidates, temperature, max_tokens or self.config.max_tokens
        )
