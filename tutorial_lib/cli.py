"""The command line: `tutorial-lib invert | evaluate | data | train | audit | reproduce | book | check`.

One function per subcommand adds its parser, another runs it. Results go to stdout, progress to stderr; bad
input is one sentence and status 2. Heavy libraries are imported when a command runs: `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .audit import add_parser as add_audit
from .cli_common import add_variants, at_least, corrector_beside, example, hush, print_json, read_words
from .cli_data import add_data
from .cli_reproduce import add_reproduce
from .cli_train import add_train
from .errors import TextError, TutorialError

if TYPE_CHECKING:
    import numpy as np

    from .corrector import Corrector
    from .embedder import Embedder
    from .inverter import Inverter
    from .records import Record
    from .search import Inversion, Step
    from .word_lists import WordList

_WATCHED = 4  # texts whose guesses are printed round by round; more would scroll past unread


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence; the usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tutorial-lib`; returns 0 for fine, 1 when a check failed, 2 for bad input (one line on stderr)."""
    parser: argparse.ArgumentParser = _Parser(
        prog="tutorial-lib",
        description="Turn text embeddings back into text; train, audit, and build the book.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=example(
            'tutorial-lib invert "the union is strong"',
            "tutorial-lib evaluate --n 50 --steps 10 --beam 4",
            "tutorial-lib audit vectors.parquet",
            "tutorial-lib book",
            "every command explains itself: tutorial-lib invert --help",
        ),
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add_parser in (add_invert, add_evaluate, add_data, add_train, add_audit, add_reproduce, add_book, add_check):
        add_parser(commands)
    arguments = parser.parse_args(argv)
    name = f"tutorial-lib {arguments.command}"
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()  # a reader that went away is noticed here, not while Python shuts down
        return status
    except TutorialError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = _RESUMABLE.get(arguments.command, "")
        print(f"\n{name}: interrupted{hint}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `| head` took what it wanted; without this Python would complain about the pipe once more on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        print(f"{name}: this machine's memory is full; {_SMALLER.get(arguments.command, _FEWER)}.", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written to
        where = f" ({error.filename})" if error.filename else ""
        print(f"{name}: {error.strerror or error}{where}.", file=sys.stderr)
        return 2


def _out_of_memory(error: Exception) -> bool:
    """Is it what Python, or PyTorch on whatever device, says when there is no memory left?"""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


_FEWER = "give fewer texts or vectors at a time, or --device cpu if it was a GPU's"
_SMALLER = {"train": "start again in another folder with a smaller --batch-size"}
_RESUMABLE = {
    "train": "; go on from the last checkpoint, if one was written, with --resume",
    "audit": "; what was finished is saved, go on with --resume",
    "reproduce": "; what was finished is saved, the same command goes on",
}


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from . import __version__

        print(f"tutorial-lib {__version__}")
        parser.exit()


# ---- models and output ---------------------------------------------------------------------------------


def add_models(parser: argparse.ArgumentParser) -> None:
    """Which models, and how long they may search: shared by `invert` and `evaluate`."""
    models = parser.add_argument_group("models")
    models.add_argument(
        "--embedder", default="all-MiniLM-L6-v2", help="sentence-transformers model, by name or folder"
    )
    models.add_argument("--inverter", help="weights: a folder or Hub name (default: the embedder's)")
    models.add_argument("--corrector", help="likewise (default: beside the inverter's)")
    models.add_argument("--device", help="cpu, cuda, mps (default: the fastest there is)")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--steps", type=at_least(0), default=20, help="correction rounds; 0: the first guess (default 20)"
    )
    search.add_argument("--beam", type=at_least(1), default=4, help="guesses corrected a round (default 4)")
    search.add_argument(
        "--edits",
        type=at_least(0),
        default=32,
        help="local edits tried a round; they find far more, for more queries (default 32)",
    )
    add_variants(search)
    search.add_argument(
        "--words",
        metavar="FILE",
        help="at last put in words and names from a list: a text file with one a line, or census for the commonest "
        "names of the United States; the list is embedded once, for all vectors",
    )
    search.add_argument("--max-queries", type=at_least(1), help="texts embedded per vector, at most")


