"""What an audit found, as an object, as JSON and as one HTML page that needs nothing else (chapter 4).

`summarise` turns the journal of `tutorial_lib.audit` into an `AuditReport`; every rate has n and an interval.
"""

from __future__ import annotations

import html
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import strict_json
from .metrics import Estimate, bootstrap, proportion
from .privacy.pii import KINDS

OWASP = "OWASP LLM08:2025 Vector and Embedding Weaknesses (embedding inversion)"
WORST = 10  # examples shown
_CORRECTED = 12  # word pieces above which correction and edits find few texts whole (chapters 5 and 6)


@dataclass(frozen=True)
class AuditReport:
    """Everything the report says.  Rates are per cent; None means that it could not be judged."""

    settings: dict[str, Any]  # store, rows, embedder, sample, steps, ...
    stored: str  # what lies in the store
    quantisation: str
    skipped: int  # rows without a usable vector
    norm: tuple[float, float, float]  # smallest, mean, largest length of a vector
    fit: dict[str, Any]  # does the embedder fit: verdict, reason, cosine, random
    rows: int  # rows inverted
    exact: Estimate | None  # recovered word for word, where the store keeps the text
    same: Estimate | None  # judged the same by cosine, where it does not
    f1: Estimate | None  # token F1
    f1_by_length: dict[str, Estimate]  # by length of the true text in word pieces
    cosine: Estimate | None
    names: dict[str, Estimate]  # full, first, last: of the known names in the texts
    pii: dict[str, Estimate]  # by kind: share of the texts' items found in the guesses
    guessed: dict[str, int]  # items that stand in the guesses, true or not
    examples: list[dict[str, Any]]  # the worst rows
    queries: int  # texts embedded in all
    seconds: float
    verdict: str
    not_judged: list[str]
    standard: str = field(default=OWASP)

    def to_json(self) -> str:
        """The report as JSON; an estimate is {value, low, high, n}, and what has no value is null."""
        return strict_json.dumps(asdict(self), indent=2)

    def to_text(self) -> str:
        """A few lines for the terminal."""
        lines = [self.verdict, f"embedder: {self.fit['reason']}"]
        lines += [f"{label}: {value}" for label, value in self._rates()]
        lines += [f"not judged: {reason}" for reason in self.not_judged]
        words, listed = self.settings.get("words", "").partition(" ")[0], ""
        if words:
            listed = f" and a list of {words} words"
        elif self.settings.get("look-ahead", 1) > 1:
            listed = " and every word of the embedder's vocabulary"
        return "\n".join([*lines, f"{self.queries} embedder queries{listed}, {self.seconds:.0f} s"])

    def to_html(self) -> str:
        """One self-contained page, light and dark, readable at phone width."""
        rows = "".join(f"<tr><th scope=row>{_e(k)}<td>{_bar(v)}<td>{_e(v)}" for k, v in self._rates())
        low, mean, high = self.norm
        facts = {
            **self.settings,
            "stored as": self.stored,
            "rows left out": self.skipped,
            "vector length": f"{low:.3f} to {high:.3f}, mean {mean:.3f}",
            "embedder queries": self.queries,
            "time": f"{self.seconds:.0f} s",
            "risk register": self.standard,
        }
        table = "".join(f"<tr><th scope=row>{_e(k)}<td>{_e(v)}" for k, v in facts.items())
        shown = "".join(
            f"<tr><td>{_e(x['id'])}<td>{_e(x.get('text', '–'))}<td>{_e(x['guess'])}<td>{x['cosine']:.4f}"
            for x in self.examples
        )
        masked = "" if self.settings.get("shown") else " (masked; audit again with --show to read them)"
        unjudged = "".join(f"<li>{_e(reason)}" for reason in self.not_judged) or "<li>nothing was left open"
        return _PAGE.format(
            store=_e(self.settings.get("store", "")),
            verdict=_e(self.verdict),
            fit=_e(self.fit["reason"]),
            rates=rows,
            facts=table,
            examples=shown,
            masked=masked,
            unjudged=unjudged,
        )

    def save(self, folder: str | Path) -> None:
        """Write report.html and report.json, readable by their owner only."""
        for name, content in (("report.html", self.to_html()), ("report.json", self.to_json())):
            path = Path(folder) / name
            path.touch(mode=0o600)
            part = path.with_suffix(f"{path.suffix}.{os.getpid()}")  # two processes may merge the same shards
            part.touch(mode=0o600)
            part.write_text(content, encoding="utf-8")
            os.replace(part, path)

    def _rates(self) -> list[tuple[str, Estimate]]:
        rates = [
            ("recovered exactly, %", self.exact),
            ("same text by cosine, %", self.same),
            ("token F1, %", self.f1),
        ]
        rates += [(f"token F1 of texts of {k} word pieces, %", v) for k, v in self.f1_by_length.items()]
        rates += [(f"{k} names recovered, %", v) for k, v in self.names.items()]
        rates += [(f"{k} items recovered, %", v) for k, v in self.pii.items()]
        return [(label, value) for label, value in rates if value is not None]


