"""The table of *Text Embeddings Reveal (Almost) As Much As Text* with the weights its authors published.

    rows = reproduce("runs/paper")       # run it again after a disconnect: it goes on where it was
    print(table(rows))

Each pair inverts held-out Natural Questions passages twice: greedily, looked at after 0, 1, 20 and 50 rounds, and
with a beam. What a group of texts gave is in a journal before the next group begins, and the groups do not depend on
where a run was interrupted, so neither does the table. *Reproduce the paper* is the page about it.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutorial_lib import strict_json
from tutorial_lib.audit_journal import Journal
from tutorial_lib.book import write
from tutorial_lib.corpora import documents, split_of
from tutorial_lib.errors import CorpusError, TutorialError
from tutorial_lib.metrics import Estimate, Scores, bootstrap, evaluate

if TYPE_CHECKING:
    from tutorial_lib.embedder import Embedder
    from tutorial_lib.search import Inversion

NATURAL_QUESTIONS = "hub:jxm/nq_corpus_dpr"
_HELD_OUT = ("dev", "validation", "test")  # names of held-out splits, in the order they are looked for
_POOL = 20_000  # held-out passages among which texts are drawn
_BEGINNING = 60  # letters and digits; two passages that agree in so many are taken to be one
_ROWS = 256  # guesses corrected at once ...
_TEXTS = 64  # ... of so many texts at most: what a disconnect can lose


@dataclass(frozen=True)
class Pair:
    """An inverter and a corrector, with the one embedder they fit; names, or folders."""

    embedder: str
    inverter: str
    corrector: str
    elsewhere: Mapping[tuple[int, int], str] = field(default_factory=dict)  # (steps, beam): what others found


#: The published pairs. Their embedders both go by "GTR" and are two spaces: see :mod:`tutorial_lib.embedder`.
PAIRS: Mapping[str, Pair] = {
    "paper": Pair(
        "gtr-base-mean", "jxm/gtr__nq__32", "jxm/gtr__nq__32__correct", {(20, 1): "exact 57.8 (public weights)"}
    ),
    "ielab": Pair(
        "gtr-t5-base",
        "ielabgroup/vec2text_gtr-base-st_inversion",
        "ielabgroup/vec2text_gtr-base-st_corrector",
        {(50, 8): "BLEU 97.9, exact 94.0 (its authors)"},
    ),
}
#: Morris et al. 2023, Table 1, by (steps, beam): BLEU, token F1 and exact match in per cent, cosine.
PAPER: Mapping[tuple[int, int], tuple[float, float, float, float]] = {
    (0, 1): (31.9, 67, 0.0, 0.91),
    (1, 1): (50.7, 80, 0.0, 0.96),
    (20, 1): (83.9, 96, 40.2, 0.99),
    (50, 1): (85.4, 97, 40.6, 0.99),
    (50, 8): (97.3, 99, 92.0, 0.99),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    pair: str
    steps: int  # correction rounds
    beam: int  # guesses kept; 1 is greedy
    scores: Scores
    queries: Estimate  # texts embedded per text recovered
    devices: tuple[str, ...]  # what it was computed on
    elsewhere: str = ""  # the same measured by others

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON; the paper's figures begin with ``paper_``. What is not known is NaN, as in `Scores`."""
        spent = {"queries": self.queries.value, "queries_low": self.queries.low, "queries_high": self.queries.high}
        theirs = PAPER.get((self.steps, self.beam), ())
        names = ("paper_bleu", "paper_token_f1", "paper_exact", "paper_cosine")
        return {
            "pair": self.pair, "steps": self.steps, "beam": self.beam, **self.scores.as_dict(), **spent,
            "devices": list(self.devices), **dict(zip(names, theirs, strict=False)), "elsewhere": self.elsewhere,
        }  # fmt: skip