def _search(
    arguments: argparse.Namespace,
    vectors: np.ndarray,
    models: tuple[Embedder, Inverter, Corrector | None],
    words: WordList | None = None,
    **watch: Any,
) -> Inversion:
    """Invert as the options say: by corrections and local edits, or by variants."""
    options = {"steps": arguments.steps, "max_queries": arguments.max_queries, **watch}
    embedder, inverter, corrector = models
    if arguments.variants and corrector is not None:
        from .surrogate import surrogate_search
        from .variants import breed

        search: Callable[..., Inversion] = breed
        if arguments.surrogate:  # every text at its own pace: a bar instead of rounds
            search, shown = surrogate_search, options.pop("on_step", None) or options.get("progress")
            options["progress"] = bool(shown) and sys.stderr.isatty()
            if arguments.ahead > 1:
                options |= {"ahead": arguments.ahead, "words": words}
        result = search(vectors, embedder, inverter, corrector, variants=arguments.variants, **options)
        _say_what_was_not_paid(result, arguments.variants, arguments)
        return result
    from .search import invert, round_queries

    result = invert(vectors, *models, beam_width=arguments.beam, edits=arguments.edits, **options)
    _say_what_was_not_paid(result, round_queries(corrector, arguments.beam, arguments.beam, arguments.edits), arguments)
    return result


def _embedded(listed: Sequence[str], arguments: argparse.Namespace, embedder: Embedder) -> WordList | None:
    """The words of a list, which has the embedder's own too; else these, for a surrogate that looks ahead."""
    from .word_lists import WordList, whole_words

    if not listed and not (arguments.ahead > 1 and arguments.steps):
        return None
    words = WordList.embed(listed or whole_words(embedder), embedder)
    print(f"{words.queries:,} words were embedded, once for all vectors", file=sys.stderr)
    return words


def _with_words(
    words: WordList, arguments: argparse.Namespace, vectors: np.ndarray, result: Inversion, embedder: Embedder
) -> Inversion:
    """Go on from a result with the words of a list."""
    from .search import SOLVED
    from .word_lists import fill_in

    filled = fill_in(vectors, result, embedder, words, max_queries=arguments.max_queries)
    unpaid = (filled.steps == result.steps) & (filled.cosines < SOLVED)
    if arguments.max_queries is not None and unpaid.any():
        print(
            f"note: --max-queries {arguments.max_queries} left nothing for the words of {unpaid.sum()} of "
            f"{len(unpaid)} texts; raise it, or spend less before with fewer --steps.",
            file=sys.stderr,
        )
    return filled


def _say_what_was_not_paid(result: Inversion, cost: int, arguments: argparse.Namespace) -> None:
    """One line when --max-queries ended the search of a text before its first round of at most `cost` queries."""
    from .search import SOLVED

    if arguments.max_queries is None or not arguments.steps:
        return
    unpaid = (result.steps == 0) & (result.cosines < SOLVED) & (result.queries + cost > arguments.max_queries)
    if unpaid.any():
        print(
            f"note: {unpaid.sum()} of {len(unpaid)} texts had no round of correction, since a round may cost {cost} "
            f"queries after the first guesses; raise --max-queries {arguments.max_queries} or try less in a round.",
            file=sys.stderr,
        )


def load_models(arguments: argparse.Namespace) -> tuple[Embedder, Inverter, Corrector | None]:
    """Embedder, inverter and (unless `--steps 0`) corrector, on one device."""
    from .corrector import Corrector
    from .embedder import Embedder
    from .inverter import Inverter

    hush()
    if arguments.surrogate and not arguments.variants:
        raise TutorialError("--surrogate chooses among variants and there are none; add --variants 32.")
    if arguments.ahead > 1 and not arguments.surrogate:
        raise TutorialError(f"--ahead {arguments.ahead} looks ahead in a surrogate and there is none; add --surrogate.")
    if arguments.max_queries is not None and not arguments.variants and arguments.max_queries < arguments.beam:
        raise TutorialError(
            f"--max-queries {arguments.max_queries} does not pay for the first {arguments.beam} guesses; "
            "allow more queries or narrow the --beam."
        )
    embedder = Embedder.from_pretrained(arguments.embedder, device=arguments.device)
    named = arguments.inverter or arguments.embedder
    inverter = Inverter.from_pretrained(named).to(embedder.device)
    if not arguments.steps:
        return embedder, inverter, None
    corrector = Corrector.from_pretrained(arguments.corrector or corrector_beside(named))
    return embedder, inverter, corrector.to(embedder.device)


