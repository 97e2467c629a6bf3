"""What the inverter and the corrector share: a vector becomes pseudo-tokens, and a transformer writes text.

    e [n, d] --whiten--> [n, d] --MLP--> k pseudo-tokens [n, k, width] --encoder-decoder--> word pieces

The backbone is any T5 that ``transformers`` can build; it works in the embedder's own vocabulary (or the part
of it that training text used), so "exact match" compares like with like. Chapter 2 explains the design.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from tutorial_lib.beam import beam_search
from tutorial_lib.errors import VectorError

#: Model ids of the special tokens, the same in every vocabulary built by :func:`build_vocabulary`.
PAD, START, END, UNKNOWN = 0, 1, 2, 3
T5_UNKNOWN = 2  # in T5's own vocabulary, which published checkpoints write in


@dataclass(frozen=True)
class Candidates:
    """Texts proposed for n vectors, m each, as model ids.

    ``ids`` int64 [n, m, t], padded with ``PAD`` after ``END``; ``scores`` float32 [n, m], log-probability per
    token (zero when sampled, or from a single beam).
    """

    ids: Tensor
    scores: Tensor


class InversionConfig(PretrainedConfig):
    """Shape of an inverter or corrector, and which embedder it was made for."""

    model_type = "tutorial_lib_inversion"

    dimension: int = 384  # values per embedding
    num_pseudo_tokens: int = 8  # encoder positions each vector becomes
    embedder_name: str = "all-MiniLM-L6-v2"
    max_tokens: int = 32  # content word pieces the weights were trained for
    backbone: dict | None = None  # T5Config fields
    whiten: bool = True  # does the checkpoint hold a whitening matrix?
    own_vocabulary: bool = True  # does it hold a list of the embedder's token ids it can write?

    def t5(self) -> T5Config:
        """The backbone's own configuration."""
        fields = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": START}
        fields |= self.backbone or {}
        config = T5Config(**fields)
        # On short sequences the plain attention is faster than the fused kernel, on CPUs by half.
        config._attn_implementation = "eager"
        return config


def small_backbone(vocabulary: int, width: int = 384, layers: int = 3) -> dict[str, Any]:
    """T5Config fields of a small encoder-decoder: ``layers`` each side, ``width`` wide, heads of 64."""
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": min(64, width),
        "num_heads": max(1, width // 64),
        "d_ff": 4 * width,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "dropout_rate": 0.0,  # every window is seen about once, so there is nothing to regularise
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "relative_attention_max_distance": 64,
    }


def pseudo_token_mlp(dimension: int, width: int, count: int) -> nn.Sequential:
    """d -> d -> count x width, the paper's projection (numbered as its newer checkpoints number it)."""
    return nn.Sequential(
        nn.Linear(dimension, dimension), nn.Dropout(0.0), nn.GELU(), nn.Linear(dimension, width * count)
    )


def build_vocabulary(counts: np.ndarray, special: Sequence[int], minimum: int = 1) -> np.ndarray:
    """int32 [V]: embedder token ids, the four special ones first, then by falling count in training text.

    ``counts`` int [embedder vocabulary]; ``special`` gives the embedder's ids of padding, start, end,
    unknown.
    """
    order = np.argsort(-counts, kind="stable")
    chosen = order[(counts[order] >= minimum) & ~np.isin(order, special)]
    return np.concatenate([np.asarray(special), chosen]).astype(np.int32)


class AlignedT5(T5ForConditionalGeneration):
    """A T5 whose decoder may be shown something at each place, beside the word it wrote last."""

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, aligned: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in T5; ``aligned`` [n, t, width] is added to the decoder's input embeddings place by place."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if aligned is not None:
            ids = inputs.pop("decoder_input_ids")
            words = self.get_input_embeddings()(ids)
            end = input_ids.shape[1]
            inputs["decoder_inputs_embeds"] = words + aligned[:, end - ids.shape[1] : end].to(words.dtype)
        return inputs


