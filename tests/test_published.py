"""The paper's checkpoints: tiny random ones in that very layout, against the computation written out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from tutorial_lib import modeling, published
from tutorial_lib.corrector import Corrector
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import CheckpointError
from tutorial_lib.inverter import Inverter
from tutorial_lib.published import our_name, t5_fields
from tutorial_lib.search import invert

D, WIDTH, K = 24, 32, 3  # values per embedding, per token; pseudo-tokens per vector
T5 = {
    "vocab_size": 60, "d_model": WIDTH, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2,
    "num_decoder_layers": 2, "decoder_start_token_id": 0,
}  # fmt: skip
CONFIG = {
    "model_name_or_path": "t5-base", "embedder_model_name": "gtr_base", "num_repeat_tokens": K,
    "max_seq_length": 8, "embedder_gaussian_noise_level": 0.0, "architectures": ["InversionModel"],
}  # fmt: skip
LAYOUTS = ["safetensors", "sharded safetensors", "bin", "sharded bin", "old bin"]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling, "fast_dtype", lambda device: torch.float32)


def tensors(kind: str, second: int = 3, seed: int = 0, dimension: int = D, **t5: Any) -> dict[str, Tensor]:
    """Random tensors under the published names; ``second`` numbers the second Linear."""
    torch.manual_seed(seed)
    backbone = T5ForConditionalGeneration(T5Config(**(T5 | t5)))
    with torch.no_grad():  # as initialised it would repeat its input; so it writes something
        for name, value in backbone.named_parameters():
            if ".layer." in name:
                value.mul_(3)
    out = {f"encoder_decoder.{key}": value.clone() for key, value in backbone.state_dict().items()}
    for name in ("",) if kind == "inverter" else ("_1", "_2", "_3"):
        for at, layer in ((0, nn.Linear(dimension, dimension)), (second, nn.Linear(dimension, WIDTH * K))):
            for part, value in layer.state_dict().items():
                out[f"embedding_transform{name}.{at}.{part}"] = value.clone()
    if kind == "corrector":
        out |= {"layernorm.weight": torch.rand(WIDTH) + 0.5, "layernorm.bias": torch.randn(WIDTH)}
    out["embedder.encoder.block.0.layer.0.SelfAttention.q.weight"] = torch.randn(
        7, 7
    )  # the copy nobody needs
    out["embedder.shared.weight"] = torch.randn(7, 7)
    return out


def write(folder: Path, state: dict[str, Tensor], layout: str = "bin", **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    safe = "safetensors" in layout
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")

    def save(part: dict[str, Tensor], path: Path) -> None:
        if safe:
            save_file(part, path)
        else:
            torch.save(part, path, _use_new_zipfile_serialization=not layout.startswith("old"))

    if "sharded" not in layout:
        save(state, folder / f"{stem}.{suffix}")
        return folder
    keys, shards = list(state), 6
    index: dict[str, str] = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}"
        part = {key: state[key] for key in keys[number::shards]}
        index |= dict.fromkeys(part, name)
        save(part, folder / name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def load(kind: str, folder: Path | str, **options: Any) -> Any:
    return (Inverter if kind == "inverter" else Corrector).from_pretrained(folder, **options)


# ---- every tensor lands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("second", [2, 3])
@pytest.mark.parametrize("kind", ["inverter", "corrector"])
def test_every_tensor_lands(tmp_path: Path, kind: str, second: int, layout: str) -> None:
    state = tensors(kind, second)
    model = load(kind, write(tmp_path / "m", state, layout))
    got = model.state_dict()
    landed = set()
    for key, value in state.items():
        if key.startswith("embedder."):
            continue
        ours = key.replace("encoder_decoder.", "backbone.").replace(f".{second}.weight", ".3.weight")
        ours = ours.replace(f".{second}.bias", ".3.bias") if ours.startswith("embedding") else ours
        if key.startswith("encoder_decoder."):
            ours = key.replace("encoder_decoder.", "backbone.", 1)
        assert torch.equal(got[ours], value), key
        landed.add(ours)
    assert landed == set(got)  # and nothing was left to chance
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert not model.training
    assert not any("embedder" in key for key in got)


def test_its_configuration(tmp_path: Path) -> None:
    model = load("inverter", write(tmp_path / "m", tensors("inverter")))
    config = model.config
    assert (config.dimension, config.num_pseudo_tokens, config.embedder_name) == (D, K, "gtr-base-mean")
    assert config.max_tokens == 7  # eight with </s>
    assert (config.whiten, config.own_vocabulary) == (False, False)
    assert (model.pad, model.end) == (0, 1)
    for key, value in T5.items():
        assert config.backbone[key] == value
        assert getattr(model.backbone.config, key) == value
    t5 = model.backbone
    assert (
        t5.lm_head.weight
        is t5.shared.weight
        is t5.encoder.embed_tokens.weight
        is t5.decoder.embed_tokens.weight
    )


@pytest.mark.parametrize("kept", ["shared.weight", "lm_head.weight", "decoder.embed_tokens.weight"])
def test_the_one_table_may_be_stored_under_any_of_its_names(tmp_path: Path, kept: str) -> None:
    state = tensors("inverter")
    want = state["encoder_decoder.shared.weight"]
    for name in published._TABLES:
        if name != kept:
            del state[f"encoder_decoder.{name}"]
    model = load("inverter", write(tmp_path / "m", state, "safetensors"))
    assert torch.equal(model.backbone.shared.weight, want)
    assert torch.equal(model.backbone.lm_head.weight, want)


def test_the_shape_of_t5_base_follows_from_its_tensors() -> None:
    """The published configuration names t5-base and gives no numbers; these are its numbers."""
    base = {
        "vocab_size": 32128, "d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 3072, "num_layers": 12,
        "num_decoder_layers": 12, "relative_attention_num_buckets": 32, "feed_forward_proj": "relu",
    }  # fmt: skip
    with torch.device("meta"):
        state = T5ForConditionalGeneration(T5Config(**base)).state_dict()
    state = {f"backbone.{key}": value for key, value in state.items() if key != "lm_head.weight"}
    got = t5_fields(state)
    assert {key: got[key] for key in base} == base


def test_gated_feed_forward_is_recognised() -> None:
    with torch.device("meta"):
        config = T5Config(**(T5 | {"num_decoder_layers": 3}), feed_forward_proj="gated-gelu")
        state = T5ForConditionalGeneration(config).state_dict()
    got = t5_fields({f"backbone.{key}": value for key, value in state.items() if key != "lm_head.weight"})
    assert (got["feed_forward_proj"], got["d_ff"]) == ("gated-gelu", 48)
    assert (got["num_layers"], got["num_decoder_layers"]) == (2, 3)


def test_names() -> None:
    assert our_name("encoder_decoder.encoder.block.2.layer.0.x") == "backbone.encoder.block.2.layer.0.x"
    assert (
        our_name("embedding_transform.2.bias")
        == our_name("embedding_transform.3.bias")
        == ("embedding_transform.3.bias")
    )
    assert our_name("embedding_transform_2.2.weight") == "embedding_transform_2.3.weight"
    assert our_name("embedding_transform_2.0.weight") == "embedding_transform_2.0.weight"
    assert our_name("layernorm.weight") == "layernorm.weight"


def test_saved_again_it_is_one_of_ours(tmp_path: Path) -> None:
    model = load("corrector", write(tmp_path / "m", tensors("corrector")))
    model.save_pretrained(tmp_path / "ours")
    again = load("corrector", tmp_path / "ours")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert again.config.embedder_name == "gtr-base-mean"


# ---- the documented computation, written out ---------------------------------------------------------------


def reference(state: dict[str, Tensor]) -> T5ForConditionalGeneration:
    t5 = T5ForConditionalGeneration(T5Config(**T5)).eval()
    t5.load_state_dict(
        {k.removeprefix("encoder_decoder."): v for k, v in state.items() if k.startswith("enc")}
    )
    return t5


def project(state: dict[str, Tensor], name: str, second: int, vector: Tensor) -> Tensor:
    """Linear, GELU, Linear -> k pseudo-tokens."""
    hidden = vector @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"]
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return (hidden @ state[f"{name}.{second}.weight"].T + state[f"{name}.{second}.bias"]).view(K, WIDTH)


def greedy(t5: T5ForConditionalGeneration, inputs: Tensor, length: int) -> list[int]:
    """Argmax of the whole prefix each time; </s> where ``length`` words were not enough."""
    ids = [0]
    while len(ids) <= length and ids[-1] != 1:
        ids.append(
            int(t5(inputs_embeds=inputs[None], decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        )
    return ids[1:] if ids[-1] == 1 else [*ids[1:], 1]


@pytest.mark.parametrize("second", [2, 3])
@torch.no_grad()
def test_the_inverter_decodes_token_for_token(tmp_path: Path, second: int) -> None:
    state = tensors("inverter", second)
    model = load("inverter", write(tmp_path / "m", state, "sharded bin"))
    vectors = torch.randn(6, D)
    got = model.propose(vectors).ids[:, 0].tolist()
    assert len({token for row in got for token in row}) >= 8
    t5 = reference(state)
    for row in range(6):
        want = greedy(t5, project(state, "embedding_transform", second, vectors[row]), 7)
        assert got[row][: len(want)] == want
        assert set(got[row][len(want) :]) <= {0}


@pytest.mark.parametrize("second", [2, 3])
@torch.no_grad()
def test_the_corrector_decodes_token_for_token(tmp_path: Path, second: int) -> None:
    """[</s>] MLP1(e) [</s>] MLP3(ê) [</s>] MLP2(e - ê) [</s>] words, LayerNorm over the whole, T5."""
    state = tensors("corrector", second)
    model = load("corrector", write(tmp_path / "m", state, "sharded bin"))
    target, own = torch.randn(4, D), torch.randn(4, D)
    guess = model.to_model_ids([[5, 6, 7], [8], [9, 10], [11, 12, 13]])
    assert guess.tolist()[1] == [8, 1, 0, 0]
    inputs, mask = model.encoder_inputs(target, guess, own)
    assert inputs.shape == (4, 4 + 3 * K + 4, WIDTH)
    got = model.propose(target, guess, own).ids[:, 0].tolist()
    assert len({token for row in got for token in row}) >= 8
    t5 = reference(state)
    table = t5.shared.weight
    for row in range(4):
        words = [token for token in guess[row].tolist() if token != 0]
        sequence = torch.cat([
            table[1:2], project(state, "embedding_transform_1", second, target[row]),
            table[1:2], project(state, "embedding_transform_3", second, own[row]),
            table[1:2], project(state, "embedding_transform_2", second, target[row] - own[row]),
            table[1:2], table[words],
        ])  # fmt: skip
        mean, variance = sequence.mean(1, keepdim=True), sequence.var(1, unbiased=False, keepdim=True)
        sequence = (sequence - mean) / (variance + 1e-5).sqrt() * state["layernorm.weight"] + state[
            "layernorm.bias"
        ]
        assert int(mask[row].sum()) == len(sequence) == 4 + 3 * K + len(words)
        assert torch.allclose(inputs[row, : len(sequence)], sequence, atol=1e-5)
        want = greedy(t5, sequence, 7)
        assert got[row][: len(want)] == want
        assert set(got[row][len(want) :]) <= {0}


# ---- embedders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gtr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like sentence-transformers/gtr-t5-base: T5 encoder, mean, Dense without bias, unit length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from tokenizers import decoders as decoding
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    folder = tmp_path_factory.mktemp("gtr")
    words = "the law of peace and war for all people in union state a world we will keep new".split()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [(f"▁{word}", -2.0 - 0.01 * at) for at, word in enumerate(words)]
    pieces += [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    core = Tokenizer(models.Unigram(pieces, unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoding.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(5)
    encoder = T5EncoderModel(T5Config(**(T5 | {"d_model": D})))
    encoder.save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    base = Transformer(str(folder / "t5"), max_seq_length=16)
    dense = Dense(D, D, bias=False, activation_function=nn.Identity())
    SentenceTransformer(modules=[base, Pooling(D, pooling_mode="mean"), dense, Normalize()]).save(
        str(folder / "st")
    )
    return folder / "st"


@pytest.fixture
def hub(gtr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's GTR is the tiny one."""
    import sentence_transformers

    real = sentence_transformers.SentenceTransformer

    class Tiny(real):  # type: ignore[misc, valid-type]
        def __init__(self, name: str | None = None, **options: Any) -> None:
            is_gtr = name in ("sentence-transformers/gtr-t5-base", "gtr-t5-base")
            super().__init__(str(gtr) if is_gtr else name, **options)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", Tiny)


