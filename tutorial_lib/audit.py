"""Audit of a vector store: how much of the text behind its vectors can be written back (chapter 4).

    audit(url, embedder, inverter, corrector, sample=200, out="audit") -> AuditReport
    merge(folders, out)        one report of several shards (`accelerate launch` makes and merges them)
    add_parser(commands)       `tutorial-lib audit URL`

The store is only read; nothing leaves the machine.  Memory holds one batch and the sample, whatever the size
of the store (reservoir sampling, Vitter 1985).  Every finished batch is on the disk, in `out/journal.jsonl`,
before the next one starts, so a killed audit resumes without repeating work.  The journal holds masked text
unless `show=True`; the sample (`out/sample.npz`, its owner's alone) is deleted when the audit is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .audit_journal import Journal, finished_lines
from .audit_report import AuditReport, summarise
from .audit_sample import Fit, Scan, fits, lost_lengths, scaling, scan
from .cli_common import add_variants, at_least, corrector_beside, hush, read_lines, read_words
from .errors import CheckpointError, TextError, TutorialError
from .metrics import token_f1
from .privacy.pii import check_names, find_pii, mask, name_hits, pii_hits
from .privacy.pii import words as in_words
from .stores import Store, open_store

if TYPE_CHECKING:
    from .embedder import Embedder
    from .word_lists import WordList

# Cosine of the re-embedded guess above which it counts as the text itself, where there is no text to compare
# with: rounding is all that may lie between the two.  None: the storage is too coarse to tell.
SAME_TEXT = {"float32": 0.99999, "float16": 0.99999, "int8": 0.999, "binary": None, "pq": None}
_ROWS_A_CORE = 4  # of a surrogate's search, of a minute each: a kill loses them


def audit(
    url: str,
    embedder: Embedder,
    inverter: Any,
    corrector: Any = None,
    *,
    sample: int = 200,
    steps: int = 20,
    beam_width: int = 4,
    edits: int = 32,
    variants: int = 0,
    surrogate: bool = False,
    ahead: int = 1,
    out: str | Path = "audit",
    resume: bool = True,
    show: bool = False,
    names: Sequence[str] = (),
    words: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 32,
    shard: tuple[int, int] = (1, 1),
    invert: Callable[..., Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AuditReport:
    """Sample a store, invert the sample, report what leaked; writes `report.html` and `report.json` to `out`.

    url: see `tutorial_lib.stores`.  sample: rows inverted.  steps, beam_width, edits: as in `search.invert`.
    variants: more than 0 searches with `breed`, that many texts a round: for those of more than twelve pieces.
    surrogate: `surrogate_search` chooses them instead (chapter 6), and looks `ahead` changes ahead: with more than 1 it
    embeds every word of the embedder's vocabulary, once.  Then a batch has a few rows for each core, since a row may
    take a minute.
    resume: continue an audit that was stopped; False refuses a folder that holds one.  show: keep the
    recovered texts readable in journal and report.  names: people to look for (an uncased embedder leaves
    no capitals to find names by).  words: a list to put into the guesses at last, see `word_lists.fill_in`.  Words are
    embedded once, which the report's queries leave out.  shard: (i, n) inverts the i-th of n parts of the sample, each
    in an `out` of its own, for `merge`.  invert: another inversion function of the same signature.  progress: called
    with (rows done, rows in all).  The models are moved to the embedder's device.  Vectors are inverted at length 1
    where the embedder's own have it, else as they are stored.  Raises StoreError or VectorError for a store that cannot
    be read, CheckpointError for models of another embedder, TutorialError for an `out` folder of another audit, a value
    out of range, and an embedder that is a table.
    """
    # Everything is checked before the journal is opened: what is written there binds the next run.
    least = {"sample": 1, "steps": 0, "beam_width": 1, "edits": 0, "variants": 0, "ahead": 1, "seed": 0}
    least["batch_size"] = 1
    values = (sample, steps, beam_width, edits, variants, ahead, seed, batch_size)
    for (name, minimum), value in zip(least.items(), values, strict=True):
        if value < minimum:
            raise TutorialError(f"{name}={value} was asked for: use a whole number of at least {minimum}")
    if surrogate and not variants:
        raise TutorialError("a surrogate chooses among variants and there are none: pass variants=32 (--variants 32)")
    if ahead > 1 and not surrogate:
        raise TutorialError(f"ahead={ahead} looks ahead in a surrogate: pass surrogate=True as well (--surrogate)")
    check_names(names)
    _check_models(embedder, inverter, corrector)
    if not steps:  # the first guess alone: there is nothing to correct or to recombine
        corrector, variants, surrogate, ahead = None, 0, False, 1
    elif corrector is None and (variants or invert is None):
        raise TutorialError(f"steps={steps} was asked for without a corrector: pass one, or steps=0")
    if invert is None:
        from .search import invert as search

        invert = search
    for model in (inverter, corrector):
        if hasattr(model, "to"):
            model.to(embedder.device)
    part, parts = shard
    if not 1 <= part <= parts:
        raise TutorialError(
            f"shard {part} of {parts} was asked for: shards are numbered from 1 to their count"
        )
    with open_store(url) as store:
        settings = {
            "store": store.url,
            "rows": store.count,
            "dimension": store.dimension,
            "stored": store.stored,
            "quantisation": store.quantisation,
            "embedder": embedder.name,
            "inverter": _name(inverter),
            "inverter length": int(getattr(inverter.config, "max_tokens", 0)),
            "corrector": _name(corrector),
            "sample": sample,
            "shard": f"{part} of {parts}",
            "steps": steps,
            # What the search that was asked for uses, and nothing else.
            **({"variants": variants} if variants else {"beam width": beam_width, "edits": edits}),
            **({"surrogate": True, "look-ahead": ahead} if surrogate else {}),
            "seed": seed,
            "shown": show,
            # A digest, so that another list is noticed and no name is written down.
            "names": _digest(names),
            **({"words": f"{len(words):,} ({_digest(words)})"} if words else {}),
        }
        journal = Journal(Path(out), settings, resume=resume)
        if not journal.find("done"):
            found = _scanned(store, journal, sample, seed)
    # The store is closed: from here on only the sample is used, so a store that vanishes now harms nothing.
    if not journal.find("done"):
        attack = _Attack(
            embedder,
            inverter,
            corrector,
            invert,
            steps,
            beam_width,
            edits,
            variants,
            surrogate,
            ahead,
            show,
            names,
            words,
            str(settings["quantisation"]),
        )
        together = _side_by_side(embedder) if surrogate else batch_size  # a kill loses a batch
        _invert(journal, found, attack, range(part - 1, len(found.ids), parts), together, seed, progress)
    report = summarise(journal.entries)
    report.save(out)
    if not journal.find("done"):
        journal.append({"done": True})
    with suppress(FileNotFoundError):
        journal.sample.unlink()
    return report


def _side_by_side(embedder: Embedder) -> int:
    """Texts of one surrogate's search: a few for each core of a CPU (`tutorial_lib.parallel`), which take them in turn,
    so that one that resists for long keeps the others waiting less."""
    import torch

    return _ROWS_A_CORE * torch.get_num_threads() if torch.device(embedder.device).type == "cpu" else 1


def _scanned(store: Store, journal: Journal, sample: int, seed: int) -> Scan:
    """The scan of this audit: from the journal if it was finished, else done now."""
    entry = journal.find("scan")
    if entry and journal.sample.exists():
        return journal.load_sample(entry)
    found = scan(store, sample, seed=seed)
    journal.save_sample(found)
    if not entry:
        journal.append({"scan": {"rows": found.rows, "skipped": found.skipped, "norm": list(found.norm)}})
    return found


def _check_models(embedder: Embedder, *models: Any) -> None:
    """Raise TutorialError unless the embedder answers, CheckpointError unless the models were made for it."""
    if getattr(embedder, "closed", False):
        raise TutorialError(
            f"{embedder.name} is a table with nobody to ask for a guess's vector: audit with an embedder that answers"
        )
    for model in models:
        made_for = getattr(getattr(model, "config", None), "embedder_name", embedder.name)
        if made_for != embedder.name:
            raise CheckpointError(
                f"{_name(model)} was made for {made_for} and the embedder is {embedder.name}: name the pair that "
                "belongs together"
            )


def _invert(
    journal: Journal,
    found: Scan,
    attack: _Attack,
    mine: range,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Whatever of rows `mine` of the sample the journal does not hold yet."""
    started, before = time.monotonic(), attack.embedder.queries
    scale = scaling(attack.embedder)
    if journal.find("fit") is None:
        fit = fits(found.vectors, attack.embedder, attack.first_guess, scale, seed=seed)
        if lost_lengths(scale, found.norm):
            scaled = "the store scaled these vectors to length 1 and the embedder does not, so their lengths are lost"
            fit = replace(fit, reason=f"{fit.reason}; {scaled}, and an inverter trained on scaled vectors reads more")
        spent = attack.embedder.queries - before
        journal.append({"fit": asdict(fit), "queries": spent, "seconds": time.monotonic() - started})
    if Fit(**journal.find("fit")).verdict == "no":
        return
    for start in range(journal.rows_done, len(mine), batch_size):
        if progress:
            progress(start, len(mine))
        started = time.monotonic()
        rows = mine[start : start + batch_size]
        judged = attack.rows(
            scale(found.vectors[rows]), [found.ids[i] for i in rows], [found.texts[i] for i in rows]
        )
        journal.append({"rows_done": judged, "seconds": time.monotonic() - started})
    if progress:
        progress(len(mine), len(mine))


