"""The command line as its users meet it: what it prints where, and one sentence for every mistake."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutorial_lib import cli, cli_common, cli_train
from tutorial_lib.errors import TutorialError
from tutorial_lib.training import Ended

COMMANDS = ("invert", "evaluate", "data", "train", "audit", "reproduce", "book", "check")
Said = tuple[int, str, str]


@pytest.fixture
def say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, embedder: Any, make_tiny: Any
) -> Callable[..., Said]:
    """Runs the command line in this process on the tiny models: (status, stdout, stderr)."""
    from tutorial_lib import Corrector, Embedder, Inverter

    loaded: list[str] = []

    def load(cls: Any, seed: int) -> Any:
        def from_pretrained(name: str, **_: Any) -> Any:
            loaded.append(f"{cls.kind} {name}")
            return make_tiny(cls, seed)

        return from_pretrained

    monkeypatch.setattr(Inverter, "from_pretrained", load(Inverter, 0))
    monkeypatch.setattr(Corrector, "from_pretrained", load(Corrector, 1))
    monkeypatch.setattr(Embedder, "from_pretrained", lambda *_, **__: embedder)

    def run(*words: str) -> Said:
        loaded.clear()
        try:
            status = cli.main(words)
        except SystemExit as exit:  # argparse leaves this way
            status = int(exit.code or 0)
        return (status, *capsys.readouterr())

    run.loaded = loaded  # type: ignore[attr-defined]
    return run


QUICK = ("--steps", "1", "--beam", "2")


# ---- help ----------------------------------------------------------------------------------------------


def test_help_is_instant_and_loads_no_networks() -> None:
    code = "import sys; sys.argv = ['tutorial-lib', '--help']\nfrom tutorial_lib.cli import main\n"
    code += "try: main()\nexcept SystemExit: print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    began = time.process_time_ns(), os.times().children_user
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
    assert os.times().children_user - began[1] < 0.5  # seconds of this machine's time, however busy it is
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(say: Callable[..., Said], command: str) -> None:
    status, out, err = say(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: tutorial-lib {command}")
    if command in ("invert", "evaluate", "data", "train", "audit"):
        assert f"examples:\n  tutorial-lib {command}" in out


def test_version(say: Callable[..., Said]) -> None:
    assert re.fullmatch(r"tutorial-lib \d+\.\d+\.\d+\n", say("--version")[1])


@pytest.mark.parametrize("module", [cli, cli_train])
def test_the_examples_in_the_help_parse(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    ran: list[str] = []

    def note(arguments: argparse.Namespace) -> int:
        ran.append(arguments.command)
        return 0

    for name in ("_invert", "_evaluate", "_book", "_check"):
        monkeypatch.setattr(cli, name, note)
    monkeypatch.setattr(cli_train, "_train", note)
    monkeypatch.setattr("tutorial_lib.audit.run", note)
    source = Path(module.__file__).read_text(encoding="utf-8")
    lines = re.findall(r"""^ +["'](tutorial-lib .*)["'],$""", source, re.M)
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line.split(">")[0].split("<")[0], comments=True)
        assert cli.main(words[1:]) == 0
    assert ran


# ---- invert --------------------------------------------------------------------------------------------


def test_invert_tells_rounds_on_stderr_and_the_text_on_stdout(
    say: Callable[..., Said], test_texts: list[str]
) -> None:
    status, out, err = say("invert", test_texts[0].upper(), *QUICK)
    assert status == 0
    assert re.fullmatch(
        rf"target     {test_texts[0]}\nrecovered  .+\n"
        r" {11}not exact, cosine 0\.\d{4}, \d\d queries, 1 rounds\n",
        out,
    )
    assert re.match(r"round   0  0\.\d{4}      [12] queries  \S", err)  # an empty guess is not embedded
    status, out, err = say("invert", *test_texts[:2], *QUICK)
    assert "round   0  2  " in err
    assert out.count("target") == 2


def test_many_texts_get_one_line_a_round(say: Callable[..., Said], test_texts: list[str]) -> None:
    _, _, err = say("invert", *test_texts[:5], *QUICK)
    assert re.fullmatch(r"(round   [01]  mean cosine 0\.\d{4}  \d+ queries\n){2}", err)