def reproduce(
    folder: str | Path,
    *,
    pairs: Mapping[str, Pair] = PAIRS,
    source: str = NATURAL_QUESTIONS,
    n: int = 200,
    steps: Sequence[int] = (0, 1, 20, 50),
    beam: int = 8,
    seed: int = 0,
    device: str | None = None,
    echo: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measure ``pairs`` on ``n`` texts of ``source`` and return the rows of the table.

    ``steps``: rounds after which the greedy search is looked at; the search with ``beam`` goes to the last of them.
    ``folder`` gets the journal, and the table as Markdown and JSON whenever a search is finished; another call with
    the same settings goes on from the journal. ``echo`` is told the progress. Raises :class:`TutorialError` when the
    folder holds a run with other settings, and what loading models and texts raises.
    """
    if n < 1 or beam < 1 or not steps or min(steps) < 0 or not pairs:
        raise TutorialError(
            f"n={n}, beam={beam}, steps={list(steps)}, {len(pairs)} pairs: give at least one text, one guess, one "
            "number of rounds and one pair."
        )
    rounds = sorted(set(steps))
    settings = {
        "pairs": {name: [pair.embedder, pair.inverter, pair.corrector] for name, pair in pairs.items()},
        "source": source, "n": n, "steps": rounds, "beam": beam, "seed": seed,
    }  # fmt: skip
    folder = Path(folder)
    journal = Journal(folder, settings, resume=True, what="reproduction")
    rows: list[Row] = []
    for name, pair in pairs.items():
        models = _Models(pair, device)
        texts = _texts(journal, models, source, n, seed, echo)
        for width, looked_at in ((1, rounds), (beam, rounds[-1:])):
            if width == 1 and looked_at is not rounds:
                continue  # a beam of one is the greedy search
            groups = list(_groups(journal, f"{name}/{width}", texts, width, looked_at, models, echo))
            rows += [_row(name, pair, step, width, texts, groups, models.embedder) for step in looked_at]
            write(folder / "table.md", table(rows) + "\n")
            found = strict_json.dumps([row.as_dict() for row in rows], indent=1)
            write(folder / "table.json", found + "\n")
    return rows


class _Models:
    """The models of a pair, loaded when they are first needed."""

    def __init__(self, pair: Pair, device: str | None) -> None:
        from tutorial_lib.embedder import Embedder

        self.pair = pair
        self.embedder: Embedder = Embedder.from_pretrained(pair.embedder, device=device)
        self._pair: tuple[Any, Any] | None = None

    @property
    def both(self) -> tuple[Any, Any]:
        if self._pair is None:
            from tutorial_lib.corrector import Corrector
            from tutorial_lib.inverter import Inverter

            device = self.embedder.device
            inverter = Inverter.from_pretrained(self.pair.inverter).to(device)
            self._pair = inverter, Corrector.from_pretrained(self.pair.corrector).to(device)
        return self._pair

    @property
    def length(self) -> int:
        """Word pieces of the texts the pair was trained on."""
        return self.both[0].config.max_tokens

    @property
    def device(self) -> str:
        import torch

        from tutorial_lib.modeling import fast_dtype

        device = self.embedder.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{name}, {str(fast_dtype(device)).removeprefix('torch.')}"

    def invert(self, texts: list[str], steps: int, width: int) -> Inversion:
        from tutorial_lib.search import invert

        vectors = self.embedder.encode(texts, progress=False)
        return invert(vectors, self.embedder, *self.both, steps=steps, beam_width=width)


def _texts(
    journal: Journal, models: _Models, source: str, n: int, seed: int, echo: Callable[[str], None]
) -> list[str]:
    """The texts of a pair: chosen once for all that write in one vocabulary, T5's, at one length."""
    key = f"texts/{len(models.embedder.tokenizer)}/{models.length}"
    texts = journal.find(key)
    if texts is None:
        echo(f"choosing {n} texts of {source}, without those that stand in its training split")
        texts = held_out_texts(source, models.embedder, models.length, n, seed)
        journal.append({key: texts})
    return texts


def _groups(
    journal: Journal,
    key: str,
    texts: list[str],
    width: int,
    looked_at: list[int],
    models: _Models,
    echo: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """What each group of texts gave: guesses and queries by rounds, out of the journal or computed now."""
    size = max(1, min(_TEXTS, _ROWS // width))
    groups = [texts[start : start + size] for start in range(0, len(texts), size)]
    began, computed = time.monotonic(), 0
    for number, group in enumerate(groups):
        found = journal.find(f"found/{key}/{number}")
        if found is None:
            result = models.invert(group, looked_at[-1], width)
            found = {"device": models.device} | {
                str(step): {"texts": result.at(step), "queries": result.queries_at(step).tolist()} for step in looked_at
            }
            journal.append({f"found/{key}/{number}": found})
            computed += len(group)
            done = number * size + len(group)
            said = f"{key.replace('/', ', beam ')}: {done} of {len(texts)} texts"
            minutes = (time.monotonic() - began) / computed * (len(texts) - done) / 60
            echo(said + (f", about {minutes:.0f} minutes left" if done < len(texts) else ""))
        yield found


def _row(
    name: str, pair: Pair, step: int, width: int, texts: list[str], groups: list[dict[str, Any]], embedder: Embedder
) -> Row:
    guesses = [text for group in groups for text in group[str(step)]["texts"]]
    queries = [count for group in groups for count in group[str(step)]["queries"]]
    devices = tuple(dict.fromkeys(group["device"] for group in groups))
    scores = evaluate(texts, guesses, embedder)
    return Row(name, step, width, scores, bootstrap(queries), devices, pair.elsewhere.get((step, width), ""))


# ---- texts -------------------------------------------------------------------------------------------------


def held_out_texts(source: str, embedder: Embedder, length: int, n: int, seed: int = 0) -> list[str]:
    """``n`` held-out texts of exactly ``length`` word pieces: beginnings of passages, as the paper cuts them.

    A text may break off within a word; it survives the tokenizer's round trip, and no training passage begins like
    it (Natural Questions' held-out passages partly stand in its training split as well). ``source``:
    ``hub:owner/name[:column]`` or ``disk:FOLDER`` with a split called train and one called dev, validation or test;
    any other corpus of :mod:`tutorial_lib.corpora` is split by document. The whole training split is read once.
    Raises :class:`CorpusError` when a split is missing or fewer than ``n`` texts remain.
    """
    rows = list(itertools.islice(_rows(source, training=False), _POOL))
    wanted: dict[str, str] = {}  # beginning -> text
    for index in np.random.default_rng(seed).permutation(len(rows)):
        ids = embedder.token_ids([rows[index]])[0][:length]
        text = embedder.decode([ids])[0]
        if len(ids) == length and embedder.token_ids([text])[0] == ids:
            wanted.setdefault(_beginning(rows[index]), text)
            if len(wanted) == 4 * n:  # more than enough to choose from after the training texts are out
                break
    for row in _rows(source, training=True):
        wanted.pop(_beginning(row), None)
    if len(wanted) < n:
        raise CorpusError(
            f"{n} held-out texts of {length} word pieces were asked for and {source!r} has {len(wanted)} that do not "
            "stand in its training split; ask for fewer."
        )
    return list(wanted.values())[:n]


def _beginning(text: str) -> str:
    return re.sub(r"[\W_]+", "", text[: 4 * _BEGINNING].casefold())[:_BEGINNING]


def _rows(source: str, *, training: bool) -> Iterator[str]:
    """Passages of the training split, or of the held-out one."""
    kind, _, rest = source.partition(":")
    if kind not in ("hub", "disk"):
        wanted = "train" if training else "test"
        chosen = (doc.text for doc in documents(source) if split_of(doc.name) == wanted)
        yield from (line for text in chosen for line in text.split("\n") if line.strip())
        return
    name, _, column = rest.partition(":") if kind == "hub" else (rest, "", "text")
    for batch in _batches(kind, name, column or "text", training):
        yield from (text for text in batch if isinstance(text, str))


def _batches(kind: str, name: str, column: str, training: bool) -> Iterable[list[Any]]:
    import datasets

    try:
        if kind == "hub":
            splits: Any = datasets.get_dataset_split_names(name)
        else:
            splits = datasets.load_from_disk(name)
            splits = splits if isinstance(splits, datasets.DatasetDict) else {"train": splits}
        split = next((known for known in (("train",) if training else _HELD_OUT) if known in splits), None)
        if split is None:
            raise CorpusError(
                f"{name!r} has the splits {', '.join(splits)}; one called train and one called "
                f"{' or '.join(_HELD_OUT)} are needed."
            )
        data = splits[split] if kind == "disk" else datasets.load_dataset(name, split=split, streaming=True)
        for batch in data.select_columns([column]).iter(batch_size=1000):
            yield batch[column]
    except CorpusError:
        raise
    except Exception as error:  # offline, unknown, no such column: the data set libraries raise many types
        raise CorpusError(
            f"The column {column!r} of {name!r} could not be read ({type(error).__name__}); check the name, the "
            "column and the network."
        ) from error


# ---- the table ---------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, the paper's figures and those of others beside ours."""
    head = ("method", "BLEU", "token F1 %", "exact %", "cosine", "queries per text", "paper", "elsewhere")
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for row in rows:
        label = f"{row.pair}: {row.steps} step{'s' * (row.steps != 1)}" + f", beam {row.beam}" * (row.beam > 1)
        theirs = PAPER.get((row.steps, row.beam))
        paper = "BLEU {:.1f}, F1 {:.0f}, exact {:.1f}, cosine {:.2f}".format(*theirs) if theirs else ""
        measured = tuple(row.scores.table_row(label).values())
        lines.append((*measured, f"{row.queries:.0f}", paper, row.elsewhere))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