def test_the_two_gtr_embedders_are_two_spaces(hub: None, gtr: Path) -> None:
    mean = Embedder.from_pretrained("gtr-base-mean", device="cpu")
    true = Embedder.from_pretrained("gtr-t5-base", device="cpu")
    assert (mean.name, true.name) == ("gtr-base-mean", "gtr-t5-base")
    assert Embedder.from_pretrained("sentence-transformers/gtr-t5-base", device="cpu").name == "gtr-t5-base"
    assert mean.dimension == true.dimension == D
    assert mean.max_tokens == 15  # sixteen with </s>
    text = "the law of the people"
    a, b = mean.encode([text])[0], true.encode([text])[0]
    assert np.linalg.norm(b) == pytest.approx(1, abs=1e-5)
    assert abs(np.linalg.norm(a) - 1) > 1e-2
    ids = torch.tensor([[*mean.token_ids([text])[0], 1]])
    with torch.no_grad():
        states = mean.transformer(input_ids=ids).last_hidden_state[0]
        dense = true._model[2].linear.weight
        projected = dense @ states.mean(0)
    assert np.allclose(a, states.mean(0).numpy(), atol=1e-5)  # </s> takes part in the mean
    assert np.allclose(b, (projected / projected.norm()).numpy(), atol=1e-5)


