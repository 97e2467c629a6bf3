"""General English for training: fetched from Debian packages, cleaned, deduplicated, hashed, written as plain text.

``tutorial-lib data`` calls :func:`collect`. The text is not part of this repository: each source keeps its own
licence, which ``manifest.json`` records beside package, version and sha256. Every source becomes a folder of up to
100 text files, and documents go to a file by a hash of their content, so that :func:`corpora.split_of` gives a
document the same split whatever else a newer package adds::

    data/general/wordnet/wordnet-00.txt ...    read in training as --corpus files:data/general
    data/foreign/austen/austen-00.txt ...      a domain that no training text comes from
    data/manifest.json

A paragraph is dropped when it was seen before, when half of its runs of six words were, or, outside the test split,
when it holds six consecutive words of a passage of a shipped test set (:mod:`tutorial_lib.held_out`; a passage of
three to five words: all of it). Needs Debian or Ubuntu (``apt-get``, ``dpkg-deb``) and a network, but no root.
"""

from __future__ import annotations

import gzip
import hashlib
import html.parser
import itertools
import json
import re
import shutil
import struct
import subprocess
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutorial_lib.corpora import split_of
from tutorial_lib.errors import CorpusError

BLOCKS = 100  # files a source is spread over; each goes to one split
_RUN = 6  # words compared at a time
_KEPT = 4  # one run in so many is remembered when looking for near-duplicates; all are for test passages


@dataclass(frozen=True)
class Source:
    """A Debian package (or apt's index of descriptions) that holds English prose."""

    name: str  # folder and file names
    package: str  # as apt knows it; "Translation-en" for the index of package descriptions
    licence: str  # of the text, in SPDX terms where they exist
    read: Callable[[Path], Iterator[list[str]]]  # unpacked package -> documents, each a list of raw paragraphs
    foreign: bool = False  # never for training: the domain left out wholly


# ---- readers: an unpacked package -> documents ------------------------------------------------------------


