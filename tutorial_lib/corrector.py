"""(target vector, guess) -> better guess: the corrector of vec2text (Morris et al. 2023, section 4).

    the paper's   [SEP] MLP1(e) [SEP] MLP3(ê) [SEP] MLP2(e - ê) [SEP] guess  --LayerNorm--> encoder -> decoder
    ours          MLP1(e) + MLP2(e - ê) + MLP3(ê)  --> encoder -> decoder <-- guess, place by place

where e is the target's embedding and ê the guess's own. Ours begins as the inverter, exactly, and is four times
shorter; published checkpoints are read in the paper's layout. If the weights were trained so, each token of the guess
also carries a *slope*: the gradient of cos(e, ê) at its input embedding, which only an attacker who holds the
embedder's weights can know. Chapter 3 explains why the difference matters.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tutorial_lib.modeling import Candidates, InversionConfig, VectorToText, pseudo_token_mlp

Blind = Literal["", "slope", "difference", "feedback"]


class CorrectorConfig(InversionConfig):
    """Configuration of a :class:`Corrector`; ``blind`` takes channels away for the ablation of chapter 3.

    ``"slope"`` zeroes the slopes (what is left is a black-box attack); ``"difference"`` zeroes e - ê in both its
    forms, as a vector and as slopes; ``"feedback"`` zeroes ê as well, so that the guess is seen without its
    embedding (the paper's ablation). Training takes them away now and then (``TrainConfig.blinded``), so that
    weights with a channel withheld are not asked for something they never saw.
    """

    model_type = "tutorial_lib_corrector"

    blind: str = ""
    aligned: bool = False  # guess in the decoder, place by place, instead of the paper's layout: ours are so
    slope_width: int = 0  # values per token of the embedder's input, if the corrector reads slopes; 0: it does not


class Corrector(VectorToText):
    """Writes a better text from a target embedding, a guess and the guess's embedding: p(x | e, guess, ê).

    ``embedding_transform_1``, ``_2`` and ``_3`` take e, e - ê and ê (whitened, [d]) to ``num_pseudo_tokens``
    encoder inputs each. In the paper's layout these and the guess's tokens follow each other, and ``layernorm``
    [width] normalises them. Ours (``aligned``) adds them up, and ``align`` takes a place of the guess and its two
    neighbours [3 width] to what the decoder sees at that place [width]. ``slope_transform`` (if the weights read
    slopes) takes a token's slope [slope_width] to what is added to that token [width].
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
        if config.slope_width:
            self.slope_transform = nn.Linear(config.slope_width, width, bias=False)
        if config.aligned:
            self.align = nn.Linear(3 * width, width, bias=False)
        else:
            self.layernorm = nn.LayerNorm(width)
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Corrector:
        """Load by the embedder's name (shipped weights), from a folder, or from the Hub.

        Raises :class:`CheckpointError` when the files are missing, truncated or altered.
        """
        from tutorial_lib.checkpoints import load

        return load(cls, name, *args, **kwargs)

    #: What each kind of blindness leaves of (e - ê, ê, slopes).
    LEFT: ClassVar[dict[str, tuple[float, float, float]]] = {
        "": (1.0, 1.0, 1.0), "slope": (1.0, 1.0, 0.0), "difference": (0.0, 1.0, 0.0), "feedback": (0.0, 0.0, 0.0),
    }  # fmt: skip

    @property
    def reads_slopes(self) -> bool:
        """Does :meth:`propose` make use of slopes?"""
        return bool(self.config.slope_width) and bool(self.LEFT[self.config.blind][2])

    def encoder_inputs(
        self,
        target: Tensor,
        guess: Tensor,
        guess_embedding: Tensor,
        slope: Tensor | None = None,
        left: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """e [n, d], guess [n, t], ê [n, d] -> encoder inputs and their mask.

        In the paper's layout inputs [n, 4 + 3k + t, width] and mask [n, 4 + 3k + t]. Aligned weights add the three
        vectors up to k pseudo-tokens instead, [n, k, width] without a mask, and leave the guess to the decoder.

        ``slope`` [n, t, slope_width] is the gradient of the cosine at each token of the guess, of any length (it is
        scaled here); None withholds it. ``left`` [n, 3] scales the channels e - ê, ê and slope of each row; by
        default all follow ``config.blind``.
        """
        n = len(target)
        if left is None:
            left = torch.tensor([self.LEFT[self.config.blind]], device=target.device)
        e, ê = self.whitened(target), self.whitened(guess_embedding)
        difference = (e - ê) * left[:, :1]
        ê = ê * left[:, 1:2]

        def tokens(transform: nn.Module, vector: Tensor) -> Tensor:
            return transform(vector).view(n, self.config.num_pseudo_tokens, -1)

        if self.config.aligned:
            fused = tokens(self.embedding_transform_1, e) + tokens(self.embedding_transform_2, difference)
            return fused + tokens(self.embedding_transform_3, ê), None
        table = self.backbone.get_input_embeddings()
        mark = table(torch.full((n, 1), self.end, device=guess.device))  # [n, 1, width]
        words = self._words(guess, slope, left)
        parts = [
            mark, tokens(self.embedding_transform_1, e),
            mark, tokens(self.embedding_transform_3, ê),
            mark, tokens(self.embedding_transform_2, difference),
            mark, words,
        ]  # fmt: skip
        inputs = self.layernorm(torch.cat([part.to(mark.dtype) for part in parts], dim=1))
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=guess.device)
        mask[:, -guess.shape[1] :] = (guess != self.pad).long()
        return inputs, mask

    def decoder_inputs(self, guess: Tensor, slope: Tensor | None = None, left: Tensor | None = None) -> Tensor | None:
        """Guess [n, t] -> what the decoder sees beside its own last word [n, t, width]; None if not aligned.

        A T5 has no notion of "the same place in the other sequence"; learning to copy a guess through attention
        takes it longer than all of a small budget, and until then it ignores the guess (chapter 3).
        """
        if not self.config.aligned:
            return None
        words = self._words(guess, slope, left) * (guess != self.pad)[:, :, None]
        before, after = functional.pad(words, (0, 0, 1, 0))[:, :-1], functional.pad(words, (0, 0, 0, 1))[:, 1:]
        return self.align(torch.cat([before, words, after], dim=2))

    def _words(self, guess: Tensor, slope: Tensor | None, left: Tensor | None) -> Tensor:
        """[n, t] -> the guess's token embeddings, with their slopes, [n, t, width]."""
        words = self.backbone.get_input_embeddings()(guess)
        if slope is None or not self.config.slope_width:
            return words
        seen = self.LEFT[self.config.blind][2] if left is None else left[:, 2:, None]
        return words + self.slope_transform(unit_slopes(slope) * seen).to(words.dtype)

    def forward(
        self,
        target: Tensor,
        guess: Tensor,
        guess_embedding: Tensor,
        labels: Tensor,
        slope: Tensor | None = None,
        sampled: int = 0,
        left: Tensor | None = None,
    ) -> Tensor:
        """Training loss: e [n, d], guess ids [n, t], ê [n, d], labels [n, t'] -> scalar, nats per token."""
        inputs, mask = self.encoder_inputs(target, guess, guess_embedding, slope, left)
        return self.decode_loss(inputs, mask, labels, sampled, aligned=self.decoder_inputs(guess, slope, left))

    def propose(
        self,
        target: Tensor,
        guess: Tensor,
        guess_embedding: Tensor,
        slope: Tensor | None = None,
        *,
        candidates: int = 1,
        beams: int = 1,
        temperature: float = 0.0,
        max_tokens: int | None = None,
    ) -> Candidates:
        """Correct guesses: e [n, d], guess ids [n, t], ê [n, d], slopes [n, t, w] -> ``candidates`` texts each."""
        with self.autocast():
            inputs, mask = self.encoder_inputs(target, guess, guess_embedding, slope)
            aligned = self.decoder_inputs(guess, slope)
        length = max_tokens or self.config.max_tokens
        return self._generate(inputs, mask, beams, candidates, temperature, length, aligned)

    @torch.no_grad()
    def next_pieces(self, target: Tensor, guess: Tensor, guess_embedding: Tensor) -> Tensor:
        """e [n, d], guess ids [n, t], ê [n, d] -> log-probabilities float32 [n, t, V]: what the corrector would write
        at each place of the guess, had it written the guess up to there."""
        with self.autocast():
            inputs, mask = self.encoder_inputs(target, guess, guess_embedding)
            hidden = self.decoder_states(self.encode(inputs, mask), mask, guess, self.decoder_inputs(guess))
            logits = self.backbone.lm_head(hidden)
        return logits.float().log_softmax(2)


def unit_slopes(slope: Tensor) -> Tensor:
    """[n, t, w] -> the same with a root mean square of 1 over each text, so that a near miss still shows."""
    size = slope.float().square().mean(dim=(1, 2), keepdim=True).sqrt()
    return (slope.float() / size.clamp_min(1e-20)).to(slope.dtype)