def test_a_published_pair_inverts_end_to_end(hub: None, tmp_path: Path) -> None:
    embedder = Embedder.from_pretrained("gtr-base-mean", device="cpu")
    inverter = load("inverter", write(tmp_path / "i", tensors("inverter", 2)))
    corrector = load("corrector", write(tmp_path / "c", tensors("corrector", 3, seed=1), "sharded bin"))
    texts = ["the law of the people", "we will keep the peace"]
    result = invert(embedder.encode(texts), embedder, inverter, corrector, steps=2, beam_width=2)
    assert len(result.texts) == 2
    assert all(isinstance(text, str) and text for text in result.texts)
    assert all(rows[-1].cosine >= rows[0].cosine for rows in result.trace)
    ids = corrector.to_model_ids(embedder.token_ids(texts))
    assert (ids[:, -1] == 1).any()
    assert embedder.decode(corrector.to_embedder_ids(ids)) == texts


@pytest.mark.parametrize(
    ("said", "name", "want"),
    [
        ("gtr_base", "", "gtr-base-mean"),
        ("gtr_base_st", "", "gtr-t5-base"),
        ("sentence-transformers/all-MiniLM-L6-v2", "", "all-MiniLM-L6-v2"),
        ("gtr_base", "jxm/gtr__nq__32", "gtr-base-mean"),
        ("gtr_base", "ielabgroup/vec2text_gtr-base-st_inversion", "gtr-t5-base"),
    ],
)
def test_which_embedder_a_checkpoint_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, name: str, want: str
) -> None:
    folder = write(tmp_path / "m", tensors("inverter"), embedder_model_name=said)
    if name:
        monkeypatch.setattr(published, "download", lambda asked, revision=None: folder)
    assert load("inverter", name or folder).config.embedder_name == want
    assert load("inverter", name or folder, embedder_name="mine").config.embedder_name == "mine"