def read_wordnet(root: Path) -> Iterator[list[str]]:
    """Each synset: its first word, its definition and examples, as one paragraph."""
    for path in sorted(root.glob("usr/share/wordnet/data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            before, bar, gloss = line.partition(" | ")
            if bar and not line.startswith("  "):  # the licence at the top is indented
                word = re.sub(r"\(\w+\)$", "", before.split()[4]).replace("_", " ")
                yield [f"{word}: {gloss}"]


def read_descriptions(root: Path) -> Iterator[list[str]]:
    """Each package description of apt's Translation-en index: its summary, its paragraphs, the items of its lists."""
    for path in sorted(root.glob("*Translation-en*")):
        for stanza in path.read_text(encoding="utf-8").split("\n\n"):
            lines = stanza.partition("\nDescription-en:")[2].strip("\n").split("\n")
            paragraphs = [lines[0]]
            for line in lines[1:]:
                item = re.match(r"\s+[*+o•-]\s+(.+)", line)
                if item or line.strip() == "." or len(paragraphs) == 1:  # " ." is how a blank line is written
                    paragraphs.append("")
                paragraphs[-1] += " " + (item[1] if item else line.strip() * (line.strip() != "."))
            yield paragraphs


def read_dictionary(root: Path) -> Iterator[list[str]]:
    """Each entry of a dictd dictionary; its head stands at the margin, its paragraphs are indented."""
    for path in sorted(root.glob("usr/share/dictd/*.dict.dz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            entry: list[str] = []
            for line in file:
                if line[:1].strip():  # a new head
                    yield entry
                    entry = []
                elif not line.strip():
                    entry.append("")
                elif entry:
                    text = re.sub(r"^<[\w, /-]+>", "", line.strip())  # FOLDOC's subject areas
                    entry[-1] += " " + re.sub(r"[{}]", "", text)
            yield entry


def read_html(root: Path) -> Iterator[list[str]]:
    """Each HTML page: what stands in ``<p>``, program listings left out."""
    for path in sorted(root.rglob("*.html")):
        if not path.is_symlink() and not re.match(r"genindex|contents|bookindex|search", path.name):
            page = _Page()
            page.feed(path.read_text(encoding="utf-8", errors="replace"))
            yield page.paragraphs


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.inside = self.skipped = 0

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.skipped += tag in ("pre", "script", "style", "nav")
        if tag == "p":
            self.inside = 1
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self.skipped -= tag in ("pre", "script", "style", "nav")
        self.inside *= tag not in ("p", "div", "li", "dd", "td")

    def handle_data(self, data: str) -> None:
        if self.inside and not self.skipped:
            self.paragraphs[-1] += data.replace("¶", "")


def read_austen(root: Path) -> Iterator[list[str]]:
    """Six novels out of R's lazy-load database: per object four bytes of length, then zlib, then R's XDR format."""
    for path in sorted(root.rglob("Rdata.rdb")):
        data = path.read_bytes()
        while data:
            unpacker = zlib.decompressobj()
            lines = _r_strings(unpacker.decompress(data[4:]))
            data = unpacker.unused_data
            paragraphs = "\n".join(lines).replace("_", "").split("\n\n")  # _so_ were words in italics
            # a chapter's worth at a time, so that one novel reaches more than one split
            for begin in range(0, len(paragraphs), 20):
                yield paragraphs[begin : begin + 20]


def _r_strings(data: bytes) -> list[str]:
    """The character vector in a serialised R object."""
    at = data.index(b"\x00\x00\x00\x10") + 8  # STRSXP, and how many
    (count,) = struct.unpack(">i", data[at - 4 : at])
    found = []
    for _ in range(count):
        (length,) = struct.unpack(">i", data[at + 4 : at + 8])  # after four bytes of flags; -1: missing
        found.append(data[at + 8 : at + 8 + max(0, length)].decode("utf-8", errors="replace"))
        at += 8 + max(0, length)
    return found


SOURCES = (
    Source("wordnet", "wordnet-base", "WordNet-3.0", read_wordnet),
    Source("jargon", "dict-jargon", "public domain", read_dictionary),
    Source("postgresql", "postgresql-doc-15", "PostgreSQL", read_html),
    Source("python", "python3.11-doc", "PSF-2.0", read_html),
    Source("foldoc", "dict-foldoc", "GFDL-1.1-or-later", read_dictionary),
    Source("debian-reference", "debian-reference-en", "GPL-2.0-or-later", read_html),
    Source("descriptions", "Translation-en", "that of each package described", read_descriptions),
    Source("austen", "r-cran-janeaustenr", "public domain (package: MIT)", read_austen, foreign=True),
)


# ---- cleaning ---------------------------------------------------------------------------------------------


def clean(paragraph: str) -> str | None:
    """One line of prose; None for what is not: fewer than four words, or mostly signs and digits.

    Addresses (web and mail) are cut out: they are not language, and mail addresses are people's.
    """
    text = unicodedata.normalize("NFKC", paragraph)
    text = re.sub(r"<?\b(?:https?|ftp)://\S+|\S+@\S+\.\w+", " ", text)
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    text = re.sub(r"\s+", " ", text).strip(" _")
    letters = sum(sign.isalpha() for sign in text)
    plain = len(re.findall(r"(?<!\S)[(\"'“‘]*[A-Za-z'’-]+[)\"'”’.,;:!?]*(?!\S)", text))
    count = len(text.split())
    return text if count >= 4 and letters >= 0.7 * len(text) and plain >= 0.7 * count else None


def _hash(run: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest(), "big")


def _runs(tokens: Sequence[str], size: int = _RUN) -> Iterator[int]:
    return (_hash(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


@dataclass
class Filter:
    """Says of each paragraph whether it is new, and counts why it is not.

    ``tests`` are passages that may not reach training: whole if short, else any six words of them.
    """

    tests: Iterable[str] = ()
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        from tutorial_lib.privacy.pii import words  # here, since it brings a network along

        self._words = words
        self._whole: set[int] = set()
        self._seen: set[int] = set()
        self._test: dict[int, set[int]] = {}  # run length -> hashes
        for passage in self.tests:
            tokens = self._words(passage)
            size = min(len(tokens), _RUN)
            if size >= 3:  # shorter ones are phrases of the language
                self._test.setdefault(size, set()).update(_runs(tokens, size))

    def new(self, text: str, for_test: bool) -> bool:
        """Keep this cleaned paragraph? ``for_test``: it goes to the test split, where test passages come from."""
        tokens = self._words(text)
        if not for_test and any(
            run in known for size, known in self._test.items() for run in _runs(tokens, size)
        ):
            self.dropped["in a test set"] += 1
            return False
        whole = _hash(tokens)
        if whole in self._whole:
            self.dropped["repeated"] += 1
            return False
        self._whole.add(whole)
        sample = [run for run in _runs(tokens) if run % _KEPT == 0]
        known = sum(run in self._seen for run in sample)
        self._seen.update(sample)
        if sample and known >= 0.5 * len(sample):
            self.dropped["half repeated"] += 1
            return False
        return True


# ---- fetching ---------------------------------------------------------------------------------------------


def fetch(source: Source, cache: Path) -> tuple[Path, dict[str, str]]:
    """(folder with the unpacked package, what the manifest says of it); downloads what ``cache`` lacks.

    Raises :class:`CorpusError` when this is not Debian or Ubuntu, or the package cannot be had.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CorpusError(f"General text comes from Debian packages, and {tool} is not here; use Debian or Ubuntu.")
    cache.mkdir(parents=True, exist_ok=True)
    if source.package == "Translation-en":
        lists = _lists(cache)
        found = sorted(lists.glob("*Translation-en"))
        if not found:
            raise CorpusError("apt brought no Translation-en index; see that its sources can be reached.")
        folder = cache / "unpacked" / source.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in found:
            shutil.copy(path, folder / path.name)
        # "deb.debian.org_debian_dists_bookworm_main_i18n_Translation-en" -> "bookworm main"
        suites = {re.sub(r".*_dists_(.+)_(\w+)_i18n_.*", r"\1 \2", path.name) for path in found}
        digest = hashlib.sha256("".join(_sha256(path) for path in found).encode()).hexdigest()
        return folder, {"version": ", ".join(sorted(suites)), "sha256": digest}
    debs = sorted(cache.glob(f"{source.package}_*.deb"))
    if not debs:
        fresh = not list((cache / "lists").glob("*_Packages"))
        try:
            _apt(cache, "download", source.package, needs=_lists(cache))
        except CorpusError:
            if fresh:
                raise
            shutil.rmtree(cache / "lists")  # of a day on which the archive held another version, or cut short
            _apt(cache, "download", source.package, needs=_lists(cache))
        debs = sorted(cache.glob(f"{source.package}_*.deb"))
    if not debs:
        raise CorpusError(f"apt downloaded no {source.package}; see that its sources can be reached.")
    folder = cache / "unpacked" / source.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _call(["dpkg-deb", "-x", str(debs[-1]), str(folder)], cache, source.package)
    version = _call(["dpkg-deb", "-f", str(debs[-1]), "Version"], cache, source.package).strip()
    return folder, {"version": version, "sha256": _sha256(debs[-1])}


def _lists(cache: Path) -> Path:
    """apt's indices in a folder of ours: no root needed, and the system's own stay as they are."""
    lists = cache / "lists"
    if not list(lists.glob("*_Packages")):
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        _apt(cache, "update", needs=lists)
    return lists


def _apt(cache: Path, *words: str, needs: Path) -> None:
    options = {
        "Dir::State::lists": needs.resolve(),
        "Dir::Cache": (cache / "apt").resolve(),
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "root",  # only matters to root, whose helper user cannot write to this folder
    }
    (cache / "apt" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    given = itertools.chain.from_iterable(("-o", f"{key}={value}") for key, value in options.items())
    _call(["apt-get", "-q", *given, *words], cache, words[-1])


def _call(command: Sequence[str], folder: Path, what: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = re.findall(r"^(?:E:|.*error:) *(.+)", done.stderr, re.M) or ["no reason given"]
        raise CorpusError(f"{what} could not be fetched: {said[0]}")
    return done.stdout


def _sha256(path: Path) -> str:  # the embedder has one too, but brings a network along
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- all of it --------------------------------------------------------------------------------------------


def collect(
    output: str | Path,
    names: Sequence[str] = (),
    *,
    tests: Iterable[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fetch, clean, deduplicate and write the sources ``names`` (all of them, if empty); returns the manifest.

    ``output``: folder for ``general/``, ``foreign/``, ``manifest.json`` and the downloads (``packages/``, to be
    deleted at will). ``tests``: passages that may not occur in what is written for training. A source that cannot
    be fetched is left out with a sentence to ``say``. Raises :class:`CorpusError` for an unknown name, or when no
    source could be fetched at all. What an earlier call wrote, and this one did not, stays in the manifest as it
    stays on the disk.
    """
    known = {source.name: source for source in SOURCES}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise CorpusError(f"Unknown source {unknown[0]!r}; there are {', '.join(known)}.")
    output = Path(output)
    gate = Filter(tests)
    entries: list[dict[str, Any]] = []
    for source in SOURCES:  # in this order whatever was asked for: the small and well-written first
        if names and source.name not in names:
            continue
        try:
            folder, found = fetch(source, (output / "packages").resolve())
            entries.append(_write(source, folder, output, gate) | found)
        except CorpusError as error:
            say(f"{source.name} is left out: {error}")
            continue
        say(f"{source.name}: {entries[-1]['words']:,} words of {source.package} {found['version']}")
    if not entries:
        raise CorpusError("No source of general text could be fetched; see that apt can reach its servers.")
    entries = _with_earlier(entries, output)
    manifest = {"sources": entries, "blocks": BLOCKS, "unicode": unicodedata.unidata_version}
    from tutorial_lib.cards import write_whole  # here: it brings PyTorch

    write_whole(output / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _with_earlier(entries: list[dict[str, Any]], output: Path) -> list[dict[str, Any]]:
    """These entries and the old manifest's whose folder is still there, in the order of SOURCES."""
    try:
        found = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["sources"]
        kept = [entry for entry in found if _target(output, entry["source"], entry["foreign"]).is_dir()]
        earlier = {entry["source"]: entry for entry in kept}
    except (OSError, ValueError, LookupError, TypeError):  # none yet, or none that can be read
        earlier = {}
    merged = earlier | {entry["source"]: entry for entry in entries}
    places = {source.name: place for place, source in enumerate(SOURCES)}
    return sorted(merged.values(), key=lambda entry: places.get(entry["source"], len(places)))


def _target(output: Path, name: str, foreign: bool) -> Path:
    return output / ("foreign" if foreign else "general") / name


def _write(source: Source, folder: Path, output: Path, gate: Filter) -> dict[str, Any]:
    """Write one source's files; what the manifest says of the text itself."""
    target = _target(output, source.name, source.foreign)
    blocks: dict[str, list[str]] = {}
    gate.dropped = Counter()
    count = 0
    for document in source.read(folder):
        text = [cleaned for cleaned in map(clean, document) if cleaned is not None]
        block = int.from_bytes(hashlib.sha256("\n".join(text).encode()).digest()[:4], "big") % BLOCKS
        name = f"{source.name}-{block:02}.txt"
        apart = source.foreign or split_of(name) == "test"
        kept = [paragraph for paragraph in text if gate.new(paragraph, apart)]
        count += bool(kept)
        blocks.setdefault(name, []).extend(kept)
    if not count:
        raise CorpusError(f"{source.package} holds no prose where it is expected; its layout must have changed.")
    # Written elsewhere first, outside of the folder that training reads: what is killed leaves no half of a source.
    part = output / "packages" / f"{source.name}.part"
    for left in (part, part.with_suffix(".old")):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    for name, lines in blocks.items():
        (part / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    copyright_note = next(iter(folder.glob("usr/share/doc/*/copyright")), None)
    if copyright_note is not None:
        shutil.copy(copyright_note, part / "copyright")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # out of the way and into place in two renames, between which hardly anything can happen
        target.rename(part.with_suffix(".old"))
    part.rename(target)
    shutil.rmtree(part.with_suffix(".old"), ignore_errors=True)
    return {
        "source": source.name,
        "package": source.package,
        "licence": source.licence,
        "foreign": source.foreign,
        "documents": count,
        "paragraphs": sum(map(len, blocks.values())),
        "words": sum(len(line.split()) for lines in blocks.values() for line in lines),
        "dropped": dict(gate.dropped),
        "files": {path.name: _sha256(path) for path in sorted(target.glob("*.txt"))},
    }