def test_invert_as_json(say: Callable[..., Said], test_texts: list[str]) -> None:
    status, out, err = say("invert", test_texts[1], "--json", "--quiet", *QUICK)
    assert (status, err) == (0, "")
    told = json.loads(out)
    (row,) = told["texts"]
    assert row["target"] == test_texts[1]
    assert row["exact"] is False
    assert row["trace"][-1] == {
        "step": 1,
        "text": row["text"],
        "cosine": row["trace"][-1]["cosine"],
        "queries": row["queries"],
    }
    assert told["beam"] == 2


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_vectors_from_a_file_give_what_their_texts_give(
    say: Callable[..., Said], embedder: Any, test_texts: list[str], tmp_path: Path, suffix: str
) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"vectors.{suffix}"
    vectors = embedder.encode(test_texts[:2])
    if suffix == "npy":
        np.save(path, vectors)
    else:
        pyarrow.parquet.write_table(pyarrow.table({"vector": vectors.tolist()}), path)
    status, out, _ = say("invert", "--vectors", str(path), *QUICK)
    assert status == 0
    assert "target" not in out
    direct = json.loads(say("invert", *test_texts[:2], "--json", *QUICK)[1])
    assert out.splitlines()[::2] == [row["text"] for row in direct["texts"]]


@pytest.mark.parametrize("scaled", ["ten times", "int8"])
def test_vectors_at_another_length_give_what_their_texts_give(
    say: Callable[..., Said], embedder: Any, test_texts: list[str], tmp_path: Path, scaled: str
) -> None:
    vectors = embedder.encode(test_texts[:2])
    stored = vectors * 10 if scaled == "ten times" else np.round(vectors * 127 / np.abs(vectors).max()).astype(np.int8)
    np.save(tmp_path / "vectors.npy", stored)
    words = ("--json", "--quiet", "--steps", "0", "--beam", "2")
    rows = json.loads(say("invert", "--vectors", str(tmp_path / "vectors.npy"), *words)[1])["texts"]
    direct = json.loads(say("invert", *test_texts[:2], *words)[1])["texts"]
    assert [row["text"] for row in rows] == [row["text"] for row in direct]