def test_a_pair_of_the_other_gtr_is_refused(hub: None, tmp_path: Path) -> None:
    wrong = Embedder.from_pretrained("gtr-t5-base", device="cpu")
    inverter = load("inverter", write(tmp_path / "i", tensors("inverter")))
    with pytest.raises(
        CheckpointError, match=r"inverter was made for gtr-base-mean and the embedder is gtr-t5-base"
    ):
        invert(np.ones((1, D), dtype=np.float32), wrong, inverter, steps=0)


# ---- the Hub -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["sharded bin", "safetensors"])
def test_from_the_hub_only_what_is_needed_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    import fnmatch

    import huggingface_hub

    repository = write(tmp_path / "repository", tensors("corrector"), layout)
    (repository / "optimizer.pt").write_bytes(b"large")
    calls: list[Any] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((name, revision))
        cache = tmp_path / "cache"
        cache.mkdir(exist_ok=True)
        for path in repository.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                (cache / path.name).write_bytes(path.read_bytes())
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = Corrector.from_pretrained("jxm/gtr__nq__32__correct", revision="abc")
    assert set(calls) == {("jxm/gtr__nq__32__correct", "abc")}
    assert model.name_or_path == "jxm/gtr__nq__32__correct"
    assert not (tmp_path / "cache" / "optimizer.pt").exists()
    assert len(calls) == (1 if layout == "safetensors" else 2)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        CheckpointError, match=r"'jxm/gtr__nq__32' at revision 'x' could not be fetched.*Connection"
    ):
        Inverter.from_pretrained("jxm/gtr__nq__32", revision="x")


