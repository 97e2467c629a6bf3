"""Audit of a vector store: how much of the text behind its vectors can be written back (chapter 4).

    audit(url, embedder, inverter, corrector, sample=200, out="audit") -> AuditReport
    Journal                    what is finished, on the disk
    add_parser(commands)       `tutorial-lib audit URL`

The store is only read; nothing leaves the machine.  Memory holds one batch and the sample, whatever the size
of the store (reservoir sampling, Vitter 1985).  Every finished batch is on the disk, in `out/journal.jsonl`,
before the next one starts, so a killed audit resumes without repeating work.  The journal holds masked text
unless `show=True`; the sample (`out/sample.npz`, its owner's alone) is deleted when the audit is done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .audit_report import AuditReport, summarise
from .audit_sample import Fit, Scan, fits, scan
from .errors import StoreError, TutorialError
from .metrics import token_f1
from .privacy.defences import unit
from .privacy.pii import find_pii, mask, name_hits, pii_hits, words
from .stores import Store, open_store

if TYPE_CHECKING:
    from .embedder import Embedder

# Cosine of the re-embedded guess above which it counts as the text itself, where there is no text to compare
# with: rounding is all that may lie between the two.  None: the storage is too coarse to tell.
SAME_TEXT = {"float32": 0.99999, "float16": 0.99999, "int8": 0.999, "binary": None, "pq": None}


class Journal:
    """Append-only log of an audit: one JSON object a line, on the disk before `append` returns."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.path, self.sample = folder / "journal.jsonl", folder / "sample.npz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.entries = list(self._read())
        except OSError as error:
            raise StoreError(
                f"the audit cannot write to {str(folder)!r} ({error.strerror}): choose another out folder"
            ) from error
        if self.entries and not resume:
            raise TutorialError(
                f"{str(folder)!r} already holds an audit: pass resume=True (--resume), or choose "
                "another out folder"
            )
        if self.entries and self.entries[0].get("settings") != settings:
            old = self.entries[0].get("settings", {})
            changed = ", ".join(sorted(k for k in settings if old.get(k) != settings[k]))
            raise TutorialError(
                f"the audit in {str(folder)!r} was started with another {changed}: choose another out folder"
            )
        if not self.entries:
            self.append({"settings": settings})

    def _read(self) -> Iterator[dict[str, Any]]:
        """Finished lines; a last line cut short by a kill is dropped from the file as well."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.decode().splitlines(), 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise TutorialError(
                    f"line {number} of {str(self.path)!r} is damaged: delete the folder and audit again"
                ) from error

    def append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(
                f"the audit cannot write {str(self.path)!r} ({error.strerror}): free space, then resume"
            ) from error
        self.entries.append(entry)

    def save_sample(self, found: Scan) -> None:
        """The sample, written beside its place and moved there, so that it is whole or absent."""
        part = self.sample.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            np.savez(
                file,
                vectors=found.vectors,
                text=np.frombuffer(json.dumps([found.ids, found.texts]).encode(), dtype=np.uint8),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.sample)

    def load_sample(self, entry: dict[str, Any]) -> Scan:
        with np.load(self.sample, allow_pickle=False) as data:
            ids, texts = json.loads(data["text"].tobytes())
            return Scan(entry["rows"], entry["skipped"], tuple(entry["norm"]), ids, data["vectors"], texts)


def audit(
    url: str,
    embedder: Embedder,
    inverter: Any,
    corrector: Any = None,
    *,
    sample: int = 200,
    steps: int = 20,
    beam_width: int = 4,
    out: str | Path = "audit",
    resume: bool = True,
    show: bool = False,
    names: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 32,
    invert: Callable[..., Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AuditReport:
    """Sample a store, invert the sample, report what leaked; writes `report.html` and `report.json` to `out`.

    url: see `tutorial_lib.stores`.  sample: rows inverted.  steps, beam_width: as in `search.invert`.
    resume: continue an audit that was stopped; False refuses a folder that holds one.  show: keep the
    recovered texts readable in journal and report.  names: people to look for (an uncased embedder leaves
    no capitals to find names by).  invert: another inversion function of the same signature.  progress:
    called with (rows done, rows in all).  Raises StoreError or VectorError for a store that cannot be read,
    TutorialError for an `out` folder of another audit.
    """
    if invert is None:
        from .search import invert as search

        invert = search
    with open_store(url) as store:
        settings = {
            "store": store.url,
            "rows": store.count,
            "dimension": store.dimension,
            "embedder": embedder.name,
            "inverter": _name(inverter),
            "corrector": _name(corrector),
            "sample": sample,
            "steps": steps,
            "beam width": beam_width,
            "seed": seed,
            "shown": show,
            "names": len(names),
        }
        journal = Journal(Path(out), settings, resume=resume)
        found = _scanned(store, journal, sample, seed)
        about = {"stored": store.stored, "quantisation": store.quantisation, "has_text": store.has_text}
    # The store is closed: from here on only the sample is used, so a store that vanishes now harms nothing.
    attack = _Attack(
        embedder, inverter, corrector, invert, steps, beam_width, show, names, store.quantisation
    )
    if not any("fit" in e for e in journal.entries):
        started, before = time.monotonic(), embedder.queries
        fit = fits(found.vectors, embedder, attack.first_guess, seed=seed)
        journal.append(
            {"fit": asdict(fit), "queries": embedder.queries - before, "seconds": time.monotonic() - started}
        )
    fit = Fit(**next(e["fit"] for e in journal.entries if "fit" in e))
    if fit.verdict != "no":
        for start in range(
            sum(len(e.get("rows_done", ())) for e in journal.entries), len(found.ids), batch_size
        ):
            stop = min(start + batch_size, len(found.ids))
            if progress:
                progress(start, len(found.ids))
            started = time.monotonic()
            rows = attack.rows(found.vectors[start:stop], found.ids[start:stop], found.texts[start:stop])
            journal.append({"rows_done": rows, "seconds": time.monotonic() - started})
        if progress:
            progress(len(found.ids), len(found.ids))
    report = summarise(journal.entries, about, int(getattr(inverter.config, "max_tokens", 0)))
    report.save(out)
    if not any("done" in e for e in journal.entries):
        journal.append({"done": True})
    with suppress(FileNotFoundError):
        journal.sample.unlink()
    return report


def _scanned(store: Store, journal: Journal, sample: int, seed: int) -> Scan:
    """The scan of this audit: from the journal if it was finished, else done now."""
    entry = next((e["scan"] for e in journal.entries if "scan" in e), None)
    if entry and journal.sample.exists():
        return journal.load_sample(entry)
    if entry and any("done" in e for e in journal.entries):
        ids = [row["id"] for e in journal.entries for row in e.get("rows_done", ())]
        return Scan(
            entry["rows"],
            entry["skipped"],
            tuple(entry["norm"]),
            ids,
            np.zeros((len(ids), store.dimension)),
            [None] * len(ids),
        )
    found = scan(store, sample, seed=seed)
    journal.save_sample(found)
    if not entry:
        journal.append({"scan": {"rows": found.rows, "skipped": found.skipped, "norm": list(found.norm)}})
    return found


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
    show: bool
    names: Sequence[str]
    quantisation: str

    def first_guess(self, vectors: np.ndarray) -> np.ndarray:
        """Cosine of the base model's guess with each unit vector: [m, d] -> [m]."""
        result = self.invert(vectors, self.embedder, self.inverter, None, steps=0, beam_width=1)
        return np.asarray(result.cosines, dtype=np.float64)

    def rows(
        self, vectors: np.ndarray, ids: Sequence[str], texts: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        result = self.invert(
            unit(vectors),
            self.embedder,
            self.inverter,
            self.corrector,
            steps=self.steps,
            beam_width=self.beam_width,
        )
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
        truth, mine = self.embedder.token_ids([text, guess])
        limit = self.embedder.max_tokens  # the embedder never saw what lies beyond
        judged |= {
            "length": len(truth),
            "exact": truth == mine,
            "f1": 100 * token_f1(truth[:limit], mine),
            "pii": pii_hits(text, guess),
        }
        spoken = set(words(text))
        in_text = [n for n in self.names if set(words(n)) <= spoken and name_hits(n, text)[0]]
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
        "  tutorial-lib audit vectors.npy --steps 50 --beam 8 --show",
    )
    parser.add_argument(
        "url", help="lancedb:, chroma:, qdrant:, postgresql:, sqlite:, faiss:, parquet: or npy:"
    )
    parser.add_argument(
        "--embedder", default="all-MiniLM-L6-v2", help="the model thought to have written the vectors"
    )
    parser.add_argument("--inverter", help="weights: a name, folder or Hub name (default: the embedder's)")
    parser.add_argument("--corrector", help="weights of the corrector (default: the inverter's name)")
    parser.add_argument("--sample", type=int, default=200, help="rows to invert (default 200)")
    parser.add_argument("--steps", type=int, default=20, help="rounds of correction (default 20)")
    parser.add_argument("--beam", type=int, default=4, help="beam width (default 4)")
    parser.add_argument("--out", default="audit", help="folder for journal and report (default audit)")
    parser.add_argument("--resume", action="store_true", help="continue an audit that was stopped")
    parser.add_argument(
        "--show", action="store_true", help="leave the recovered texts readable in the report"
    )
    parser.add_argument("--names", metavar="FILE", help="people to look for, one name a line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def _progress(done: int, rows: int) -> None:
    print(f"\rinverted {done} of {rows}", end="", file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> int:
    """Run `tutorial-lib audit`; the verdict goes to stdout, progress to stderr."""
    from .corrector import Corrector
    from .embedder import Embedder
    from .inverter import Inverter

    names: list[str] = []
    if arguments.names:
        try:
            names = [
                line.strip()
                for line in Path(arguments.names).read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
        except OSError as error:
            raise TutorialError(
                f"the names in {arguments.names!r} cannot be read ({error.strerror}): give a text file"
            ) from error
    open_store(arguments.url).close()  # a wrong address should not wait for the models to load
    embedder = Embedder.from_pretrained(arguments.embedder)
    inverter = Inverter.from_pretrained(arguments.inverter or arguments.embedder)
    corrector = Corrector.from_pretrained(arguments.corrector or arguments.inverter or arguments.embedder)
    report = audit(
        arguments.url,
        embedder,
        inverter,
        corrector,
        sample=arguments.sample,
        steps=arguments.steps,
        beam_width=arguments.beam,
        out=arguments.out,
        resume=arguments.resume,
        show=arguments.show,
        names=names,
        seed=arguments.seed,
        progress=_progress,
    )
    print(file=sys.stderr)
    print(report.to_json() if arguments.json else report.to_text())
    print(f"report: {Path(arguments.out) / 'report.html'}", file=sys.stderr)
    return 0
