"""General text: every reader on a small sample of its format, the filter, and a whole collection without a network."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from tutorial_lib import cards, cli, general_text
from tutorial_lib.corpora import documents, split_of
from tutorial_lib.errors import CorpusError
from tutorial_lib.general_text import SOURCES, Filter, Source, clean, collect, fetch
from tutorial_lib.privacy.pii import words

# ---- readers -----------------------------------------------------------------------------------------------


def put(root: Path, name: str, data: bytes | str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def test_wordnet(tmp_path: Path) -> None:
    lines = (
        "  1 This software and database | is being provided to you\n"
        '00977214 04 n 01 first_strike(a) 1 002 @ 00976531 n 0000 | a very rapid raid; "they struck first"  \n'
    )
    put(tmp_path, "usr/share/wordnet/data.noun", lines)
    assert list(general_text.read_wordnet(tmp_path)) == [['first strike: a very rapid raid; "they struck first"  ']]


def test_descriptions(tmp_path: Path) -> None:
    text = """Package: tea
Description-md5: 0
Description-en: brews tea at a fixed time
 This program boils water
 and waits.
 .
 It comes with
  * a kettle that is
    made of copper
  * two cups

Package: nothing
Description-en: no more to say
"""
    put(tmp_path, "x_dists_y_main_i18n_Translation-en", text)
    first, second = general_text.read_descriptions(tmp_path)
    assert [" ".join(paragraph.split()) for paragraph in first] == [
        "brews tea at a fixed time",
        "This program boils water and waits.",
        "It comes with",
        "a kettle that is made of copper",
        "two cups",
    ]
    assert [line.strip() for line in second if line.strip()] == ["no more to say"]


def test_dictionary(tmp_path: Path) -> None:
    text = "abstract data type\nADT\n\n   <programming> (ADT) A kind of {data\n   abstraction}.\n\n   More.\n"
    text += "\nnext\n\n   Last.\n"
    put(tmp_path, "usr/share/dictd/x.dict.dz", gzip.compress(text.encode()))
    entries = [[" ".join(line.split()) for line in entry if line.strip()] for entry in
               general_text.read_dictionary(tmp_path)]  # fmt: skip
    assert [entry for entry in entries if entry] == [["(ADT) A kind of data abstraction.", "More."], ["Last."]]


def test_html(tmp_path: Path) -> None:
    page = "<h1>no</h1><p>One <b>two</b>\nthree¶<pre>code</pre> four</p>between<ul><li><p>item</li></ul><p>last"
    put(put(tmp_path, "a/x.html", page), "a/genindex.html", "<p>index")
    assert list(general_text.read_html(tmp_path)) == [["One two\nthree four", "item", "last"]]


def test_novels(tmp_path: Path) -> None:
    def serialised(lines: list[str | None]) -> bytes:
        data = b"X\n" + struct.pack(">iii", 3, 0x40201, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
        data += struct.pack(">ii", 16, len(lines))
        for line in lines:
            raw = b"" if line is None else line.encode()
            data += struct.pack(">ii", 0x40009, -1 if line is None else len(raw)) + raw
        return struct.pack(">i", len(data)) + zlib.compress(data)

    put(tmp_path, "data/Rdata.rdb", serialised(["EMMA", "", "Emma _was_", "rich.", None]) + serialised(["Anne"]))
    assert list(general_text.read_austen(tmp_path)) == [["EMMA", "Emma was\nrich.\n"], ["Anne"]]


# ---- cleaning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  The union\n is\u00a0 strong today. ", "The union is strong today."),
        ("write to jane@example.org or see https://example.org/x for the rest", "write to or see for the rest"),
        ("too few words", None),
        ("12 34 56 78 90 11 22 33", None),
        ("x = f(a, b[0]); y += 1 << 2; z", None),
        ("ﬁne ligatures are written out", "fine ligatures are written out"),
    ],
)  # fmt: skip
def test_clean(raw: str, expected: str | None) -> None:
    assert clean(raw) == expected


_PARTS = ["see", "the", "house", "of", "ﬁne", "café", "was", "built", "long", "ago", "\n", "  ", "\t", "(here)", "and"]


@given(st.lists(st.sampled_from(_PARTS), min_size=30, max_size=60))
def test_cleaning_is_idempotent_and_gives_one_line(parts: list[str]) -> None:
    once = clean(" ".join(parts) + ".")
    if once is None:  # markup, or too little prose left
        reject()
    assert "\n" not in once and "  " not in once
    assert clean(once) == once


def test_words_are_the_same_in_raw_and_normalised_text(embedder: Any) -> None:
    text = "The U.S. café doesn't cost $3.50 — “really”!"
    assert words(text) == words(embedder.normalise([text])[0])


LONG = "we the people of the united states in order to form a more perfect union"


def test_the_filter_drops_what_repeats() -> None:
    gate = Filter()
    assert gate.new(LONG, False)
    assert not gate.new(LONG.upper() + ".", False)  # the same words
    variants = [f"{LONG} establish justice {n}" for n in ("one", "two", "three")]
    assert not any(gate.new(text, False) for text in variants)
    assert gate.dropped == {"repeated": 1, "half repeated": 3}
    assert gate.new("quite another sentence with its own words and ideas in it", False)


def test_the_filter_keeps_test_passages_out_of_training_and_in_the_test_split() -> None:
    gate = Filter([LONG, "fourscore and seven", "so be"])
    training = f"he said : in order to form a more perfect union , and {'so on ' * 9}"
    assert not gate.new(training, False)
    assert not gate.new("It was Fourscore and seven years ago", False)
    assert gate.new("so be it, they said in the end", False)  # two words are a phrase of the language
    assert gate.new(training, True)
    assert gate.dropped == {"in a test set": 2}


# ---- all of it ---------------------------------------------------------------------------------------------


def sentences(word: str) -> list[list[str]]:
    pairs = [chr(97 + i) + chr(97 + j) for i in range(20) for j in range(20)]
    return [[f"{word} number {pair} tells its own {word} story"] for pair in pairs]


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two sources that need no network, and one that cannot be fetched."""
    sources = (
        Source("tales", "tales-package", "CC0-1.0", lambda root: iter(sentences("tale"))),
        Source("gone", "gone-package", "CC0-1.0", lambda root: iter(())),
        Source("odes", "odes-package", "CC0-1.0", lambda root: iter(sentences("ode")), foreign=True),
    )

    def fetched(source: Source, cache: Path) -> tuple[Path, dict[str, str]]:
        if source.name == "gone":
            raise CorpusError("gone-package could not be fetched: no such package")
        put(cache / source.name, "usr/share/doc/x/copyright", "free")
        return cache / source.name, {"version": "1.0-1", "sha256": "0" * 64}

    monkeypatch.setattr(general_text, "SOURCES", sources)
    monkeypatch.setattr(general_text, "fetch", fetched)
    return tmp_path / "data"