def test_texts_from_stdin(say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("peace\n\nthe law\n"))
    status, out, _ = say("invert", "-", *QUICK)
    assert status == 0
    assert re.findall(r"target +(.*)", out) == ["peace", "the law"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    assert (
        say("invert", "-", *QUICK)[2] == "tutorial-lib invert: stdin is not UTF-8 text; convert it first.\n"
    )


def test_what_cannot_come_back_is_said_first(say: Callable[..., Said]) -> None:
    _, _, err = say("invert", "peace \N{GRINNING FACE}", "peace " * 11, "--steps", "0", "--quiet")
    assert "has characters unknown to all-MiniLM-L6-v2; they are lost" in err
    assert "has 11 word pieces and the weights were trained for 10; expect fragments" in err
    grown = ("--steps", "1", "--variants", "6", "--surrogate", "--quiet")  # a search in which texts may grow
    _, _, err = say("invert", "peace " * 20, "peace " * 21, *grown)
    assert "has 20 word pieces and the weights were trained for 10; few so long come back whole" in err
    assert "has 21 word pieces and the weights were trained for 10; expect fragments" in err
    _, _, err = say("invert", "peace " * 20, *grown, "--steps", "0")  # first guesses cannot grow
    assert "expect fragments" in err


def test_a_control_character_inside_a_text_does_no_harm(say: Callable[..., Said]) -> None:
    status, out, _ = say("invert", "the\x07 law\t of\nthe \x1b[31mworld", "--steps", "0", "--json")
    assert status == 0
    assert json.loads(out)["texts"][0]["target"] == "the law of the [ 31mworld"


def test_no_steps_need_no_corrector(say: Callable[..., Said]) -> None:
    assert say("invert", "peace", "--steps", "0", "--beam", "1")[0] == 0
    assert say.loaded == ["inverter all-MiniLM-L6-v2"]  # type: ignore[attr-defined]
    say("invert", "peace", "--inverter", "here", *QUICK)
    assert say.loaded == ["inverter here", "corrector here"]  # type: ignore[attr-defined]


def test_variants_reach_the_search(say: Callable[..., Said]) -> None:
    words = ("invert", "a new law for the people", "--json", "--quiet", "--steps", "1", "--beam", "1", "--edits", "0")
    (plain,) = json.loads(say(*words)[1])["texts"]
    (bred,) = json.loads(say(*words, "--variants", "20")[1])["texts"]
    assert plain["queries"] <= 2 < 12 < bred["queries"] <= 24
    status, out, _ = say("evaluate", "--corpus", "records", "--n", "2", "--variants", "6", "--json", *QUICK)
    assert status == 0 and json.loads(out)["scores"][-1]["queries"] <= 10


def test_a_surrogate_chooses_among_variants(say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    from tutorial_lib import surrogate

    asked, real = [], surrogate.Surrogate.fit
    monkeypatch.setattr(surrogate.Surrogate, "fit", lambda self: (asked.append(len(self._texts)), real(self)))
    words = ("invert", "a new law for the people", "--json", "--steps", "2", "--surrogate")
    status, out, err = say(*words, "--variants", "6")
    (found,) = json.loads(out)["texts"]
    assert status == 0 and err == "" and asked[0] <= 4
    assert asked == [found["queries"] - 12, found["queries"] - 6]  # learnt before each of two rounds of six
    status, _, err = say(*words)
    assert status == 2 and err.endswith("there are none; add --variants 32.\n")


def test_a_surrogate_looks_ahead_from_words_alone(say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    from tutorial_lib import surrogate

    monkeypatch.setattr("tutorial_lib.word_lists.whole_words", lambda _: ["law", "people", "new"])
    given, real = [], surrogate.Guided
    monkeypatch.setattr(surrogate, "Guided", lambda *models, **kept: given.append(kept) or real(*models, **kept))
    words = ("invert", "a new law for the people", "--json", "--steps", "2", "--variants", "6", "--ahead", "2")
    status, out, err = say(*words, "--surrogate")
    assert (status, err) == (0, "3 words were embedded, once for all vectors\n")
    assert json.loads(out)["texts"][0]["queries"] <= 16
    (options,) = given
    assert options["ahead"] == 2 and len(options["words"].pieces) == 3
    assert say(*words, "--surrogate", "--steps", "0", "--quiet")[2] == ""  # nothing to look ahead in
    status, _, err = say(*words)
    assert status == 2 and err.endswith("there is none; add --surrogate.\n")


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A file of names for --words, whose vocabulary is left out: embedding it takes a while."""
    monkeypatch.setattr("tutorial_lib.word_lists.whole_words", lambda _: [])
    file = tmp_path / "people.txt"
    file.write_text("tara\nrubio\nage\n29\n,\n", encoding="utf-8")
    return str(file)


def test_words_of_a_list_are_put_in_at_last(say: Callable[..., Said], people: str) -> None:
    words = ("invert", "tara rubio", "--json", "--quiet", *QUICK)
    (plain,) = json.loads(say(*words)[1])["texts"]
    status, out, err = say(*words, "--words", people)
    (filled,) = json.loads(out)["texts"]
    assert (status, err) == (0, "5 words were embedded, once for all vectors\n")
    assert (plain["exact"], filled["exact"]) == (False, True)
    assert filled["trace"][: len(plain["trace"])] == plain["trace"] and filled["queries"] > plain["queries"]
    (few,) = json.loads(say(*words, "--words", people, "--max-queries", "40")[1])["texts"]
    assert few["queries"] <= 40 < filled["queries"]
    ahead = (*words, "--steps", "1", "--variants", "6", "--surrogate", "--ahead", "2", "--words", people)
    assert say(*ahead)[2] == err  # embedded once for both, too


def test_words_are_read_from_a_file(embedder: Any, tmp_path: Path) -> None:
    assert cli_common.read_words(None, embedder) == []
    file = tmp_path / "people.txt"
    file.write_text("Zo\u00eb Quux\n\n  rubio \n", encoding="utf-8")
    assert cli_common.read_words(str(file), embedder)[:2] == ["Zo\u00eb Quux", "rubio"]
    assert {"congress", "rubio"} <= set(cli_common.read_words(str(file), embedder))
    assert {"congress", "abbott"} <= set(cli_common.read_words("census", embedder))
    file.write_bytes(b"zo\xeb")
    with pytest.raises(TutorialError, match="not UTF-8"):
        cli_common.read_words(str(file), embedder)
    with pytest.raises(TutorialError, match="No such file"):
        cli_common.read_words(str(tmp_path / "none"), embedder)


def test_a_list_that_cannot_be_read_is_said_before_the_search(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_search", None)
    for words in (("invert", "peace"), ("evaluate", "--n", "1")):
        status, out, err = say(*words, "--words", "gone.txt")
        assert (status, out) == (2, "")
        assert err == (
            f"tutorial-lib {words[0]}: the words in 'gone.txt' cannot be read (No such file or directory): "
            "give a text file\n"
        )


def test_a_budget_that_pays_for_no_round_is_said(say: Callable[..., Said]) -> None:
    words = ("invert", "a new law for the people", "the law", "--quiet")
    status, _, err = say(*words, "--max-queries", "47")  # a round of the default beam and edits may cost 48
    assert status == 0
    assert err == (
        "note: 2 of 2 texts had no round of correction, since a round may cost 48 queries after the first guesses; "
        "raise --max-queries 47 or try less in a round.\n"
    )
    assert "no round" in say(*words, "--max-queries", "20", "--variants", "20")[2]
    assert say(*words, "--max-queries", "60", "--steps", "1")[2] == ""
    assert say(*words, "--max-queries", "47", "--steps", "0")[2] == ""


def long(text: str) -> str:
    return text * 300


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give either texts or --vectors FILE"),
        (["peace", "--vectors", "x.npy"], "give either texts or --vectors FILE"),
        ([""], "has no word pieces"),
        (["  "], "has no word pieces"),
        (["\x01\x02"], "has no word pieces"),
        (["\udcff"], r"is not UTF-8"),
        ([long("peace ")], "has 300 word pieces and all-MiniLM-L6-v2 reads 254; split it"),
        (["--vectors", "gone.npy"], "gone.npy"),
        (["--vectors", "text.npy"], "is not a readable .npy file"),
        (["--vectors", "text.parquet"], "is not a readable Parquet file"),
        (["--vectors", "text.docx"], "text.docx"),
        (["--vectors", "none.npy"], "is empty: there is no vector to read"),
        (["--vectors", "flat.npy"], r"shape \(384,\)"),
        (["--vectors", "narrow.npy"], r"takes shape \[n, 384\]"),
        (["--vectors", "nan.npy"], "NaN"),
        (["--vectors", "inf.npy"], "infinity"),
        (["--vectors", "zero.npy"], "all zeros"),
        (["--vectors", "many.npy"], "has 31 rows and at most 30 are inverted at once; take a sample"),
        (["peace", "--steps", "-1"], "'-1' is not a whole number of at least 0"),
        (["peace", "--steps", "many"], "'many' is not a whole number"),
        (["peace", "--beam", "0"], "'0' is not a whole number of at least 1"),
        (["peace", "--max-queries", "3"], "does not pay for the first 4 guesses"),
        (["peace", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_input_is_one_sentence(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.npy", "text.parquet", "text.docx"):
        Path(name).write_text("not vectors")
    good = np.random.default_rng(0).standard_normal((3, 384)).astype(np.float32)
    np.save("flat.npy", good[0])
    np.save("none.npy", good[:0])
    np.save("narrow.npy", good[:, :3])
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        np.save(f"{name}.npy", np.where(np.arange(384) == 5, np.float32(value), good))
    np.save("zero.npy", good * np.float32([[1], [0], [1]]))
    np.save("many.npy", np.resize(good, (31, 384)))
    monkeypatch.setattr(cli, "_MOST", 30)
    status, out, err = say("invert", *words)
    assert (status, out) == (2, "")
    assert re.search(sentence, err)
    assert err.startswith("tutorial-lib")
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if not line.startswith("note:")]) == 1


def test_a_long_text_is_cut_on_request(say: Callable[..., Said]) -> None:
    assert say("invert", long("peace "), "--truncate", "--steps", "0")[0] == 0


def test_models_that_do_not_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for option in ("--embedder", "--inverter"):
        assert cli.main(["invert", "peace", option, str(tmp_path / "none")]) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"tutorial-lib invert: [^\n]+\n", err)
        assert "none" in err


# ---- evaluate ------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path, test_texts: list[str]) -> str:
    """A folder of documents of random word order, enough of them that each split has some."""
    words = sorted({word for text in test_texts for word in text.split()})
    rng = np.random.default_rng(0)
    for index in range(40):
        (tmp_path / f"document{index}.txt").write_text(" ".join(rng.choice(words, 40)), encoding="utf-8")
    return f"files:{tmp_path}"


def test_evaluate_gives_scores_with_n_intervals_and_queries(say: Callable[..., Said]) -> None:
    status, out, err = say("evaluate", "--corpus", "records", "--n", "4", *QUICK)
    assert (status, err) == (0, "")
    head, bag, first, last, about = out.splitlines()
    columns = ["method", "BLEU", "token F1 %", "exact %", "cosine", "queries", "full names %", "facts %"]
    assert re.split("  +", head) == columns
    assert bag.startswith("bag of words")
    # the beam's two guesses, or one where a random model writes nothing, which is not embedded
    assert re.match(r"0 steps .*\(.*–.*, n = 4\).* [12] \([12]–[12], n = 4\)", first)
    assert last.startswith("1 steps")
    assert about == "records, test split, 10 word pieces, beam 2, 32 edits, all-MiniLM-L6-v2"


def test_evaluate_scores_what_a_list_adds(say: Callable[..., Said], people: str) -> None:
    words = ("evaluate", "--corpus", "records", "--max-tokens", "8", "--n", "3", "--words", people, *QUICK)
    status, out, _ = say(*words)
    assert status == 0
    assert [line.split("  ")[0] for line in out.splitlines()[1:-1]] == [
        "bag of words",
        "0 steps",
        "1 steps",
        "1 steps, words",
    ]
    *_, before, after = json.loads(say(*words, "--json")[1])["scores"]
    assert after["cosine"] >= before["cosine"] and after["queries"] > before["queries"]


def test_a_card_does_not_credit_the_inverter_with_the_list(
    say: Callable[..., Said], people: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training.json").write_text("{}")
    cards: list[dict[str, Any]] = []
    monkeypatch.setattr("tutorial_lib.cards.write_card", lambda folder, scores: cards.append(scores) or folder)
    say("evaluate", "--corpus", "records", "--n", "2", "--steps", "0", "--words", people, "--card", "--beam", "2")
    (alone,) = cards  # no corrector, no card of one
    assert [name.partition(" (")[0] for name in alone] == ["bag of words", "0 steps"]
    say("evaluate", "--corpus", "records", "--n", "2", "--words", people, "--card", *QUICK)
    assert [name.partition(" (")[0] for name in cards[1]] == ["bag of words", "0 steps", "1 steps", "1 steps, words"]
    assert all(f"words {people}" in name for name in cards[1])


def test_an_evaluation_says_how_it_searched(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training.json").write_text("{}")
    cards: list[dict[str, Any]] = []
    monkeypatch.setattr("tutorial_lib.cards.write_card", lambda folder, scores: cards.append(scores) or folder)
    words = ("evaluate", "--corpus", "records", "--n", "2", "--card", "--json")
    found = json.loads(say(*words, *QUICK, "--edits", "4", "--max-queries", "9")[1])
    assert (found["search"], found["max_queries"]) == ("beam 2, 4 edits, at most 9 queries", 9)
    assert all("beam 2, 4 edits, at most 9 queries)" in name for name in cards[0])
    found = json.loads(say(*words, "--steps", "0", "--beam", "2")[1])
    assert (found["search"], found["max_queries"]) == ("beam 2", None)  # no round, no edit


def test_a_budget_that_leaves_nothing_for_the_words_is_said(say: Callable[..., Said], people: str) -> None:
    words = ("invert", "the law of the world", "--quiet", "--steps", "0", "--beam", "2", "--words", people)
    assert "left nothing for the words of 1 of 1 texts" in say(*words, "--max-queries", "2")[2]
    assert "left nothing" not in say(*words)[2]


def test_evaluate_on_a_shipped_test_set_of_records(say: Callable[..., Said]) -> None:
    words = ["--corpus", "test:records", "--max-tokens", "6", "--n", "3", "--at", "0", "--json", *QUICK]
    status, out, _ = say("evaluate", *words)
    assert status == 0
    row = json.loads(out)["scores"][1]
    for share in ("names", "facts"):
        assert 0 <= row[f"{share}_low"] <= row[share] <= row[f"{share}_high"] <= 100


@pytest.mark.parametrize(("named", "sought"), [("run/inverter", "run/corrector"), ("run", "run")])
def test_a_corrector_is_sought_beside_its_inverter(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, sought: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("inverter", "corrector"):
        (tmp_path / "run" / kind).mkdir(parents=True)
        (tmp_path / "run" / kind / "config.json").write_text("{}")
    assert say("invert", "peace", "--inverter", named, *QUICK)[0] == 0
    assert say.loaded == [f"inverter {named}", f"corrector {sought}"]  # type: ignore[attr-defined]
    shutil.rmtree(tmp_path / "run" / "corrector")
    say("invert", "peace", "--inverter", named, *QUICK)
    assert say.loaded[-1] == f"corrector {named}"  # type: ignore[attr-defined]


def test_evaluate_as_json_with_one_text_has_no_nan(say: Callable[..., Said], corpus: str) -> None:
    words = ["evaluate", "--corpus", corpus, "--n", "1", "--max-tokens", "8", "--at", "0", "--json", *QUICK]
    status, out, err = say(*words)
    assert (status, err) == (0, "")
    told = json.loads(out, parse_constant=pytest.fail)
    assert told["max_tokens"] == 8
    assert [row["method"] for row in told["scores"]] == ["bag of words", "0 steps"]
    assert told["scores"][1]["n"] == 1
    assert told["scores"][1]["bleu_low"] is None
    assert told["scores"][1]["queries"] in (1, 2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--at", "0", "9", "--steps", "3"], "--at 9 lies beyond the last round; raise --steps 3"),
        (["--corpus", "test:poems"], "Unknown test set 'poems'"),
        (["--corpus", "test:novels", "--split", "train", "--max-tokens", "8"], "has only a test split"),
        (["--corpus", "novels"], "Unknown corpus 'novels'; use sotu"),
        (["--corpus", "files:nowhere/"], "holds no text"),
        (["--corpus", "records", "--max-tokens", "2"], "needs at least 6 word pieces"),
        (["--split", "dev"], "invalid choice: 'dev'"),
        (["--n", "0"], "'0' is not a whole number of at least 1"),
        (["--seed", "-1"], "'-1' is not a whole number of at least 0"),
        (["--card"], "a card is written from a run's training.json and "),
    ],
)
def test_evaluate_refuses_in_one_sentence(say: Callable[..., Said], words: list[str], sentence: str) -> None:
    status, out, err = say("evaluate", *words)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_card_that_cannot_be_written_does_not_cost_the_scores(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training.json").write_text("{}")  # the tiny models are of no folder, which is this one

    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device", "README.md")

    monkeypatch.setattr("tutorial_lib.cards.write_card", full)
    status, out, err = say("evaluate", "--corpus", "records", "--n", "2", "--card", *QUICK)
    assert (status, err) == (2, "tutorial-lib evaluate: No space left on device (README.md).\n")
    assert "1 steps" in out
    monkeypatch.setattr("tutorial_lib.cards.write_card", lambda folder, scores: folder / "README.md")
    status, out, err = say("evaluate", "--corpus", "records", "--n", "2", "--card", "--json", *QUICK)
    assert (status, err) == (0, "README.md\n" * 2)
    assert json.loads(out)["scores"]


def test_a_corpus_of_one_document_is_refused(say: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("one short document\n")
    status, _, err = say("evaluate", "--corpus", f"files:{tmp_path}")
    assert status == 2
    assert re.fullmatch(
        r"tutorial-lib evaluate: .*1 document\(s\) fall in other splits; .*\n|.*has 0 of.*\n", err
    )


# ---- train ---------------------------------------------------------------------------------------------


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    cli_train.add_train(commands)
    return parser.parse_args(["train", *words])


def test_every_setting_of_a_run_has_its_option() -> None:
    from tutorial_lib import TrainConfig

    samples = {"share": "0.5", "positive": "1.5", "parse": "9"}
    parser = argparse.ArgumentParser()
    cli_train.add_train(parser.add_subparsers())
    choices = next(action.choices for action in parser._actions if action.choices)["train"]
    actions = {action.dest: action for action in choices._actions}
    for field in fields(TrainConfig):
        assert field.name in actions, f"TrainConfig.{field.name} has no option"
        action = actions[field.name]
        if action.type is None or field.name == "kind":
            continue
        given = samples[action.type.__name__]
        value = getattr(parsed("corrector", action.option_strings[0], given), field.name)
        assert value == action.type(given)
        if told := re.search(r"\(default ([0-9.]+)", action.help or ""):
            default = getattr(TrainConfig("inverter", "run"), field.name)
            assert float(told[1]) == default, f"the help of {field.name} tells another default"
        if told := re.search(r"for a corrector ([0-9.]+)", action.help or ""):
            assert float(told[1]) == getattr(TrainConfig("corrector", "run"), field.name)


def test_what_is_not_given_keeps_its_default() -> None:
    from tutorial_lib import TrainConfig

    config = cli_train.training_config(parsed("inverter", "--max-steps", "3", "--corpus", "sotu", "files:x"))
    expected = TrainConfig(
        "inverter", str(Path("runs/all-MiniLM-L6-v2/inverter")), max_steps=3, corpus=("sotu", "files:x")
    )
    assert config == expected
    other = cli_train.training_config(parsed("inverter", "--max-steps", "3", "--embedder", "owner/name"))
    assert other.output == str(Path("runs/owner--name/inverter"))


def test_an_older_card_of_an_inverter_may_repeat_a_default_of_its_day() -> None:
    assert cli_train.training_config(parsed("inverter", "--max-steps", "3", "--corrupted", "0.3", "--reuse", "1"))
    with pytest.raises(TutorialError, match="--corrupted belongs to the corrector"):
        cli_train.training_config(parsed("inverter", "--max-steps", "3", "--corrupted", "0.5"))


def test_a_damaged_inverter_is_one_sentence(say: Any, tmp_path: Path) -> None:
    beside = tmp_path / "run" / "inverter"
    beside.mkdir(parents=True)
    (beside / "config.json").write_text('{"max_tokens": 1')  # cut short
    status, out, err = say("train", "corrector", "--output", str(tmp_path / "run" / "corrector"), "--max-steps", "5")
    assert status == 2 and not out and "is damaged; train or fetch the inverter again" in err


def test_a_corrector_finds_the_inverter_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("corrector", "--max-steps", "3", "--output", "run/corrector")
    assert cli_train.training_config(parsed(*words)).inverter == "all-MiniLM-L6-v2"
    beside = tmp_path / "run" / "inverter"
    beside.mkdir(parents=True)
    (beside / "config.json").write_text('{"max_tokens": 14}')
    (beside / "config.json").rename(beside / "checkpoint.pt")  # as a killed run leaves it
    with pytest.raises(TutorialError, match=r"inverter in run/inverter is not finished: go on with --resume first"):
        cli_train.training_config(parsed(*words))
    assert cli_train.training_config(parsed(*words, "--inverter", "all-MiniLM-L6-v2")).max_tokens == 16
    (beside / "checkpoint.pt").rename(beside / "config.json")
    config = cli_train.training_config(parsed(*words))
    assert config.inverter == str(Path("run/inverter"))
    assert config.max_tokens == 14


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inverter"], "give --max-minutes or --max-steps"),
        (
            ["inverter", "--max-steps", "1", "--min-tokens", "9", "--max-tokens", "8"],
            "shortest window cannot be longer",
        ),
        (["inverter", "--max-steps", "1", "--fresh", "0.1"], "--fresh belongs to the corrector"),
        (
            ["corrector", "--max-steps", "1", "--width", "8"],
            "has the shape of its inverter; leave --width out",
        ),
        (["corrector", "--max-steps", "1", "--records", "1.5"], "'1.5' is not a share between 0 and 1"),
        (["inverter", "--max-minutes", "0"], "'0' is not a number above zero"),
        (["inverter", "--max-minutes", "nan"], "'nan' is not a number above zero"),
        (["inverter", "--max-steps", "1", "--seed", "-1"], "'-1' is not a whole number of at least 0"),
        (["decoder"], "invalid choice: 'decoder'"),
    ],
)
def test_train_refuses_in_one_sentence(say: Callable[..., Said], words: list[str], sentence: str) -> None:
    status, out, err = say("train", *words)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_train_hands_over_and_reports(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From what this call did: the folder may hold an earlier end of a run that goes on."""
    result = {"steps": 5, "seconds": 2.0, "sequences": 1280, "loss": 3.25}
    (tmp_path / "training.json").write_text(json.dumps({"result": {**result, "steps": 1}}))
    calls: list[tuple[Any, bool]] = []
    ends = [(True, None), (True, result), (True, result), (False, None)]

    def train_segment(config: Any, resume: bool = False, progress: bool = True) -> Ended:
        calls.append((config, resume))
        return Ended(Path(config.output), *ends.pop(0))

    monkeypatch.setattr("tutorial_lib.training.train_segment", train_segment)
    words = ("train", "inverter", "--output", str(tmp_path), "--max-steps", "5", "--resume")
    assert "go on with --resume" in say(*words)[1]
    assert say(*words)[1] == f"{tmp_path}: 5 steps, 1280 sequences, loss 3.250\n"
    assert json.loads(say(*words, "--json")[1]) == {"output": str(tmp_path), "finished": True, **result}
    assert say(*words) == (0, "", "")  # another process of the same run reports
    config, resume = calls[-1]
    assert (config.max_steps, resume) == (5, True)


@pytest.mark.parametrize(
    ("limit", "steps", "processes"), [("--max-minutes", 120, 1), ("--max-steps", 500, 1), ("--max-steps", 500, 4)]
)
def test_an_estimate_extrapolates_from_a_few_steps(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, steps: int, processes: int
) -> None:
    ends = {"steps": 20, "sequences": 20 * 256 * processes}

    def train_segment(config: Any, resume: bool = False, progress: bool = True) -> Ended:
        assert config.max_steps == 20
        assert config.max_minutes is None
        folder = Path(config.output)
        assert folder != tmp_path
        (folder / "loss.csv").write_text("step,seconds\n10,7.0\n20,12.0\n")  # half a second a step
        (folder / "checkpoint.pt").write_bytes(b"0" * 500_000)
        for part in (1, 2):  # the default model is written in parts
            (folder / f"model-{part:05}-of-00002.safetensors").write_bytes(b"0" * 250_000)
        return Ended(folder, True, ends)

    monkeypatch.setattr("tutorial_lib.training.train_segment", train_segment)
    value = "1" if limit == "--max-minutes" else "500"
    words = ("train", "inverter", "--estimate", "--price", "3.6", "--output", str(tmp_path), limit, value)
    told = json.loads(say(*words, "--json")[1])
    assert told["seconds_per_step"] == pytest.approx(0.5)
    assert told["steps"] == steps
    sequences = steps * 256 * processes
    assert told["sequences"] == sequences
    assert told["disk_bytes"] == 1_500_000
    assert told["hours"] == pytest.approx(steps * 0.5 / 3600, abs=1e-3)
    assert told["cost"] == pytest.approx(3.6 * told["hours"])
    assert told["texts_embedded_at_most"] == 8192 + sequences
    paid = json.loads(say(*words, "--price-per-1000", "2", "--json")[1])["cost"]
    assert paid == pytest.approx(3.6 * told["hours"] + 2 * (8.192 + sequences / 1000), rel=1e-3)
    out = say(*words)[1]
    assert f"{512 * processes} sequences/s" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reuse", [1, 4])
def test_an_estimate_of_a_corrector_counts_the_writing_of_guesses(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reuse: int
) -> None:
    cycle = 16 * reuse

    def train_segment(config: Any, resume: bool = False, progress: bool = True) -> Ended:
        folder = Path(config.output)
        assert config.max_steps > cycle  # one rewriting at least is timed
        lines = ["step,seconds"]  # half a second a step, twelve for every rewriting, five to begin with
        lines += [f"{n},{5 + n / 2 + 12 * (n // cycle)}" for n in range(10, config.max_steps + 1, 10)]
        (folder / "loss.csv").write_text("\n".join(lines) + "\n")
        for name in ("checkpoint.pt", "model.safetensors"):
            (folder / name).write_bytes(b"0")
        return Ended(folder, True, {"steps": config.max_steps, "sequences": config.max_steps * 256})

    monkeypatch.setattr("tutorial_lib.training.train_segment", train_segment)
    words = ("train", "corrector", "--estimate", "--output", str(tmp_path), "--max-steps", "640", "--reuse", str(reuse))
    told = json.loads(say(*words, "--json")[1])
    assert told["seconds_per_step"] == pytest.approx(0.5 + 12 / cycle, rel=0.01)
    assert told["texts_embedded_at_most"] == pytest.approx(2 * 256 * (640 / reuse + 16), rel=0.01)


# ---- how it ends ---------------------------------------------------------------------------------------


def test_audit_book_and_check_are_at_home_here(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no_such.parquet" in say("audit", "no_such.parquet")[2]
    for command in ("book", "check"):
        status, out, err = say(command)
        assert (status, out) == (2, "")
        assert "not inside a clone of the book" in err


def test_interrupted(say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_invert", interrupt)
    assert say("invert", "peace") == (130, "", "\ntutorial-lib invert: interrupted.\n")
    monkeypatch.setattr(cli_train, "_train", interrupt)
    status, _, err = say("train", "inverter")
    assert status == 130
    assert "go on from the last checkpoint, if one was written, with --resume" in err


def test_a_full_disk_is_one_sentence(say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device", "runs")

    monkeypatch.setattr(cli, "_invert", full)
    assert say("invert", "peace") == (2, "", "tutorial-lib invert: No space left on device (runs).\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_full_memory_is_one_sentence_that_says_what_helps(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any) -> int:
        raise error

    monkeypatch.setattr(cli, "_invert", full)
    monkeypatch.setattr(cli_train, "_train", full)
    for command, advice in ((("invert", "peace"), "fewer texts"), (("train", "inverter"), "smaller --batch-size")):
        status, out, err = say(*command)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "memory is full" in err
        assert advice in err


def test_a_mistake_of_ours_is_no_full_memory(say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> int:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(cli, "_invert", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        say("invert", "peace")


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "import sys\nfrom tutorial_lib import cli\n"
        "cli._check = lambda _: print('x' * 1_000_000) or 0\n"
        "sys.exit(cli.main(['check']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        done.stdout.read(10)
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == 141


def test_json_is_printed_as_its_standard_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    cli_common.print_json({"a": float("nan")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": None}