def summarise(entries: Sequence[Mapping[str, Any]]) -> AuditReport:
    """Entries of one journal, or of several in a row -> report."""
    settings = dict(entries[0]["settings"])
    max_tokens = int(settings.get("inverter length", 0))
    scan = next(e["scan"] for e in entries if "scan" in e)
    fit = next(e["fit"] for e in entries if "fit" in e)
    rows = [row for e in entries for row in e.get("rows_done", ())]
    judged = [r for r in rows if "exact" in r]
    blind = [r for r in rows if "exact" not in r and r["same"] is not None]
    whole = proportion([r["exact"] for r in judged] + [r["same"] for r in blind]) if judged or blind else None
    exact = proportion([r["exact"] for r in judged]) if judged else None
    same = proportion([r["same"] for r in blind]) if blind else None
    f1 = bootstrap([r["f1"] for r in judged]) if judged else None
    named = [hit for r in judged for hit in r["names"]]
    named_in = [index for index, r in enumerate(judged) for _ in r["names"]]
    pii: dict[str, list[bool]] = {}
    found_in: dict[str, list[int]] = {}
    for index, (kind, hit) in ((index, item) for index, r in enumerate(judged) for item in r["pii"]):
        pii.setdefault(kind, []).append(hit)
        found_in.setdefault(kind, []).append(index)
    guessed = Counter(kind for r in rows for kind in r["guessed_pii"])
    guessed["names"] = sum(r["guessed_names"] for r in rows)
    report = AuditReport(
        settings=settings,
        stored=str(settings["stored"]),
        quantisation=str(settings["quantisation"]),
        skipped=scan["skipped"],
        norm=tuple(scan["norm"]),
        fit=fit,
        rows=len(rows),
        exact=exact,
        same=same,
        f1=f1,
        f1_by_length=_by_length(judged, max_tokens),
        cosine=bootstrap([r["cosine"] for r in rows]) if rows else None,
        names={
            k: proportion([h[i] for h in named], texts=named_in) for i, k in enumerate(("full", "first", "last"))
        }
        if named
        else {},
        pii={k: proportion(pii[k], texts=found_in[k]) for k in KINDS if k in pii},
        guessed={k: v for k, v in guessed.items() if v},
        examples=sorted(rows, key=lambda r: (-r.get("f1", 0.0), -r["cosine"]))[:WORST],
        queries=sum(e.get("queries", 0) for e in entries) + sum(r["queries"] for r in rows),
        seconds=sum(e.get("seconds", 0.0) for e in entries),
        verdict=_verdict(fit, whole, f1, [*(hit for hits in pii.values() for hit in hits), *(h[0] for h in named)]),
        not_judged=_not_judged(settings, scan, fit, rows, judged),
    )
    return report


def _by_length(judged: Sequence[Mapping[str, Any]], max_tokens: int) -> dict[str, Estimate]:
    """Token F1 by length of the true text, in steps of the length the inverter was trained for."""
    edges = [0, *(max_tokens * k for k in (1, 2, 4))] if max_tokens else [0, 8, 16, 32, 64]
    bins: dict[str, list[float]] = {}
    for low, high in zip(edges, [*edges[1:], 10**9], strict=True):
        label = f"{low + 1}–{high}" if high < 10**9 else f"more than {low}"
        bins[label] = [r["f1"] for r in judged if low < r["length"] <= high]
    return {label: bootstrap(values) for label, values in bins.items() if values}


def _verdict(
    fit: Mapping[str, Any],
    whole: Estimate | None,
    f1: Estimate | None,
    personal: Sequence[bool],
) -> str:
    """One plain sentence, worst finding first; personal: whether each known item and full name came back."""
    if fit["verdict"] == "no":
        return (
            "Not judged: this inverter cannot read these vectors, which is no evidence that another "
            "could not."
        )
    if whole is not None and whole.value >= 10:
        return f"These vectors are about as private as their text: {_share(whole)} of the sample came back."
    if any(personal):
        return (
            "These vectors leak personal data: "
            "some names or other items came back although most texts did not come back whole."
        )
    if f1 is not None and f1.value >= 30:
        return (
            f"These vectors leak much of their text: {_share(f1)} token F1, though few texts came back whole."
        )
    return "This attack recovered little; a larger model, more steps or another method may recover more."