# ---- damaged files -----------------------------------------------------------------------------------------


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_files_are_refused(tmp_path: Path, layout: str) -> None:
    folder = write(tmp_path / "m", tensors("inverter"), layout)
    path = max(folder.iterdir(), key=lambda file: (file.suffix in {".bin", ".safetensors"}, file.name))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=rf"{path.name} is truncated"):
        load("inverter", folder)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tensors("inverter"))
    torch.save({"embedding_transform.0.weight": _Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a file of plain tensors"):
        load("inverter", folder)
    assert not (tmp_path / "ran").exists()


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tensors("inverter"), "sharded bin")
    (folder / "pytorch_model-00003-of-00006.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"lacks pytorch_model-00003-of-00006\.bin, which its index lists"
    ):
        load("inverter", folder)


def test_no_weights_at_all(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tensors("inverter"))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        load("inverter", folder)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index(tmp_path: Path, index: str) -> None:
    folder = write(tmp_path / "m", tensors("inverter"), "sharded bin")
    (folder / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin\.index\.json is damaged"):
        load("inverter", folder)


def test_tensors_of_other_shapes(tmp_path: Path) -> None:
    state = tensors("inverter")
    state["embedding_transform.0.weight"] = torch.zeros(D + 1, D)  # a hidden layer wider than the vector
    state["embedding_transform.0.bias"] = torch.zeros(D + 1)
    with pytest.raises(CheckpointError, match="other shapes than a published inverter has"):
        load("inverter", write(tmp_path / "m", state))


def test_a_setting_that_is_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tensors("inverter"))
    settings = json.loads((folder / "config.json").read_text())
    del settings["max_seq_length"]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"lacks .*settings .*max_seq_length"):
        load("inverter", folder)


@pytest.mark.parametrize(
    "gone",
    [
        "embedding_transform.0.weight",
        "embedding_transform.3.bias",
        "encoder_decoder.decoder.block.1.layer.0.SelfAttention.q.weight",
    ],
)
def test_a_missing_tensor(tmp_path: Path, gone: str) -> None:
    state = tensors("inverter")
    del state[gone]
    with pytest.raises(CheckpointError, match=r"lacks tensors|missing \["):
        load("inverter", write(tmp_path / "m", state))


def test_an_unknown_tensor(tmp_path: Path) -> None:
    state = tensors("inverter") | {"surprise.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unknown \['surprise\.weight'\]"):
        load("inverter", write(tmp_path / "m", state))


def test_the_other_kind(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"published corrector.*load it with Corrector\.from_pretrained"
    ):
        load("inverter", write(tmp_path / "c", tensors("corrector")))
    with pytest.raises(CheckpointError, match=r"published inverter.*load it with Inverter\.from_pretrained"):
        load("corrector", write(tmp_path / "i", tensors("inverter")))


def test_a_t5_with_two_tables(tmp_path: Path) -> None:
    state = tensors("inverter")
    state["encoder_decoder.lm_head.weight"] += 1
    with pytest.raises(CheckpointError, match="output table of this T5 is not its input table"):
        load("inverter", write(tmp_path / "m", state))
