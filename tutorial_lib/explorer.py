"""Inversions as HTML: words in colour, a text's path, and a figure to play with that needs no kernel.

    align              which words are right, in the wrong place, or wrong: the basis of all the rest
    coloured_diff      a text and a guess, word by word
    inversion_path     one text, round by round
    explorer           pick a text, drag the step, watch the words turn right and the cosine climb
    scores_table       systems as rows, scores with their intervals as columns

Everything is one self-contained piece of HTML with text/plain beside it. Nothing is told by colour alone:
right words are plain, words in the wrong place carry ↔, wrong ones ✗ and missing ones ○. The colours follow
the page: light, dark, Jupyter's and Colab's own switches. Chapter 3 uses it.
"""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .errors import TutorialError
from .metrics import Scores

if TYPE_CHECKING:
    from .embedder import Embedder
    from .search import Inversion, Step

RIGHT, MOVED, WRONG = "r", "m", "w"
_SYMBOL = {RIGHT: "", MOVED: "↔", WRONG: "✗"}
_MEANING = {RIGHT: "right", MOVED: "in the wrong place", WRONG: "wrong"}


@dataclass(frozen=True)
class Html:
    """HTML for notebooks and text for everything else; `str(...)` is the text."""

    html: str = field(repr=False)
    text: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}

    def __str__(self) -> str:
        return self.text


def align(reference: Sequence[str], guess: Sequence[str]) -> tuple[str, str]:
    """How each word fared: one letter per reference word and one per guess word.

    r: on a longest common subsequence of the two (right, and in the right order); m: in the other text too,
    but elsewhere; w: not in the other text (for a reference word: missing). A word that occurs twice in one
    text and once in the other is matched once.
    """
    n, m = len(reference), len(guess)
    longest = [[0] * (m + 1) for _ in range(n + 1)]  # longest[i][j]: of reference[i:] and guess[j:]
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            same = reference[i] == guess[j]
            longest[i][j] = 1 + longest[i + 1][j + 1] if same else max(longest[i + 1][j], longest[i][j + 1])
    left, right = [WRONG] * n, [WRONG] * m
    i = j = 0
    while i < n and j < m:
        if reference[i] == guess[j]:
            left[i] = right[j] = RIGHT
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    unmatched = Counter(w for w, s in zip(reference, left, strict=True) if s == WRONG)
    spare = unmatched & Counter(w for w, s in zip(guess, right, strict=True) if s == WRONG)
    for words, states in ((reference, left), (guess, right)):
        available = spare.copy()
        for position, word in enumerate(words):
            if states[position] == WRONG and available[word] > 0:
                states[position] = MOVED
                available[word] -= 1
    return "".join(left), "".join(right)


def coloured_diff(reference: str, guess: str) -> Html:
    """The text above, the guess below, each word marked; give both as the tokenizer writes them."""
    target, words = reference.split(), guess.split()
    above, below = align(target, words)
    body = (
        f'<dl class="tl-diff"><dt>text</dt><dd>{_spans(target, above, target=True)}</dd>'
        f"<dt>guess</dt><dd>{_spans(words, below) or '<i>(empty)</i>'}</dd></dl>"
    )
    text = f"text:  {_plain(target, above, target=True)}\nguess: {_plain(words, below) or '(empty)'}"
    return Html(_card(body, label="A text and a guess, compared word by word"), text)