def _share(value: Estimate) -> str:
    """12.3 % (95 % interval 10.0 to 15.1, n = 200); one text has no interval."""
    if math.isnan(value.low):
        return f"{value.value:.1f} % (n = {value.n})"
    return f"{value.value:.1f} % (95 % interval {value.low:.1f} to {value.high:.1f}, n = {value.n})"


def _not_judged(
    settings: Mapping[str, Any],
    scan: Mapping[str, Any],
    fit: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    judged: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What the reader must not conclude from the report."""
    reasons = []
    max_tokens = int(settings.get("inverter length", 0))
    if fit["verdict"] != "yes":
        reasons.append(f"whether the embedder is {settings['embedder']}: {fit['reason']}")
    if scan["skipped"]:
        reasons.append(f"{scan['skipped']} rows without a usable vector (zero, NULL, NaN or infinite)")
    if rows and len(judged) < len(rows):
        missing = len(rows) - len(judged)
        how = "too coarsely stored to tell by cosine" if rows[0]["same"] is None else "judged by cosine alone"
        reasons.append(f"{missing} of {len(rows)} rows have no text beside the vector that could be read: {how}")
    long = sum(r["length"] > max_tokens for r in judged)
    if max_tokens and long:
        reasons.append(
            f"{long} of {len(judged)} texts are longer than the {max_tokens} word pieces this inverter "
            "was trained for; "
            "one trained for their length would recover more"
        )
    unsolved = sum(r["length"] > _CORRECTED and not r["exact"] for r in judged)
    if unsolved and not settings.get("surrogate"):
        reasons.append(
            f"{unsolved} of {len(judged)} texts are longer than {_CORRECTED} word pieces and did not come back: an "
            "attacker who spends more may find them (--variants 32 --surrogate --ahead 3 --steps 90)"
        )
    if not settings.get("names"):
        reasons.append(
            "names: give the names to look for (--names FILE); an uncased embedder leaves no capitals "
            "to find them by"
        )
    if not settings.get("words"):
        reasons.append("an attacker with a list of names or words (--words census), who reads names off it")
    if settings["quantisation"] != "float32":
        reasons.append(
            f"an attacker trained on {settings['quantisation']} vectors, who would recover more than this one"
        )
    return reasons


def _e(value: Any) -> str:
    return html.escape(str(value))


def _bar(value: Estimate) -> str:
    """A bar of 0 to 100 with its interval, in plain HTML; the number stands beside it."""
    low, high = (value.low, value.high) if value.low == value.low else (value.value, value.value)
    return (
        f'<div class=bar aria-hidden=true><i style="width:{value.value:.1f}%"></i>'
        f'<b style="left:{low:.1f}%;width:{max(0.5, high - low):.1f}%"></b></div>'
    )


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>Embedding audit</title>
<style>
:root{{color-scheme:light dark;--ink:#1b1b1b;--paper:#fff;--line:#c9c9c9;--fill:#0072b2;--mark:#d55e00}}
@media(prefers-color-scheme:dark){{:root{{--ink:#ececec;--paper:#16181b;--line:#484b50;--fill:#56b4e9;--mark:#e69f00}}}}
body{{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:60rem;margin:0 auto;padding:1rem}}
.verdict{{font-size:1.25rem;border-left:.4rem solid var(--mark);padding-left:1rem}}
.wide{{overflow-x:auto}}table{{border-collapse:collapse;width:100%}}
th,td{{text-align:left;font-weight:normal;padding:.35rem .6rem;
border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:break-word}}
.bar{{position:relative;height:.8rem;min-width:6rem;border:1px solid var(--line)}}
.bar i{{position:absolute;inset:0 auto 0 0;background:var(--fill)}}
.bar b{{position:absolute;top:30%;height:40%;background:var(--mark)}}
</style>
<h1>What these vectors give away</h1>
<p>{store}
<p class=verdict>{verdict}
<p>Embedder: {fit}.
<h2>Recovered from the sample</h2>
<p>Each rate with its 95 % interval and the number of texts or items behind it.
<div class=wide><table>{rates}</table></div>
<h2>Worst rows{masked}</h2>
<div class=wide><table>
<tr><th scope=col>row<th scope=col>text<th scope=col>recovered<th scope=col>cosine{examples}</table></div>
<h2>What was not judged</h2>
<ul>{unjudged}</ul>
<h2>How it was measured</h2>
<div class=wide><table>{facts}</table></div>
</html>
"""