class VectorToText(PreTrainedModel):
    """Base of :class:`Inverter` and :class:`Corrector`: whitening, vocabulary, loss and generation.

    Tensors: ``whiten_mean`` [d] and ``whiten_matrix`` [d, d] take training embeddings to zero mean and unit
    covariance; ``vocabulary`` int32 [V] gives the embedder's id of each model id; ``backbone`` is the T5.
    """

    config_class = InversionConfig
    base_model_prefix = "backbone"
    main_input_name = "embeddings"
    _supports_sdpa = True
    config: InversionConfig
    kind: ClassVar[str]  # "inverter" or "corrector": names the folder weights are kept in

    def __init__(self, config: InversionConfig) -> None:
        super().__init__(config)
        t5 = config.t5()
        self.backbone = AlignedT5(t5)
        d = config.dimension
        if config.whiten:
            self.register_buffer("whiten_mean", torch.zeros(d))
            self.register_buffer("whiten_matrix", torch.eye(d))
        if config.own_vocabulary:
            self.register_buffer("vocabulary", torch.arange(t5.vocab_size, dtype=torch.int32))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The backbone initialises itself; the projections keep PyTorch's defaults.
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()

    # ---- vectors ------------------------------------------------------------------------------------------

    def whitened(self, embeddings: Tensor) -> Tensor:
        """[n, d] -> [n, d], float32: decorrelated, so that the small directions that hold word order count.

        Chapter 2 shows how uneven MiniLM's directions are.
        """
        if not self.config.whiten:
            return embeddings.float()
        with torch.autocast(embeddings.device.type, enabled=False):
            return (embeddings.float() - self.whiten_mean.float()) @ self.whiten_matrix.float()

    def check_vectors(self, embeddings: Any) -> Tensor:
        """float32 tensor [n, d] on the model's device. Raises :class:`VectorError` for anything else."""
        try:
            array = torch.as_tensor(embeddings if isinstance(embeddings, Tensor) else np.asarray(embeddings))
        except (TypeError, ValueError) as error:  # strings, objects, rows of unequal length
            raise VectorError(
                "Vectors must be one array of numbers, a row each; check what was given."
            ) from error
        if array.is_complex():
            raise VectorError("Vectors of complex numbers were given; embeddings are real numbers.")
        d = self.config.dimension
        if array.ndim != 2 or array.shape[1] != d:
            raise VectorError(
                f"Vectors of shape {tuple(array.shape)} were given; this {self.kind} was made for "
                f"{self.config.embedder_name} and takes shape [n, {d}]."
            )
        array = array.to(self.device, torch.float32)
        bad = ~torch.isfinite(array).all(1)
        if bad.any():
            raise VectorError(
                f"Vector {int(bad.nonzero()[0])} holds NaN or infinity; remove such rows first."
            )
        zero = (array == 0).all(1)
        if zero.any():
            raise VectorError(
                f"Vector {int(zero.nonzero()[0])} is all zeros, which no text embeds to; remove it."
            )
        return array

    # ---- token ids ----------------------------------------------------------------------------------------

    def to_model_ids(self, ids: Sequence[Sequence[int]], length: int | None = None) -> Tensor:
        """Embedder ids (ragged) -> model ids int64 [n, t], each row closed by ``END`` and padded.

        Ids outside the vocabulary become ``UNKNOWN``.
        """
        length = length or max((len(row) for row in ids), default=0) + 1
        out = np.full((len(ids), length), self.pad, dtype=np.int64)
        rows = [np.asarray(source[: length - 1], dtype=np.int64) for source in ids]
        mapped = self._model_ids_of(np.concatenate([*rows, np.zeros(0, dtype=np.int64)]))
        offset = 0
        for row, source in enumerate(rows):
            out[row, : len(source)] = mapped[offset : offset + len(source)]
            out[row, len(source)] = self.end
            offset += len(source)
        return torch.from_numpy(out).to(self.device)

    def to_embedder_ids(self, ids: Tensor) -> list[list[int]]:
        """Model ids int [n, t] -> ragged embedder ids, special tokens left out, cut at the first ``END``."""
        table = self.vocabulary.cpu().numpy() if self.config.own_vocabulary else None
        rows = ids.cpu().numpy()
        out = []
        for row in rows:
            stop = np.flatnonzero(row == self.end)
            kept = row[: stop[0]] if len(stop) else row
            kept = kept[~np.isin(kept, self.special)]
            out.append((table[kept] if table is not None else kept).tolist())
        return out

    @property
    def pad(self) -> int:
        return int(self.backbone.config.pad_token_id)

    @property
    def end(self) -> int:
        return int(self.backbone.config.eos_token_id)

    @property
    def special(self) -> list[int]:
        """Model ids that stand for no piece of text."""
        unknown = [UNKNOWN] if self.config.own_vocabulary else []
        return [self.pad, self.end, int(self.backbone.config.decoder_start_token_id), *unknown]

    def _model_ids_of(self, ids: np.ndarray) -> np.ndarray:
        """Embedder ids int64 [t] -> model ids; the unknown one for those this model cannot write."""
        if not self.config.own_vocabulary:
            return np.where(ids < self.backbone.config.vocab_size, ids, T5_UNKNOWN)
        vocabulary = self.vocabulary.cpu().numpy()
        table = np.full(max(int(vocabulary.max()), int(ids.max(initial=0))) + 1, UNKNOWN, dtype=np.int64)
        table[vocabulary] = np.arange(len(vocabulary))
        return table[ids]

    # ---- training -----------------------------------------------------------------------------------------

    def decode_loss(
        self,
        inputs: Tensor,
        mask: Tensor | None,
        labels: Tensor,
        sampled: int = 0,
        frequent: int = 2048,
        aligned: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy (nats per token) of ``labels`` [n, t] given encoder inputs [n, s, width].

        ``aligned`` [n, t', width] is added to the decoder's inputs place by place (cut or padded to t).

        With ``sampled`` > 0 the softmax runs over the batch's own tokens, the ``frequent`` most common ones
        and that many others drawn at random, whose logits are raised by the log of how many each stands for:
        an unbiased estimate of the full sum at a quarter of the cost.
        """
        encoded = self.encode(inputs, mask)
        keep = labels != self.pad
        hidden = self.decoder_states(encoded, mask, labels, aligned)[keep]  # [m, width]
        targets = labels[keep]  # [m]
        weight = self.backbone.lm_head.weight
        total = len(weight)
        if not sampled or frequent + sampled >= total:
            return functional.cross_entropy((hidden @ weight.T.to(hidden.dtype)).float(), targets)
        present = torch.zeros(total, dtype=torch.bool, device=labels.device)
        present[:frequent] = True
        present[targets] = True
        always = present.nonzero().squeeze(1)
        others = (~present).nonzero().squeeze(1)
        if not len(others):  # the batch alone holds every other token
            return functional.cross_entropy((hidden @ weight.T.to(hidden.dtype)).float(), targets)
        drawn = others[torch.randint(len(others), (sampled,), device=labels.device)]
        columns = torch.cat([always, drawn])  # [c]
        logits = functional.linear(hidden, weight[columns]).float()
        logits[:, len(always) :] += float(np.log(len(others) / sampled))
        place = torch.zeros(total, dtype=torch.long, device=labels.device)
        place[always] = torch.arange(len(always), device=labels.device)
        return functional.cross_entropy(logits, place[targets])

    def encode(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encoder inputs [n, s, width] -> encoder states [n, s, width]."""
        return self.backbone.encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state

    def decoder_states(
        self, encoded: Tensor, mask: Tensor | None, labels: Tensor, aligned: Tensor | None = None
    ) -> Tensor:
        """Encoder states [n, s, width], labels [n, t] -> [n, t, width]: times the output matrix, the logits of the
        piece at each place, given the target and the labels before it."""
        t5 = self.backbone
        words = t5.get_input_embeddings()(t5._shift_right(labels))
        if aligned is not None:
            words = words + _cut(aligned, labels.shape[1]).to(words.dtype)
        hidden = t5.decoder(
            inputs_embeds=words,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return self._scaled(hidden)

    def _scaled(self, hidden: Tensor) -> Tensor:
        t5 = self.backbone.config
        return hidden * t5.d_model**-0.5 if t5.tie_word_embeddings else hidden

    @torch.no_grad()
    def likelihood(
        self,
        encoded: Tensor,
        labels: Tensor,
        guess: Tensor | None = None,
        keep: int | None = None,
        frequent: int = 2048,
    ) -> Tensor:
        """Encoder states [1, s, width] and model ids of many texts [m, t] -> log p(text), float32 [m], nats.

        The softmax runs over the ``frequent`` commonest pieces and those of the texts: enough to rank texts, at a
        fraction of the cost. Where many begin like one text, of model ids ``guess`` [t'], what they share with it is
        read once; then ``keep`` of them may be read to the end, those whose first other piece is likeliest beside the
        guess's own at that place, and the rest get minus infinity.
        """
        weight, t5 = self.backbone.lm_head.weight, self.backbone
        columns = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        columns[:frequent] = True
        columns[labels.flatten()] = True
        if guess is not None:
            columns[guess] = True
        place, weight = columns.cumsum(0) - 1, weight[columns]  # [V], of a piece among the columns

        def each(hidden: Tensor, of: Tensor) -> Tensor:
            """Decoder states [n, t, width] -> log-probabilities of the pieces ``of`` [n, t], zero where padded."""
            logits = functional.linear(self._scaled(hidden), weight).float()  # [n, t, columns]
            return (logits.gather(2, place[of][:, :, None])[:, :, 0] - logits.logsumexp(2)) * (of != self.pad)

        with self.autocast():
            if guess is None:
                states = t5.decoder(
                    inputs_embeds=t5.get_input_embeddings()(t5._shift_right(labels)),
                    encoder_hidden_states=encoded.expand(len(labels), -1, -1), use_cache=False,
                ).last_hidden_state  # fmt: skip
                return each(states, labels).sum(1)
            return self._beside(encoded, labels, guess, keep, each)

    def _beside(
        self,
        encoded: Tensor,
        labels: Tensor,
        guess: Tensor,
        keep: int | None,
        each: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """:meth:`likelihood` of texts that begin like ``guess``: from the place on where they leave it."""
        t5, (m, t) = self.backbone, labels.shape
        guess = functional.pad(guess, (0, t), value=self.pad)[:t]
        embed = t5.get_input_embeddings()
        whole = EncoderDecoderCache(DynamicCache(), DynamicCache())
        states = t5.decoder(
            inputs_embeds=embed(t5._shift_right(guess[None])), encoder_hidden_states=encoded,
            past_key_values=whole, use_cache=True,
        ).last_hidden_state  # fmt: skip
        own = each(states, guess[None])[0]  # [t]
        before = functional.pad(own.cumsum(0), (1, 0))  # [t + 1], of the first pieces
        shared = (labels == guess).long().cumprod(1).sum(1)  # [m], pieces in common
        leaves = shared.clamp(max=t - 1)  # the place at which a text leaves the guess; the last for the guess itself
        other = labels.gather(1, leaves[:, None])  # [m, 1], the piece it has there
        new = each(states[0, leaves][:, None], other)[:, 0] * (shared < t)
        total = before[shared] + new
        left = torch.arange(m, device=labels.device)
        if keep is not None and keep < m:
            left = (new - own[leaves]).topk(keep).indices
            total = torch.full_like(total, -torch.inf).index_copy(0, left, total[left])
        for count in shared[left].unique().tolist():
            rows = left[shared[left] == count]
            if count + 1 >= t:
                continue
            states = t5.decoder(
                inputs_embeds=embed(labels[rows, count:-1]),
                encoder_hidden_states=encoded.expand(len(rows), -1, -1),
                past_key_values=_beginning(whole, count + 1, len(rows)), use_cache=True,
            ).last_hidden_state  # fmt: skip
            total[rows] += each(states, labels[rows, count + 1 :]).sum(1)
        return total

    # ---- generation ---------------------------------------------------------------------------------------

    def autocast(self) -> contextlib.AbstractContextManager:
        """bfloat16 where this device multiplies it fast, else full precision."""
        dtype = fast_dtype(self.device)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    @torch.inference_mode()
    def _generate(
        self,
        inputs: Tensor,
        mask: Tensor | None,
        beams: int,
        candidates: int,
        temperature: float,
        length: int,
        aligned: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """Decode [n, s, width] into ``candidates`` texts each: the likeliest, or sampled at a temperature."""
        beams = max(beams, candidates)
        # Autocast casts a weight once inside this block; the encoder runs once however many candidates.
        with self.autocast():
            encoded = self.encode(inputs, mask)
            aligned = None if aligned is None else _cut(aligned, length + 1)
            if beams > 1 and temperature == 0:
                ids, scores = beam_search(
                    self.backbone, encoded, mask, beams=beams, length=length, aligned=aligned
                )
                ids, scores = ids[:, :candidates], scores[:, :candidates]
            else:
                ids = self._one_by_one(encoded, mask, candidates, temperature, length, aligned, generator)
                scores = torch.zeros(ids.shape[:2])
        written = (ids != self.pad).any(0).any(0).sum()  # as wide as the longest
        return Candidates(ids[:, :, : max(1, int(written))], scores)

    def _one_by_one(
        self,
        encoded: Tensor,
        mask: Tensor | None,
        candidates: int,
        temperature: float,
        length: int,
        aligned: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Encoder states [n, s, width] -> ids [n, candidates, t]: the likeliest piece at each place, or a draw."""
        mask = mask if mask is not None else torch.ones(encoded.shape[:2], device=self.device)
        options: dict[str, Any] = {}
        if temperature > 0:
            options["logits_processor"] = LogitsProcessorList([_Draw(temperature, generator)])
        if aligned is not None:
            options["aligned"] = aligned.repeat_interleave(candidates, 0)
        ids = self.backbone.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.repeat_interleave(candidates, 0)),
            attention_mask=mask.repeat_interleave(candidates, 0),
            do_sample=False,
            num_beams=1,
            max_new_tokens=length + 1,
            # Nothing but the end mark may follow the last piece allowed, or texts would differ in what is cut off.
            forced_eos_token_id=self.end,
            **options,
        )
        ids = ids[:, 1:].reshape(len(encoded), candidates, -1)
        ended = (ids == self.end).cumsum(2) - (ids == self.end).long()
        return ids.masked_fill(ended > 0, self.pad)


class _Draw(LogitsProcessor):
    """Draws among the 50 likeliest pieces and leaves only the one drawn.

    ``generate`` has sampling of its own, which draws random numbers for the whole vocabulary: two thirds of the time.
    Adding Gumbel noise and taking the largest is a draw from the same distribution.
    """

    def __init__(self, temperature: float, generator: torch.Generator | None = None) -> None:
        self.temperature, self.generator = temperature, generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        top = scores.topk(min(50, scores.shape[1]), dim=1)
        noise = -torch.empty_like(top.values).exponential_(generator=self.generator).log()
        drawn = (top.values / self.temperature + noise).argmax(1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, top.indices.gather(1, drawn), 0.0)


def _cut(aligned: Tensor, length: int) -> Tensor:
    """[n, t, width] -> [n, length, width], zeros after t."""
    return functional.pad(aligned, (0, 0, 0, length - aligned.shape[1]))


def _beginning(cache: EncoderDecoderCache, length: int, n: int) -> EncoderDecoderCache:
    """What a cache of one row holds of its first ``length`` places, for n rows."""
    parts = (cache.self_attention_cache, length), (cache.cross_attention_cache, None)
    copies = []
    for part, end in parts:
        copies.append(DynamicCache())
        for index, layer in enumerate(part.layers):
            keys, values = (states[:, :, :end].expand(n, -1, -1, -1) for states in (layer.keys, layer.values))
            copies[-1].update(keys, values, index)
    return EncoderDecoderCache(*copies)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere (a T4 has no bfloat16 units)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32