def inversion_path(trace: Sequence[Step], reference: str) -> Html:
    """One text's way from the first guess to the last: a row for each round that changed the best guess.

    trace: the rows of one text in `Inversion.trace`; reference: the text, as the tokenizer writes it.
    Raises TutorialError for an empty trace.
    """
    if not trace:
        raise TutorialError("inversion_path was given an empty trace; give result.trace[i] of one text.")
    target = reference.split()
    kept = [
        step for i, step in enumerate(trace) if i in (0, len(trace) - 1) or step.text != trace[i - 1].text
    ]
    rows, lines = [], [f"text: {reference}"]
    for step in kept:
        words = step.text.split()
        states = align(target, words)[1]
        rows.append(
            f'<tr><th scope="row">{step.step}</th><td class="n">{_cosine(step.cosine)}</td>'
            f'<td class="n">{step.queries:,}</td><td class="t">{_spans(words, states)}</td></tr>'
        )
        lines.append(f"{step.step:>4}  {_cosine(step.cosine)}  {step.queries:>7,}  {_plain(words, states)}")
    body = (
        '<div class="tl-scroll"><table class="tl-path tl-steps"><thead><tr><th scope="col">round</th>'
        '<th scope="col">cosine</th><th scope="col">queries</th><th scope="col">best guess so far</th>'
        f'</tr></thead><tbody>{"".join(rows)}</tbody><tfoot><tr><th scope="row" colspan="3">text</th>'
        f'<td class="t">{html.escape(reference)}</td></tr></tfoot></table></div>'
    )
    return Html(_card(body, label="The best guess after each round that changed it"), "\n".join(lines))


