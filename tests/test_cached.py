"""Embedders behind a function or in a table: paid for once, trained for end to end, honest about what they lack."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tutorial_lib import cached, search
from tutorial_lib.cached import CachedEmbedder, TableWindows, open_embedder, read_table
from tutorial_lib.corrector import Corrector
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import CheckpointError, CorpusError, TextError, TutorialError, VectorError
from tutorial_lib.inverter import Inverter
from tutorial_lib.metrics import evaluate
from tutorial_lib.training import TrainConfig, train
from tutorial_lib.training_data import special_ids

FAKE = """
import numpy as np
NAME = "fake-128"
calls = []

def embed(texts):
    calls.append(list(texts))
    if any("forbidden" in text for text in texts):
        raise ConnectionError("429")
    return [np.random.default_rng(list(text.encode())).normal(size=128) for text in texts]
"""
#: A second real embedder that installs with pip: 256 values, no torch, no gradient, another tokenizer inside.
WORDLLAMA = """
from pathlib import Path

import wordllama

NAME = "wordllama-256"
inside = Path(wordllama.__file__).parent  # the weights came with the package
model = wordllama.WordLlama.load(cache_dir=inside, disable_download=True)

def embed(texts):
    return model.embed(texts, norm=True)
"""
TEXTS = [f"the {a} of the {b}" for a in ("law", "peace", "war", "people") for b in ("union", "state", "world")]


def sample(windows: Any, rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """What ``draw`` gives, as ragged rows."""
    ids, lengths = windows.draw(rng, n)
    return [row[:length] for row, length in zip(ids, lengths, strict=True)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FAKE, encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Forty small documents, so that every split has some."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(40):
        rows = np.random.default_rng(number).permutation(TEXTS)
        (folder / f"{number}.txt").write_text(", ".join(rows), encoding="utf-8")
    return f"files:{folder}"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(kind: str, output: Path, embedder: str, **fields: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "max_steps": 2, "batch_size": 8, "layers": 1, "width": 32, "num_pseudo_tokens": 2, "whiten_on": 64,
        "records": 0.0, "min_tokens": 3, "max_tokens": 6, "slopes": False, "pool": 1,
    }  # fmt: skip
    return TrainConfig(kind, str(output), embedder, **(settings | fields))  # type: ignore[arg-type]


def write_table(path: Path, texts: list[str], name: str = "vector", dimension: int = 128) -> Path:
    vectors = np.random.default_rng(0).normal(size=(len(texts), dimension)).astype(np.float32)
    pq.write_table(pa.table({"text": texts, name: [row.tolist() for row in vectors]}), path)
    return path


def write_tokenizer(folder: Path, **special: str) -> Path:
    """One whose word pieces are words, with these special tokens alone."""
    words = {word: place for place, word in enumerate([*"a the of law union state".split(), *special.values()])}
    model = Tokenizer(WordLevel(words, **special if "unk_token" in special else {}))
    model.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(folder)
    return folder


# ---- a function --------------------------------------------------------------------------------------------


def test_a_text_is_paid_for_once(file: Path) -> None:
    embedder = open_embedder(str(file))
    assert (embedder.name, embedder.dimension, embedder.max_tokens, embedder.closed) == ("fake-128", 128, 512, False)
    assert embedder.asked == 1  # what says the dimension
    first = embedder.encode([*TEXTS, TEXTS[0]], progress=False)
    assert first.shape == (13, 128) and first.dtype == np.float32
    assert np.array_equal(first[0], first[-1])
    assert (embedder.asked, embedder.queries) == (13, 13)
    embedder.encode(TEXTS, progress=False)
    assert (embedder.asked, embedder.queries) == (13, 25)
    assert embedder.encode([]).shape == (0, 128)

    del embedder
    gc.collect()  # what was new is on the disk
    again = open_embedder(str(file))
    assert np.array_equal(again.encode(TEXTS, progress=False), first[:-1])
    assert again.asked == 0
    table = pq.read_table(file.with_suffix(".vectors"))
    assert table.column_names == ["text", "vector"] and table.num_rows == 13


@pytest.mark.parametrize("fast", [True, False])
def test_of_a_text_that_is_truncated_the_function_sees_the_beginning(
    file: Path, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = open_embedder(str(file))
    embedder.max_tokens = 4
    if not fast:  # a tokenizer that cannot say where a piece stands
        monkeypatch.setattr(type(embedder.tokenizer), "is_fast", False)
    with pytest.raises(TextError, match="5 word pieces"):
        embedder.encode(["The Law of the Land"])
    texts = ["The Law of the Land", "The  Law, of the Union", "The Law of the"]
    vectors = embedder.encode(texts, truncate=True, progress=False)
    beginnings = ["The Law of the", "The  Law, of", texts[2]] if fast else ["the law of the", "the law, of", texts[2]]
    assert np.array_equal(vectors, embedder.encode(beginnings, progress=False))
    assert set(embedder._known) >= set(beginnings) and not set(embedder._known) & set(texts[:2])


def test_what_a_function_returned_before_it_failed_is_kept(file: Path) -> None:
    embedder = open_embedder(str(file))
    embedder.encode(TEXTS, progress=False)
    with pytest.raises(TutorialError, match=r"embed of fake-128 failed \(ConnectionError: 429\); .* is kept"):
        embedder.encode(["a forbidden text"])
    assert len(dict(read_table(next(file.with_suffix(".vectors").iterdir())))) == 13


def test_many_new_vectors_are_written_while_they_come(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "_KEEP_AFTER", 4)
    embedder = open_embedder(str(file))
    embedder.encode(TEXTS, batch_size=3, progress=False)
    parts = sorted(path.name for path in file.with_suffix(".vectors").iterdir())
    assert [part.split("-")[0] for part in parts] == ["000000", "000001"]  # of four and six; three wait
    embedder.flush()
    assert len(open_embedder(str(file)).texts) == 13


def test_two_processes_that_write_at_once_keep_both(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = open_embedder(str(file)), open_embedder(str(file))
    first.encode(TEXTS[:6], progress=False)
    second.encode(TEXTS[6:], progress=False)
    write = pq.write_table

    def interrupted(table: pa.Table, path: Path) -> None:
        monkeypatch.setattr(cached.pq, "write_table", write)
        second.flush()  # after the first has chosen its number
        write(table, path)

    monkeypatch.setattr(cached.pq, "write_table", interrupted)
    first.flush()
    assert set(open_embedder(str(file)).texts) == {"a", *TEXTS}


def test_files_that_are_not_ours_are_left_alone_and_older_ones_read(file: Path) -> None:
    folder = file.with_suffix(".vectors")
    folder.mkdir()
    write_table(folder / "backup.parquet", ["an old text"])
    write_table(folder / "000007.parquet", TEXTS[:2])  # as written before names were unique
    embedder = open_embedder(str(file))
    assert embedder.texts == TEXTS[:2]
    embedder.encode(TEXTS[2:4], progress=False)
    embedder.flush()
    assert any(path.name.startswith("000008-") for path in folder.iterdir())
    assert open_embedder(str(file)).texts == TEXTS[:4]


def test_two_models_in_one_folder_are_refused(file: Path) -> None:
    folder = file.with_suffix(".vectors")
    folder.mkdir()
    write_table(folder / "000000.parquet", TEXTS[:2])
    write_table(folder / "000001.parquet", TEXTS[2:], dimension=64)
    with pytest.raises(VectorError, match="holds vectors of 64 and 128 values, so more than one model wrote there"):
        open_embedder(str(file))


def test_an_embedder_that_outlives_its_modules_says_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = open_embedder(str(file))
    monkeypatch.setattr(cached, "sys", None)  # as at the interpreter's end
    embedder.__del__()
    assert not file.with_suffix(".vectors").exists()


@pytest.mark.parametrize("returned", ["[[1.0, 2.0]] * 3", "[1.0, 2.0]", "[[float('nan')]] * len(texts)"])
def test_a_function_that_returns_something_else(tmp_path: Path, returned: str) -> None:
    path = tmp_path / "odd.py"
    path.write_text(f"def embed(texts):\n    return {returned}\n")
    with pytest.raises(VectorError, match=r"embed of odd returned shape .* an array \[1, d\] was expected"):
        open_embedder(str(path))


def test_files_that_define_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no file"):
        open_embedder(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("NAME = 'x'\n")
    with pytest.raises(CheckpointError, match=r"defines no function embed\(texts\)"):
        open_embedder(str(tmp_path / "empty.py"))
    (tmp_path / "odd.py").write_text("TOKENIZER = '/nowhere'\ndef embed(texts):\n    return [[1.0]]\n")
    with pytest.raises(CheckpointError, match="The tokenizer '/nowhere' could not be loaded"):
        open_embedder(str(tmp_path / "odd.py"))


def test_ids_are_embedded_as_the_text_they_spell(file: Path) -> None:
    embedder = open_embedder(str(file))
    encoded = embedder.tokenizer(["the law", "", "peace of the world"], padding=True, return_tensors="pt")
    got = embedder.encode_ids(encoded["input_ids"], encoded["attention_mask"])
    assert np.array_equal(got.numpy(), embedder.encode(["the law", ".", "peace of the world"]))
    with pytest.raises(TutorialError, match="has no gradient; leave slopes out"):
        embedder.gradients_of_ids(encoded["input_ids"], encoded["attention_mask"], got)
    with pytest.raises(TutorialError, match="has no gradient; leave slopes out"):
        embedder.gradients([[5]], got[:1])


# ---- end to end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [FAKE, WORDLLAMA], ids=["a function", "wordllama"])
def test_from_a_function_to_recovered_texts(tmp_path: Path, corpus: str, source: str) -> None:
    if source is WORDLLAMA:
        pytest.importorskip("wordllama", reason="the second real embedder, of the extra 'test'")
    file = tmp_path / "mine.py"
    file.write_text(source, encoding="utf-8")
    runs = tmp_path / "runs"
    train(tiny("inverter", runs / "inverter", str(file), corpus=(corpus,)), progress=False)
    config = tiny("corrector", runs / "corrector", str(file), corpus=(corpus,), inverter=str(runs / "inverter"))
    train(config, progress=False)
    gc.collect()

    embedder = Embedder.from_pretrained(str(file))
    assert isinstance(embedder, CachedEmbedder)
    inverter, corrector = Inverter.from_pretrained(runs), Corrector.from_pretrained(runs)
    assert inverter.config.dimension == corrector.config.dimension == embedder.dimension
    assert inverter.config.embedder_name == corrector.config.embedder_name == embedder.name
    before = embedder.asked
    result = search.invert(
        embedder.encode(TEXTS[:3], progress=False), embedder, inverter, corrector, steps=2, beam_width=2
    )
    assert len(result.texts) == 3 and (result.queries >= 1).all()
    assert embedder.queries == 3 + result.queries.sum()
    assert 0 < embedder.asked - before <= embedder.queries


# ---- a table -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["vector", "embedding"])
def test_an_inverter_is_trained_from_a_table_alone(tmp_path: Path, corpus: str, column: str) -> None:
    path = write_table(tmp_path / "mine.parquet", [*TEXTS, "The Law of the Land", "too long " * 20], column)
    embedder = open_embedder(f"parquet:{path}")
    assert (embedder.name, embedder.dimension, embedder.closed) == ("mine", 128, True)
    want = dict(read_table(path))
    assert np.array_equal(embedder.encode(["THE LAW of the land"])[0], want["The Law of the Land"])

    config = tiny("inverter", tmp_path / "inverter", f"parquet:{path}", corpus=(corpus,))
    windows = TableWindows(config, embedder)
    drawn = embedder.decode([row.tolist() for row in sample(windows, np.random.default_rng(0), 200)])
    assert set(drawn) == {*TEXTS, "the law of the land"}  # whole, the long one left out
    train(config, progress=False)
    inverter = Inverter.from_pretrained(tmp_path / "inverter")
    assert (inverter.config.embedder_name, inverter.config.dimension) == ("mine", 128)
    result = search.invert(embedder.encode(TEXTS[:2]), embedder, inverter, steps=0, beam_width=2)
    assert len(result.texts) == 2 and all(count <= 6 for count in embedder.token_counts(result.texts))
    assert np.isnan(result.cosines).all() and not result.queries.any()
    scores = evaluate(TEXTS[:2], result.texts, embedder)
    assert 0 <= scores.bleu.value <= 100 and np.isnan(scores.cosine.value)
    with pytest.raises(TutorialError, match="nobody to ask for a guess's vector"):
        search.invert(embedder.encode(TEXTS[:2]), embedder, inverter, None, steps=1)


def test_a_table_knows_no_other_text(tmp_path: Path) -> None:
    embedder = open_embedder(f"parquet:{write_table(tmp_path / 'mine.parquet', TEXTS)}")
    with pytest.raises(TextError, match=r"table 'mine' holds no vector of 'another text'; .* an inverter can be"):
        embedder.encode(["another text"])
    config = tiny("inverter", tmp_path / "inverter", "x.py", min_tokens=40, max_tokens=50)
    with pytest.raises(CorpusError, match="no text of 40 to 50 word pieces"):
        TableWindows(config, embedder)


def test_a_file_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(CheckpointError, match=r"mine\.py could not be run \(ModuleNotFoundError: .*; mend it"):
        open_embedder(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(("special", "pad"), [({"eos_token": "<end>"}, "<end>"), ({"unk_token": "<unk>"}, "<unk>")])
def test_a_tokenizer_without_padding_pads_with_another(
    file: Path, tmp_path: Path, special: dict[str, str], pad: str
) -> None:
    """GPT-2's has none: training would end in a TypeError."""
    file.write_text(f"{FAKE}\nTOKENIZER = {str(write_tokenizer(tmp_path / 'words', **special))!r}\n")
    embedder = open_embedder(str(file))
    assert embedder.tokenizer.pad_token == pad
    (padding, *_), _ = special_ids(embedder)
    assert padding == embedder.tokenizer.convert_tokens_to_ids(pad)