def test_collect_writes_files_that_training_reads(local: Path) -> None:
    said: list[str] = []
    secret = "tale number aa tells its own tale story"  # in a file for training
    manifest = collect(local, tests=[secret], say=said.append)
    assert json.loads((local / "manifest.json").read_text()) == manifest
    assert [entry["source"] for entry in manifest["sources"]] == ["tales", "odes"]
    assert "gone is left out: gone-package could not be fetched: no such package" in said
    tales = manifest["sources"][0]
    assert (tales["package"], tales["version"], tales["licence"]) == ("tales-package", "1.0-1", "CC0-1.0")
    assert (local / "general" / "tales" / "copyright").read_text() == "free"
    assert (local / "foreign" / "odes").is_dir()
    found = documents(f"files:{local}/general")
    assert {document.name for document in found} == set(tales["files"])
    training = [document for document in found if split_of(document.name) != "test"]
    assert training
    assert len(training) < len(found)
    assert tales["dropped"]["in a test set"] == 1
    assert not any(secret in document.text for document in training)
    # a second time, with nothing changed, the same bytes
    again = collect(local, tests=[secret])
    assert again == manifest


def test_what_is_killed_leaves_no_half_of_a_source(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(local, ["tales"])
    before = {path: path.read_bytes() for path in local.rglob("*.txt")}
    write, written = Path.write_text, []

    def stopped(path: Path, *rest: Any, **options: Any) -> int:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(path, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", stopped)
        with pytest.raises(KeyboardInterrupt):
            collect(local, ["tales"])
    assert {path: path.read_bytes() for path in (local / "general").rglob("*.txt")} == before
    collect(local, ["tales"])
    assert {path: path.read_bytes() for path in local.rglob("*.txt")} == before  # and nothing is left over


def test_a_source_fetched_alone_joins_those_on_the_disk(local: Path) -> None:
    collect(local, ["odes"])
    collect(local, ["tales"])
    manifest = collect(local, ["tales"])
    assert json.loads((local / "manifest.json").read_text()) == manifest
    assert [entry["source"] for entry in manifest["sources"]] == ["tales", "odes"]
    shutil.rmtree(local / "foreign" / "odes")
    assert [entry["source"] for entry in collect(local, ["tales"])["sources"]] == ["tales"]
    (local / "manifest.json").write_text("damaged")
    assert [entry["source"] for entry in collect(local, ["tales"])["sources"]] == ["tales"]


def test_a_card_names_the_packages(local: Path) -> None:
    collect(local)
    tales, odes = (f"{name}-package 1.0-1 (CC0-1.0, sha256 {'0' * 64})" for name in ("tales", "odes"))
    found = {place: cards._fetched(f"files:{local}/{place}") for place in ("", "general", "general/tales", "foreign")}
    assert found == {
        "": {"packages": f"{tales}; {odes}"},
        "general": {"packages": tales},
        "general/tales": {"packages": tales},
        "foreign": {"packages": odes},
    }
    for pattern in ("general/*.txt", "general/tales-?.txt", "general/**/*.txt", "general/[a-z]*"):
        assert cards._fetched(f"files:{local}/{pattern}") == {"packages": tales}
    assert cards._fetched(f"files:{local}/general/nothing/*.txt") == {}
    assert cards._fetched("sotu") == cards._fetched("files:elsewhere/*.txt") == {}


def test_collect_refuses(local: Path) -> None:
    with pytest.raises(CorpusError, match="Unknown source 'poems'; there are tales, gone, odes"):
        collect(local, ["poems"])
    with pytest.raises(CorpusError, match="No source of general text could be fetched"):
        collect(local, ["gone"])


def test_a_layout_that_changed_is_said(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Source("tales", "tales-package", "CC0-1.0", lambda root: iter([["no", "prose"]]))
    monkeypatch.setattr(general_text, "SOURCES", (empty,))
    monkeypatch.setattr(general_text, "fetch", lambda source, cache: (cache, {}))
    said: list[str] = []
    with pytest.raises(CorpusError, match="No source"):
        collect(local, say=said.append)
    why = "tales-package holds no prose where it is expected; its layout must have changed."
    assert said == [f"tales is left out: {why}"]


def test_the_command(
    local: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["data", "--output", str(local)]) == 0
    said = capsys.readouterr()
    assert "words from 1 packages; train with --corpus sotu files:" in said.out
    assert "gone is left out" in said.err
    assert cli.main(["data", "--output", str(local), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == general_text.BLOCKS


# ---- fetching ----------------------------------------------------------------------------------------------


def test_another_system_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(CorpusError, match="apt-get is not here; use Debian or Ubuntu"):
        fetch(SOURCES[0], tmp_path)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_package_in_the_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    root = put(tmp_path / "build", "usr/share/wordnet/data.noun", "1 2 n 01 tea 0 | a drink made of leaves  \n")
    control = "Package: wordnet-base\nVersion: 1:3.0-37\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    put(root, "DEBIAN/control", control)
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(["dpkg-deb", "-b", str(root), str(cache / "wordnet-base_3.0-37_all.deb")], check=True,
                   capture_output=True)  # fmt: skip
    (wordnet,) = (source for source in SOURCES if source.name == "wordnet")
    folder, found = fetch(wordnet, cache)
    assert found["version"] == "1:3.0-37"
    assert len(found["sha256"]) == 64
    assert list(wordnet.read(folder)) == [["tea: a drink made of leaves  "]]
    (cache / "wordnet-base_3.0-37_all.deb").write_bytes(b"broken")
    with pytest.raises(CorpusError, match="wordnet-base could not be fetched: "):
        fetch(wordnet, cache)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_an_index_of_another_day_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    calls: list[str] = []

    def apt(cache: Path, *words: str, needs: Path) -> None:
        calls.append(words[0])
        if words[0] == "update":
            put(needs, "today_Packages", "")
        elif not (needs / "today_Packages").exists():
            raise CorpusError("wordnet-base could not be fetched: 404  Not Found")
        else:
            raise CorpusError("no network after all")

    monkeypatch.setattr(general_text, "_apt", apt)
    put(tmp_path, "lists/deb_debian_dists_bookworm_main_binary-amd64_Packages", "")
    with pytest.raises(CorpusError, match="no network after all"):
        fetch(SOURCES[0], tmp_path)
    assert calls == ["download", "update", "download"]
    calls.clear()
    shutil.rmtree(tmp_path / "lists")
    with pytest.raises(CorpusError, match="no network after all"):
        fetch(SOURCES[0], tmp_path)
    assert calls == ["update", "download"]  # of today: once is enough


def test_the_index_of_descriptions_in_the_cache(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs apt-get and dpkg-deb")
    (descriptions,) = (source for source in SOURCES if source.name == "descriptions")
    put(tmp_path, "lists/deb_debian_dists_bookworm_main_binary-amd64_Packages", "")
    with pytest.raises(CorpusError, match="no Translation-en index"):
        fetch(descriptions, tmp_path)
    put(tmp_path, "lists/deb_debian_dists_bookworm_main_i18n_Translation-en", "Package: x\nDescription-en: a b c d\n")
    folder, found = fetch(descriptions, tmp_path)
    assert found["version"] == "bookworm main"
    (paragraphs,) = descriptions.read(folder)
    assert paragraphs[0].strip() == "a b c d"