def explorer(
    inversion: Inversion,
    references: Sequence[str],
    embedder: Embedder,
    *,
    title: str = "Watch a vector give up its text",
) -> Html:
    """An interactive figure of finished inversions: choose a text, drag the step, watch the words turn right.

    Works without a kernel (everything is computed already and travels inside), in Jupyter, Colab and on the
    static site, by mouse, touch or keyboard, several to a page. Without JavaScript it shows each text with
    its last guess. references: the texts that were embedded, one per trace; they are normalised here. Raises
    TutorialError when they do not pair.
    """
    if len(references) != len(inversion.trace) or not references:
        raise TutorialError(
            f"explorer was given {len(inversion.trace)} inversions and {len(references)} references; "
            "give the texts that were inverted, one for each, at least one."
        )
    texts = [
        _payload(r, trace)
        for r, trace in zip(embedder.normalise(list(references)), inversion.trace, strict=True)
    ]
    still, lines = [], []
    for entry in texts:
        last = entry["steps"][-1]
        target, words = entry["target"], last["words"]
        still.append(
            f'<dl class="tl-diff"><dt>text</dt><dd>{_spans(target, last["missing"], target=True)}</dd>'
            f"<dt>guess after {last['step']} rounds, cosine {_cosine(last['cosine'])}</dt>"
            f"<dd>{_spans(words, last['states'])}</dd></dl>"
        )
        lines.append(
            f"text:  {' '.join(target)}\nguess: {_plain(words, last['states'])}  "
            f"(round {last['step']}, cosine {_cosine(last['cosine'])}, {last['queries']:,} queries)"
        )
    # The data travel in an attribute: it survives a notebook's sanitiser, and nothing in it can end a tag.
    data = html.escape(
        json.dumps({"title": title, "texts": texts}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    )
    body = (
        f'<div class="tl-app" data-explorer="{data}"><p class="tl-title">{html.escape(title)}</p>'
        f"{''.join(still)}</div>"
        f"<script>{_asset('explorer.js')}</script>"
    )
    return Html(_card(body, label=title), "\n\n".join(lines))


def scores_table(rows: Mapping[str, Scores | Mapping[str, float]]) -> Html:
    """Systems as rows: `Scores` with n and intervals, or published figures (bleu, token_f1, exact, cosine).

    A figure that a publication does not give is left out of its mapping and shown as a dash, as is one nobody knows
    (the cosine of guesses for the vectors of a table, which cannot be embedded).
    """
    if not rows:
        raise TutorialError("scores_table was given no rows; give at least one system and its scores.")
    columns = {
        "bleu": ("BLEU", ".1f"),
        "token_f1": ("token F1 %", ".1f"),
        "exact": ("exact %", ".1f"),
        "cosine": ("cosine", ".3f"),
    }
    head = "".join(f'<th scope="col">{name}</th>' for name, _ in columns.values())
    body, lines = [], [" | ".join(["method", *(name for name, _ in columns.values()), "n"])]
    for label, scores in rows.items():
        cells, plain = [], []
        for key, (_, spec) in columns.items():
            if isinstance(scores, Scores):
                estimate = getattr(scores, key)
                if not math.isfinite(estimate.value):  # guesses for the vectors of a table cannot be embedded
                    cells.append('<td class="n">–</td>')
                    plain.append("–")
                    continue
                interval = (
                    f"{format(estimate.low, spec)}–{format(estimate.high, spec)}"
                    if scores.n > 1
                    else "no interval"
                )
                cells.append(f'<td class="n">{format(estimate.value, spec)}<small>{interval}</small></td>')
                plain.append(f"{format(estimate.value, spec)} ({interval})")
            else:
                shown = format(scores[key], "g") if key in scores else "–"
                cells.append(f'<td class="n">{shown}<small>published</small></td>')
                plain.append(shown)
        n = f"{scores.n}" if isinstance(scores, Scores) else "–"
        body.append(
            f'<tr><th scope="row">{html.escape(label)}</th>{"".join(cells)}<td class="n">{n}</td></tr>'
        )
        lines.append(" | ".join([label, *plain, n]))
    table = (
        '<div class="tl-scroll"><table class="tl-path tl-scores"><thead><tr>'
        f'<th scope="col">method</th>{head}'
        f'<th scope="col">n</th></tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )
    return Html(_card(table, label="Scores of each method with 95 % intervals"), "\n".join(lines))


def _payload(reference: str, trace: Sequence[Step]) -> dict[str, Any]:
    if not trace:
        raise TutorialError("explorer was given an inversion with an empty trace; invert the texts first.")
    target = reference.split()
    steps: list[dict[str, Any]] = []
    for step in trace:
        if steps and steps[-1]["words"] == step.text.split():  # most rounds change nothing: align once
            missing, states = steps[-1]["missing"], steps[-1]["states"]
        else:
            missing, states = align(target, step.text.split())
        steps.append(
            {
                "step": int(step.step),
                "words": step.text.split(),
                "missing": missing,
                "states": states,
                "cosine": round(float(step.cosine), 6) if math.isfinite(step.cosine) else None,
                "queries": int(step.queries),
            }
        )
    return {"target": target, "steps": steps}


def _spans(words: Sequence[str], states: str, *, target: bool = False) -> str:
    parts = []
    for word, state in zip(words, states, strict=True):
        shown = html.escape(word)
        if state == RIGHT:
            parts.append(f'<span class="r">{shown}</span>')
            continue
        symbol = "○" if target else _SYMBOL[state]
        meaning = "not recovered in this place" if target else _MEANING[state]
        tag = (
            "u" if target or state == MOVED else "s"
        )  # underlined or struck out even where styles are removed
        parts.append(
            f'<{tag} class="{state}" title="{meaning}"><sup aria-hidden="true">{symbol}</sup>{shown}</{tag}>'
        )
    return " ".join(parts)


def _plain(words: Sequence[str], states: str, *, target: bool = False) -> str:
    marks = {RIGHT: "", MOVED: "○" if target else "↔", WRONG: "○" if target else "✗"}
    return " ".join(marks[state] + word for word, state in zip(words, states, strict=True))


def _cosine(value: float | None) -> str:
    """Four digits, cut rather than rounded: 0.99998 is not yet the same vector (float noise aside).

    A dash where nobody knows: guesses for the vectors of a table cannot be embedded.
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{math.floor(value * 1e4 + 0.05) / 1e4:.4f}"


def _card(body: str, *, label: str) -> str:
    return (
        f'<div class="tl-card tex2jax_ignore mathjax_ignore" role="group" aria-label="{html.escape(label)}">'
        f"<style>{_asset('explorer.css')}</style>{body}</div>"
    )


def _asset(name: str) -> str:
    return (files("tutorial_lib") / "assets" / name).read_text(encoding="utf-8")