def merge(folders: Sequence[str | Path], out: str | Path) -> AuditReport:
    """One report of the shards of an audit, each finished in a folder of its own; written to `out`.

    Raises TutorialError for a shard that is missing, unfinished, or of another audit.
    """
    entries: list[dict[str, Any]] = []
    for folder in folders:
        if not (Path(folder) / "journal.jsonl").exists():
            raise TutorialError(f"{str(folder)!r} holds no audit: give the out folders of all shards")
        shard = _finished(folder)
        if not shard:
            raise TutorialError(f"the audit in {str(folder)!r} is not finished: resume it first")
        entries += shard
    every = [entry["settings"] for entry in entries if "settings" in entry]
    shards = {settings["shard"] for settings in every}
    if len({json.dumps({**settings, "shard": ""}) for settings in every}) != 1:
        raise TutorialError(
            "the folders hold different audits: merge shards of one store with one set of options"
        )
    parts = int(every[0]["shard"].split()[-1])
    if len(every) != parts or shards != {f"{i} of {parts}" for i in range(1, parts + 1)}:
        given = ", ".join(sorted(shards))
        raise TutorialError(f"the audit has {parts} shards and {given} were given: give each shard once")
    report = summarise([{"settings": {**every[0], "shard": f"all {parts}"}}, *entries[1:]])
    Path(out).mkdir(parents=True, exist_ok=True)
    report.save(out)
    return report