def test_a_tokenizer_without_any_special_token_is_refused(file: Path, tmp_path: Path) -> None:
    file.write_text(f"{FAKE}\nTOKENIZER = {str(write_tokenizer(tmp_path / 'words'))!r}\n")
    with pytest.raises(CheckpointError, match="has no token for padding, the end or the unknown; name another"):
        open_embedder(str(file))


def test_a_file_may_define_dataclasses(file: Path) -> None:
    """They look their module up, which has a name of its own whatever the file is called."""
    before = set(sys.modules)
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    source += "@dataclass\nclass Client:\n    key: str = 'secret'\n"
    json = file.with_name("json.py")
    json.write_text(source + FAKE, encoding="utf-8")
    assert open_embedder(str(json)).name == "fake-128"
    (name,) = {name for name in set(sys.modules) - before if name.startswith("json_")}
    assert sys.modules[name].Client().key == "secret"
    json.write_text(source + "1 / 0", encoding="utf-8")
    with pytest.raises(CheckpointError, match="ZeroDivisionError"):
        open_embedder(str(json))
    assert {key for key in set(sys.modules) - before if key.startswith("json_")} == {name}


def test_the_card_of_a_table_says_what_was_held_out(tmp_path: Path) -> None:
    path = write_table(tmp_path / "mine.parquet", TEXTS)
    config = tiny("inverter", tmp_path / "inverter", f"parquet:{path}", corpus=("sotu",), records=0.5)
    card = (train(config, progress=False) / "README.md").read_text(encoding="utf-8")
    assert "Every text of the table within these lengths was trained on; none was held out." in card
    assert "not seen" not in card
    (command,) = (line for line in card.splitlines() if line.startswith("tutorial-lib train"))
    assert not {"--corpus", "--records", "--longest"} & set(command.split())