# ---- invert --------------------------------------------------------------------------------------------


def add_invert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib invert`: watch texts come back from their vectors."""
    parser = commands.add_parser(
        "invert",
        help="write texts back from their embeddings, round by round",
        description="Embed each text, forget it, and write it back from the vector alone; or start from\n"
        "vectors. Rounds appear on stderr as they happen, the recovered texts on stdout.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=example(
            'tutorial-lib invert "the union is strong" "peace at home"',
            'tutorial-lib invert --steps 50 --max-queries 1000 "the union is strong"',
            "tutorial-lib invert --variants 32 --surrogate --ahead 3 --steps 90 - < longer.txt",
            "tutorial-lib invert --vectors vectors.npy --json > texts.json",
            "tutorial-lib invert - < lines.txt",
        ),
    )
    parser.add_argument("text", nargs="*", help="texts to embed and recover; - reads one a line from stdin")
    parser.add_argument(
        "--vectors", metavar="FILE", help=".npy, .parquet, .faiss, or any store that `audit` reads"
    )
    parser.add_argument("--truncate", action="store_true", help="embed the beginning of too long a text")
    add_models(parser)
    parser.add_argument("--quiet", action="store_true", help="no rounds on stderr")
    parser.add_argument("--json", action="store_true", help="texts and every round as JSON")
    parser.set_defaults(run=_invert)


def _invert(arguments: argparse.Namespace) -> int:
    texts = _given_texts(arguments.text)
    if bool(texts) == bool(arguments.vectors):
        raise TutorialError(
            'give either texts or --vectors FILE, as in: tutorial-lib invert "the union is strong".'
        )
    # The input is read before the models load: a typing error should not take seconds to report.
    vectors = _read_vectors(arguments.vectors) if arguments.vectors else None
    embedder, inverter, corrector = load_models(arguments)
    if vectors is None:
        vectors = embedder.encode(texts, truncate=arguments.truncate)
        from .surrogate import LONGER

        _warn(texts, embedder, inverter, reach=LONGER if arguments.surrogate and arguments.steps else 1)
    else:
        from .audit_sample import scaled_like

        vectors = scaled_like(embedder, vectors)  # a store may keep them quantised, or at another length
    watch, listed = None if arguments.quiet else _Rounds(len(vectors)), read_words(arguments.words, embedder)
    words = _embedded(listed, arguments, embedder)
    result = _search(arguments, vectors, (embedder, inverter, corrector), words, on_step=watch)
    if listed and words is not None:
        result = _with_words(words, arguments, vectors, result, embedder)
    rows = _rows(result, texts, embedder)
    if arguments.json:
        print_json(
            {"embedder": embedder.name, "steps": arguments.steps, "beam": arguments.beam, "texts": rows}
        )
    else:
        print("\n".join(_readable(row) for row in rows))
    return 0


def _given_texts(words: Sequence[str]) -> list[str]:
    """The texts on the command line, `-` standing for the lines of stdin."""
    texts: list[str] = []
    for word in words:
        if word == "-":
            try:
                texts += [line.rstrip("\n") for line in sys.stdin if line.strip()]
            except UnicodeDecodeError as error:
                raise TextError("stdin is not UTF-8 text; convert it first.") from error
        else:
            texts.append(word)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(f"the text {text!a} is not UTF-8; convert it first.") from error
    return texts


_MOST = 100_000  # vectors of one `invert`, which holds them twice: 300 MB of 384 values


def _read_vectors(url: str) -> np.ndarray:
    """float32 [n, d] from a file or store. Raises StoreError or VectorError in one sentence."""
    import numpy as np

    from .stores import open_store

    with open_store(url) as store:
        if store.count > _MOST:
            raise TutorialError(
                f"{url} has {store.count:,} rows and at most {_MOST:,} are inverted at once; "
                "take a sample of them with `tutorial-lib audit`."
            )
        return np.concatenate([batch.vectors for batch in store.batches()])


def _warn(texts: Sequence[str], embedder: Embedder, inverter: Inverter, *, reach: int) -> None:
    """Say what cannot come back, before someone takes it for a fault of the search. ``reach``: how many times as long
    as those of the training the texts may grow in the search."""
    trained, unknown = inverter.config.max_tokens, embedder.tokenizer.unk_token_id
    for text, ids in zip(texts, embedder.token_ids(texts), strict=True):
        if unknown in ids:
            print(
                f"note: {text!r} has characters unknown to {embedder.name}; they are lost.", file=sys.stderr
            )
        if len(ids) > trained:
            hope = "few so long come back whole" if len(ids) <= reach * trained else "expect fragments"
            print(
                f"note: {text!r} has {len(ids)} word pieces and the weights were trained for {trained}; {hope}.",
                file=sys.stderr,
            )


class _Rounds:
    """Prints each round on stderr: every text's guess when it changed, or one line about many texts."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.last: dict[int, Step] = {}

    def __call__(self, step: int, rows: list[Step]) -> None:
        if self.count > _WATCHED:
            mean = sum(row.cosine for row in rows) / len(rows)
            spent = sum(row.queries for row in rows)
            print(f"round {step:>3}  mean cosine {mean:.4f}  {spent} queries", file=sys.stderr, flush=True)
            return
        for index, row in enumerate(rows):
            if index not in self.last or self.last[index].text != row.text:
                which = f"  {index + 1}" if self.count > 1 else ""
                print(
                    f"round {step:>3}{which}  {row.cosine:.4f}  {row.queries:>5} queries  {row.text}",
                    file=sys.stderr,
                    flush=True,
                )
            self.last[index] = row


def _rows(result: Inversion, texts: Sequence[str], embedder: Embedder) -> list[dict[str, Any]]:
    """One JSON-ready row per vector; `target` and `exact` only where the text is known."""
    rows = []
    targets = embedder.normalise(texts)
    for index, text in enumerate(result.texts):
        row: dict[str, Any] = {"text": text}
        if targets:
            truth, guess = embedder.token_ids([texts[index], text])
            row |= {"target": targets[index], "exact": truth == guess}
        trace = [asdict(step) for step in result.trace[index]]
        row |= {"cosine": float(result.cosines[index]), "queries": int(result.queries[index])}
        rows.append(row | {"steps": int(result.steps[index]), "trace": trace})
    return rows


def _readable(row: dict[str, Any]) -> str:
    told = f"cosine {row['cosine']:.4f}, {row['queries']} queries, {row['steps']} rounds"
    if "target" not in row:
        return f"{row['text']}\n    {told}"
    verdict = "exact" if row["exact"] else "not exact"
    return f"target     {row['target']}\nrecovered  {row['text']}\n           {verdict}, {told}"


# ---- evaluate ------------------------------------------------------------------------------------------


def add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib evaluate`: the book's table for a corpus of one's own."""
    parser = commands.add_parser(
        "evaluate",
        help="BLEU, token F1, exact match and cosine on held-out text, with intervals",
        description="Embed held-out passages, invert them and score what comes back, with n and 95 %\n"
        "intervals. The bag of words (the true words in random order) stands beside it as a baseline.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=example(
            "tutorial-lib evaluate --n 100 --steps 50 --beam 8 --at 0 1 5 20 50",
            "tutorial-lib evaluate --corpus files:notes/ --n 30 --json",
            "tutorial-lib evaluate --corpus records --max-tokens 8 --steps 0 --words census",
            "tutorial-lib evaluate --corpus test:novels --max-tokens 6 --n 500",
        ),
    )
    parser.add_argument(
        "--corpus",
        default="sotu",
        help="sotu (default), records (synthetic), files:PATTERN, disk:FOLDER, hub:owner/name[:column], or a fixed "
        "test set: test:speeches, test:general, test:records, test:novels",
    )
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--n", type=at_least(1), default=100, help="passages (default 100)")
    parser.add_argument("--max-tokens", type=at_least(1), help="word pieces each (default: the weights')")
    parser.add_argument("--seed", type=at_least(0), default=0, help="which passages (default 0)")
    parser.add_argument(
        "--at", type=at_least(0), nargs="+", metavar="STEP", help="rounds to score (default: 0 and the last)"
    )
    add_models(parser)
    parser.add_argument("--json", action="store_true", help="the scores as JSON")
    parser.add_argument("--card", action="store_true", help="write the scores into the cards of the weights")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    at = sorted(set(arguments.at if arguments.at is not None else (0, arguments.steps)))
    if at[-1] > arguments.steps:
        raise TutorialError(f"--at {at[-1]} lies beyond the last round; raise --steps {arguments.steps}.")
    embedder, inverter, corrector = load_models(arguments)
    if arguments.card:
        _check_card(inverter, corrector)
    from .metrics import bag_of_words, bootstrap, evaluate
    from .privacy import facts_recovered, names_recovered

    length = arguments.max_tokens or inverter.config.max_tokens
    texts, records = _passages(arguments, length, embedder)
    vectors, listed = embedder.encode(texts), read_words(arguments.words, embedder)
    words = _embedded(listed, arguments, embedder)
    result = _search(arguments, vectors, (embedder, inverter, corrector), words, progress=sys.stderr.isatty())
    stages = {f"{step} steps": (step, result.at(step), result.queries_at(step)) for step in at}
    how = _how(arguments)
    if listed and words is not None:
        filled = _with_words(words, arguments, vectors, result, embedder)
        stages[f"{arguments.steps} steps, words"] = (arguments.steps, filled.texts, filled.queries)
    shuffled = evaluate(texts, bag_of_words(texts, embedder, arguments.seed), embedder)
    table = [shuffled.table_row("bag of words") | {"queries": "-"}]
    table[0] |= {"full names %": "-", "facts %": "-"} if records else {}
    rows: list[dict[str, Any]] = [{"method": "bag of words", **shuffled.as_dict()}]
    for method, (step, guesses, paid) in stages.items():
        scores, queries = evaluate(texts, guesses, embedder), bootstrap(paid)
        spent = {"queries": queries.value, "queries_low": queries.low, "queries_high": queries.high}
        shown = {"queries": f"{queries:.0f}"}
        if records:  # what a thief of records wants
            whole = names_recovered([record.name for record in records], guesses).full
            facts = facts_recovered([list(record.fields.values()) for record in records], guesses)
            for name, share in {"names": whole, "facts": facts}.items():
                spent |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
            shown |= {"full names %": f"{whole:.1f}", "facts %": f"{facts:.1f}"}
        table.append(scores.table_row(method) | shown)
        rows.append({"method": method, "steps": step, **scores.as_dict(), **spent})
    if arguments.json:
        about = {key: getattr(arguments, key) for key in ("corpus", "split", "n", "steps", "beam", "seed")}
        about |= {"search": how, "max_queries": arguments.max_queries}
        print_json({"embedder": embedder.name, "max_tokens": length, **about, "scores": rows})
    else:
        widths = {key: max(len(key), *(len(row[key]) for row in table)) for key in table[0]}
        for row in [{key: key for key in widths}, *table]:
            print("  ".join(f"{row[key]:<{width}}" for key, width in widths.items()).rstrip())
        where = f"{arguments.corpus}, {arguments.split} split"
        print(f"{where}, {length} word pieces, {how}, {embedder.name}")
    if arguments.card:  # after the scores are printed: what could go wrong here must not cost them
        from .cards import write_card

        setting = f"{arguments.corpus}, {arguments.split} split, up to {length} word pieces, {how}"
        written = {f"{row['method']} ({setting})": {k: v for k, v in row.items() if k != "method"} for row in table}
        if corrector is not None:
            print(write_card(Path(corrector.name_or_path), written), file=sys.stderr)
        alone = {name: row for name, row in written.items() if name.startswith(("bag of words", "0 steps ("))}
        print(write_card(Path(inverter.name_or_path), alone), file=sys.stderr)
    return 0


def _how(arguments: argparse.Namespace) -> str:
    """How the texts of an evaluation were searched for, as its rows are labelled."""
    said = f"beam {arguments.beam}"
    said += f", {arguments.edits} edits" if arguments.edits and arguments.steps and not arguments.variants else ""
    said += f", {arguments.variants} variants" if arguments.variants else ""
    said += " chosen by a surrogate" if arguments.surrogate else ""
    said += f" that looks {arguments.ahead} changes ahead" if arguments.ahead > 1 else ""
    said += f", words {arguments.words}" if arguments.words else ""
    return said + (f", at most {arguments.max_queries} queries" if arguments.max_queries else "")


def _check_card(inverter: Inverter, corrector: Corrector | None) -> None:
    """Refuse to begin an evaluation whose card could not be written."""
    for model in (inverter, corrector):
        if model is not None and not (Path(model.name_or_path) / "training.json").is_file():
            raise TutorialError(
                f"a card is written from a run's training.json and {model.name_or_path} has none; leave --card out."
            )


def _passages(arguments: argparse.Namespace, length: int, embedder: Embedder) -> tuple[list[str], list[Record]]:
    """The texts to score, and the records they are (else none)."""
    from .corpora import passages
    from .held_out import held_out_records
    from .records import synthetic_records

    if arguments.corpus not in ("records", "test:records"):
        found = passages(arguments.corpus, arguments.split, length, arguments.n, arguments.seed, embedder)
        return found, []
    if arguments.corpus == "records":
        records = synthetic_records(arguments.n, arguments.split, arguments.seed, length, embedder)
    elif arguments.split != "test":
        raise TutorialError(f"test:records has only a test split, not {arguments.split}.")
    else:
        records = held_out_records(length, arguments.n)
    return [record.text for record in records], records


# ---- the book ------------------------------------------------------------------------------------------


def add_book(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib book`: execute what changed, check, publish, render."""
    parser = commands.add_parser("book", help="execute the chapters that changed and build the HTML")
    parser.add_argument("--profile", help="smoke, cpu (the default, published), gpu or paper")
    parser.add_argument("--chapters", nargs="+", default=[], metavar="NN", help="only these, e.g. 02 03")
    parser.add_argument("--force", action="store_true", help="execute even what did not change")
    parser.add_argument("--no-html", action="store_true", help="notebooks only")
    parser.add_argument(
        "--html-only", action="store_true", help="strict HTML of the published notebooks, nothing executed"
    )
    parser.add_argument(
        "--open", action="store_true", help="open the book in a browser where there is a display"
    )
    parser.set_defaults(run=_book)