def _finished(folder: str | Path) -> list[dict[str, Any]]:
    """The journal of a finished audit; nothing where there is none, or it is still under way."""
    path = Path(folder) / "journal.jsonl"
    entries = finished_lines(path) if path.exists() else []
    return entries if entries and entries[-1].get("done") else []


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12] if lines else ""


def _name(model: Any) -> str:
    """What a model is called in the settings: its folder or Hub name, else its class."""
    config = getattr(model, "config", None)
    return "" if model is None else str(getattr(config, "_name_or_path", "") or type(model).__name__)


@dataclass(frozen=True)
class _Attack:
    """The inversion of one batch and what is written down about it."""

    embedder: Embedder
    inverter: Any
    corrector: Any
    invert: Callable[..., Any]
    steps: int
    beam_width: int
    edits: int
    variants: int
    surrogate: bool
    ahead: int
    show: bool
    names: Sequence[str]
    listed: Sequence[str]
    quantisation: str

    @cached_property
    def words(self) -> WordList:
        """The list, embedded when the first rows ask for it."""
        from .word_lists import WordList

        return WordList.embed(self.listed, self.embedder)

    @cached_property
    def alone(self) -> WordList:
        """What a surrogate that looks ahead begins with: the embedder's own words, embedded once."""
        from .word_lists import WordList, whole_words

        own = whole_words(self.embedder)
        return self.words if set(own) <= set(self.listed) else WordList.embed(own, self.embedder)

    def first_guess(self, vectors: np.ndarray) -> np.ndarray:
        """Cosine of the base model's guess with each vector: [m, d] -> [m]."""
        result = self.invert(vectors, self.embedder, self.inverter, None, steps=0, beam_width=1)
        return np.asarray(result.cosines, dtype=np.float64)

    def rows(
        self, vectors: np.ndarray, ids: Sequence[str], texts: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        models = (self.embedder, self.inverter, self.corrector)
        if self.surrogate:
            from .surrogate import surrogate_search

            words = self.alone if self.ahead > 1 else None
            result = surrogate_search(
                vectors, *models, steps=self.steps, variants=self.variants, ahead=self.ahead, words=words
            )
        elif self.variants:
            from .variants import breed

            result = breed(vectors, *models, steps=self.steps, variants=self.variants)
        else:
            options = {"steps": self.steps, "beam_width": self.beam_width, "edits": self.edits}
            result = self.invert(vectors, *models, **options)
        if self.listed:
            from .word_lists import fill_in

            result = fill_in(vectors, result, self.embedder, self.words)
        rows = []
        for i, guess in enumerate(result.texts):
            row = {"id": ids[i], "cosine": float(result.cosines[i]), "queries": int(result.queries[i])}
            row |= self.judge(guess, texts[i], float(result.cosines[i]))
            rows.append(row | {"guess": guess if self.show else mask(guess)})
        return rows

    def judge(self, guess: str, text: str | None, cosine: float) -> dict[str, Any]:
        """What one guess gives away; without the text only what the guess itself says."""
        threshold = SAME_TEXT[self.quantisation]
        judged: dict[str, Any] = {"same": None if threshold is None else cosine >= threshold}
        judged["guessed_pii"] = [f.kind for f in find_pii(guess)]
        judged["guessed_names"] = sum(name_hits(n, guess)[0] for n in self.names)
        if text is None or not text.strip():
            return judged
        try:
            truth, mine = self.embedder.token_ids([text, guess])
        except TextError:  # half a character, say: no embedder read this
            return judged
        limit = self.embedder.max_tokens
        length, truth = len(truth), truth[:limit]  # the embedder never saw what lies beyond
        if length > limit:
            text = self.embedder.decode([truth])[0]
        judged |= {
            "length": length,
            "exact": truth == mine,
            "f1": 100 * token_f1(truth, mine),
            "pii": pii_hits(text, guess),
        }
        spoken = set(in_words(text))
        in_text = [n for n in self.names if set(in_words(n)) <= spoken and name_hits(n, text)[0]]
        judged["names"] = [list(map(bool, name_hits(n, guess))) for n in in_text]
        judged["text"] = text if self.show else mask(text)
        return judged


# ---------------------------------------------------------------- command line


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib audit`: what a store of vectors gives away."""
    parser = commands.add_parser(
        "audit",
        help="how much text a vector store gives away",
        description="Sample a vector store, write its texts back from the vectors, and report what leaked. "
        "The store is only read and nothing leaves this machine.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  tutorial-lib audit lancedb:data/notes#chunks\n"
        "  tutorial-lib audit postgresql://reader@localhost/app#public.chunks --sample 1000 --out audit-app\n"
        "  tutorial-lib audit vectors.npy --steps 50 --beam 8 --show\n"
        "  tutorial-lib audit vectors.npy --sample 50 --variants 32 --surrogate --ahead 3 --steps 90   # longer texts\n"
        "  tutorial-lib audit lancedb:data/notes --words census   # an attacker with a list of names\n"
        "  tutorial-lib audit --merge part1 part2 --out audit   # after --shard 1/2 --out part1, ...\n"
        "  accelerate launch --num_processes 4 --module tutorial_lib.cli audit lancedb:data/notes --sample 10000\n"
        "                                        # a shard per process or GPU; the last one done merges them",
    )
    parser.add_argument(
        "url", nargs="?", help="lancedb:, chroma:, qdrant:, postgresql:, sqlite:, faiss:, parquet: or npy:"
    )
    parser.add_argument(
        "--embedder", default="all-MiniLM-L6-v2", help="the model thought to have written the vectors"
    )
    parser.add_argument("--inverter", help="weights: a name, folder or Hub name (default: the embedder's)")
    parser.add_argument("--corrector", help="weights of the corrector (default: beside the inverter's)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the fastest there is)")
    parser.add_argument("--sample", type=at_least(1), default=200, help="rows to invert (default 200)")
    parser.add_argument("--steps", type=at_least(0), default=20, help="rounds of correction (default 20)")
    parser.add_argument("--beam", type=at_least(1), default=4, help="beam width (default 4)")
    parser.add_argument("--edits", type=at_least(0), default=32, help="local edits a round (default 32)")
    add_variants(parser)
    parser.add_argument("--out", default="audit", help="folder for journal and report (default audit)")
    parser.add_argument("--resume", action="store_true", help="continue an audit that was stopped")
    parser.add_argument(
        "--show", action="store_true", help="leave the recovered texts readable in the report"
    )
    parser.add_argument("--names", metavar="FILE", help="people to look for, one name a line")
    parser.add_argument(
        "--words",
        metavar="FILE",
        help="put words and names from a list into the guesses: a text file with one a line, or census for the "
        "commonest names of the United States",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the sample (default 0)")
    parser.add_argument(
        "--shard", metavar="I/N", default="1/1", help="invert the I-th of N parts of the sample"
    )
    parser.add_argument("--merge", nargs="+", metavar="FOLDER", help="report on finished shards instead")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def _progress(done: int, rows: int) -> None:
    print(f"\rinverted {done} of {rows}", end="", file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> int:
    """Run `tutorial-lib audit`; the verdict goes to stdout, progress to stderr."""
    report = merge(arguments.merge, arguments.out) if arguments.merge else _run(arguments)
    if report is None:  # one shard of several: the last process to finish has the report
        return 0
    print(report.to_json() if arguments.json else report.to_text())
    print(f"report: {Path(arguments.out) / 'report.html'}", file=sys.stderr)
    return 0


def _launched() -> tuple[int, int, str | None]:
    """(number of this process from 1, processes in all, its GPU if any), as accelerate or torchrun started them."""
    parts = int(os.environ.get("WORLD_SIZE", "1"))
    if parts < 2:
        return 1, 1, None
    import torch

    local = os.environ.get("LOCAL_RANK", "0")
    return int(os.environ.get("RANK", "0")) + 1, parts, f"cuda:{local}" if torch.cuda.is_available() else None


def _run(arguments: argparse.Namespace) -> AuditReport | None:
    from .corrector import Corrector
    from .embedder import Embedder
    from .inverter import Inverter

    if not arguments.url:
        raise TutorialError(
            "no store was given: name one, such as lancedb:data/notes, or shards with --merge"
        )
    try:
        part, parts = map(int, arguments.shard.split("/"))
    except ValueError as error:
        raise TutorialError(
            f"--shard {arguments.shard} is not of the form 2/4: the second of four"
        ) from error
    process, processes, device = _launched()
    out = Path(arguments.out)
    if processes > 1:
        if parts > 1:
            raise TutorialError(
                f"--shard {arguments.shard} was given to {processes} processes: they share the sample by themselves"
            )
        part, parts, out = process, processes, out / f"part{process}"
    names = read_lines(arguments.names, "names") if arguments.names else []
    open_store(arguments.url).close()  # a wrong address should not wait for the models to load
    hush()
    if device and (arguments.device or "cuda") == "cuda":
        arguments.device = device  # each process its own GPU
    embedder = Embedder.from_pretrained(arguments.embedder, device=arguments.device)
    _check_models(embedder)  # before models are looked for that a table may not have
    named = arguments.inverter or arguments.embedder
    report = audit(
        arguments.url,
        embedder,
        Inverter.from_pretrained(named),
        Corrector.from_pretrained(arguments.corrector or corrector_beside(named)) if arguments.steps else None,
        sample=arguments.sample,
        steps=arguments.steps,
        beam_width=arguments.beam,
        edits=arguments.edits,
        variants=arguments.variants,
        surrogate=arguments.surrogate,
        ahead=arguments.ahead,
        out=out,
        resume=arguments.resume,
        show=arguments.show,
        names=names,
        words=read_words(arguments.words, embedder),
        seed=arguments.seed,
        shard=(part, parts),
        progress=_progress if part == 1 or processes == 1 else None,
    )
    print(file=sys.stderr)
    if processes == 1:
        return report
    folders = [Path(arguments.out) / f"part{i}" for i in range(1, processes + 1)]
    return merge(folders, arguments.out) if all(map(_finished, folders)) else None