def test_tables_that_are_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "score": [1.0]}), tmp_path / "odd.parquet")
    with pytest.raises(CorpusError, match="has the columns text, score; text and vector are needed"):
        open_embedder(f"parquet:{tmp_path / 'odd.parquet'}")
    (tmp_path / "broken.parquet").write_text("no table")
    with pytest.raises(CorpusError, match="cannot be read as Parquet"):
        open_embedder(f"parquet:{tmp_path / 'broken.parquet'}")
    write_table(tmp_path / "empty.parquet", [""])
    with pytest.raises(CorpusError, match="holds no texts"):
        open_embedder(f"parquet:{tmp_path / 'empty.parquet'}")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", "b"], "vector": [[1.0, 2.0], [1.0, float("nan")]]}, "Row 1 of .* vector that is not finite"),
        ({"text": ["a", "b"], "vector": [[1.0, 2.0], [1.0, None]]}, "Row 1 of .* holds a vector that is not finite"),
        ({"text": ["a", "b", "c"], "vector": [[1.0, 2.0], None, [1.0]]}, "Row 2 of .* has 1 values where 2 were expec"),
        ({"text": ["a"], "vector": pa.array([[]], pa.list_(pa.float32()))}, "Row 0 of .* has 0 values where some were"),
        ({"text": ["a"], "vector": ["1 2 3"]}, "The column vector of .* holds string; lists of numbers are needed"),
        ({"text": ["a"], "vector": [["1", "2"]]}, "The column vector of .* holds list<.*string>; lists of numbers are"),
        ({"text": [1], "vector": [[1.0]]}, "The column text of .* holds int64; strings are needed"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    with pytest.raises(TutorialError, match=message):
        open_embedder(f"parquet:{tmp_path / 'mine.parquet'}")


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float16()), pa.list_(pa.int8(), 2)])
def test_any_list_of_numbers_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    rows = pa.array(np.array([[1, 2], [3, 4]], dtype=np.float16).tolist(), pa.list_(pa.float32())).cast(kind)
    texts = pa.array(["a", "b"]).dictionary_encode()
    pq.write_table(pa.table({"text": texts, "vector": rows}), tmp_path / "mine.parquet")
    found = dict(read_table(tmp_path / "mine.parquet"))
    assert [(text, vector.tolist(), vector.dtype) for text, vector in found.items()] == [
        ("a", [1, 2], np.float32),
        ("b", [3, 4], np.float32),
    ]


def test_slopes_are_refused_where_there_is_no_gradient(file: Path, corpus: str, tmp_path: Path) -> None:
    train(tiny("inverter", tmp_path / "inverter", str(file), corpus=(corpus,)), progress=False)
    config = tiny("corrector", tmp_path / "corrector", str(file), corpus=(corpus,), slopes=True)
    with pytest.raises(TutorialError, match="has no gradient; leave --slopes out"):
        train(replace(config, inverter=str(tmp_path / "inverter")), progress=False)


def test_another_model_behind_the_same_file_is_refused(file: Path) -> None:
    embedder = open_embedder(str(file))
    embedder.encode(["we the people"])
    embedder._embed = lambda texts: np.ones((len(texts), embedder.dimension + 1))
    with pytest.raises(VectorError, match="it asks another model; delete"):
        embedder.encode(["of the united states"])