def _book(arguments: argparse.Namespace) -> int:
    from . import build
    from .book import Book

    def echo(line: str) -> None:
        print(line, file=sys.stderr)

    book = Book.find()
    if arguments.html_only:
        page: object = build.render(book, echo)
    else:
        page = build.build_book(
            book,
            profile=arguments.profile,
            chapters=arguments.chapters,
            force=arguments.force,
            html=not arguments.no_html,
            echo=echo,
        )
    if page:
        print(page)
    if page and arguments.open:
        _open(str(page))
    return 0


def _open(page: str) -> None:
    import os
    import webbrowser

    # without a display a text browser would take over the terminal
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(f"file://{page}")


def add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`tutorial-lib check`: numbers against claims, notebooks against sources; executes nothing."""
    parser = commands.add_parser("check", help="verify every number of the book against claims.yml")
    parser.add_argument(
        "--fix", action="store_true", help="first bring generated text (prose, README, tables) up to date"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from . import verify
    from .book import Book

    book = Book.find()
    if arguments.fix:
        for path in verify.bring_up_to_date(book):
            print(f"refreshed {path.relative_to(book.root)}", file=sys.stderr)
    problems, notes = verify.check(book)
    if arguments.json:
        print(json.dumps({"problems": problems, "notes": notes}, indent=1))
    else:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        print(
            "\n".join(problems)
            or f"{len(book.claims.claims)} claims, {len(book.sources)} chapters: all hold."
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
