"""Numbers that cannot lie: what a chapter reports, what the book claims, and whether they agree.

    report                a chapter's way of stating a number: shown, and stored in the executed notebook
    Reported, reported    the numbers read back out of an executed notebook
    Claim, Order, Claims  book/claims.yml: the paper's figure, ours with a tolerance, what is less than what
    compare               every way in which reported numbers and claims disagree, one sentence each

A chapter computes a score and calls `report("bleu_50_steps", scores.bleu)`. The prose then says
{report}`bleu_50_steps` instead of digits (see `tutorial_lib.prose`), and claims.yml says what the value
must be. The index of the book explains the idea.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import ClaimError, TutorialError
from .metrics import Estimate

GLUE_PREFIX = "application/papermill.record/"  # the record format that myst-nb's glue and scrapbook share
FIELDS = ("value", "low", "high", "n")
SMOKE = "smoke"  # the profile whose values are too small to mean anything: shape and order only
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Reported:
    """One number as a chapter reported it; low, high and n are None where it has no interval."""

    name: str
    value: float | int | str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    fmt: str | None = None  # how the chapter wants it shown, a format specification such as ".1f"

    def field(self, field: str) -> float | int | str:
        """`value`, `low`, `high` or `n`. Raises ClaimError for any other, or one that is not there."""
        found = getattr(self, field) if field in FIELDS else None
        if found is None:
            raise ClaimError(
                f"'{self.name}.{field}' was asked for, but {self.name} was reported "
                f"{'without an interval' if field in FIELDS else 'and has only ' + ', '.join(FIELDS)}; "
                "report an Estimate or ask for another field."
            )
        return found

    def text(self, spec: str | None = None, *, short: bool = False) -> str:
        """As prose: `31.9 (95 % interval 30.1–33.6, n = 200)`; `short` leaves out the words."""
        spec = spec or self.fmt
        if isinstance(self.value, str) or self.n is None:
            return format_value(self.value, spec)
        low, high = (math.nan if bound is None else bound for bound in (self.low, self.high))
        shown = format(Estimate(float(self.value), low, high, self.n), spec or "")
        return shown if short or math.isnan(low) else shown.replace(" (", " (95 % interval ", 1)


def format_value(value: float | int | str, spec: str | None) -> str:
    """A number for prose: integers with thousands separators, other numbers with three significant digits."""
    if isinstance(value, str):
        return value
    if spec:
        return format(value, spec)
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    )


def report(name: str, value: Any, *, fmt: str | None = None) -> None:
    """State a number of the book: print it and store it in the executed notebook.

    name: lower-case letters, digits and underscores, unique in the book, the key in claims.yml.
    value: a number, a short text, or a `metrics.Estimate` (stored with its interval and n).
    fmt: a format specification for prose, such as ".1f"; without it the interval's width decides.
    Raises ClaimError for a name of another shape, and for a value that is not finite or not one of these.

    The record is the one myst-nb's `glue` writes, so Jupyter Book can cite it; it goes through IPython, since
    Colab has no myst-nb. Outside a notebook only the printed line appears.
    """
    item = _reported(name, value, fmt)
    print(f"{name} = {item.text(short=True)}")
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import display
    except ImportError:  # a plain script without IPython: the line above is all there is to do
        return
    if get_ipython() is None:
        return
    parts = {"": item.value, "_low": item.low, "_high": item.high, "_n": item.n}
    for suffix, part in parts.items():
        if part is None:
            continue
        metadata: dict[str, Any] = {"scrapbook": {"name": name + suffix, "mime_prefix": GLUE_PREFIX}}
        if not suffix:
            metadata["tutorial_lib"] = {"estimate": item.n is not None, "fmt": item.fmt}
        display({GLUE_PREFIX + "text/plain": repr(part)}, metadata=metadata, raw=True)


def _reported(name: str, value: Any, fmt: str | None) -> Reported:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ClaimError(
            f"report was given the name {name!r}; use lower-case letters, digits and underscores, "
            "beginning with a letter, since the name is a key in claims.yml."
        )
    if isinstance(value, Estimate):
        low, high = (None if math.isnan(bound) else float(bound) for bound in (value.low, value.high))
        item = Reported(name, float(value.value), low, high, int(value.n), fmt)
    else:
        if hasattr(value, "item"):  # numpy and torch scalars: repr must be a plain literal
            value = value.item()
        if isinstance(value, bool):
            value = int(value)
        if not isinstance(value, int | float | str):
            raise ClaimError(
                f"report({name!r}) was given a {type(value).__name__}; "
                "give a number, a short text or an Estimate."
            )
        item = Reported(name, value, fmt=fmt)
    if not isinstance(item.value, str) and not math.isfinite(item.value):
        raise ClaimError(f"report({name!r}) was given {item.value}; a reported number must be finite.")
    return item


def reported(notebook: Mapping[str, Any]) -> dict[str, Reported]:
    """The numbers in an executed notebook (as nbformat reads it), by name.

    Raises ClaimError when a name is reported twice or a record cannot be read.
    """
    values: dict[str, Any] = {}
    notes: dict[str, dict[str, Any]] = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            metadata = output.get("metadata", {})
            record = metadata.get("scrapbook")
            if not record:
                continue
            name = record["name"]
            if name in values:
                raise ClaimError(f"'{name}' is reported twice in one chapter; give each number its own name.")
            try:
                values[name] = ast.literal_eval(output["data"][record["mime_prefix"] + "text/plain"])
            except (KeyError, SyntaxError, ValueError) as error:
                raise ClaimError(
                    f"the record of '{name}' cannot be read; execute the chapter again."
                ) from error
            if "tutorial_lib" in metadata:
                notes[name] = metadata["tutorial_lib"]
    found = {}
    for name, note in notes.items():
        bounds = (
            {part: values.get(f"{name}_{part}") for part in ("low", "high", "n")} if note["estimate"] else {}
        )
        found[name] = Reported(name, values[name], fmt=note["fmt"], **bounds)
    return found


@dataclass(frozen=True)
class Claim:
    """What the book says about one reported number."""

    name: str
    chapter: str  # stem of the chapter that reports it
    what: str  # one phrase for tables
    unit: str  # "%", "bits", "" ...
    ours: Mapping[str, Mapping[str, Any]]  # profile -> {value, tolerance}; tolerance in the unit of the value
    paper: Mapping[str, Any] | None  # {value, source, url, setting}: the figure to stand beside

    def disagreement(self, item: Reported, profile: str) -> str | None:
        """One sentence when the reported value is not what is claimed for this profile, else None."""
        expected = self.ours.get(profile)
        if expected is None:
            return (
                f"{self.name}: claims.yml says nothing for the profile '{profile}' "
                f"(reported: {item.text(short=True)}); add ours.{profile} with a value and a tolerance."
            )
        value, tolerance = expected["value"], expected.get("tolerance", 0)
        if isinstance(value, str) or isinstance(item.value, str):
            agrees = value == item.value
        else:
            # the last bits of a float may differ between two ways of writing the same decimal number
            agrees = abs(item.value - value) <= tolerance + 1e-9 * max(1.0, abs(value))
        if agrees:
            return None
        return (
            f"{self.name}: {self.chapter} reports {item.value!r}, but claims.yml says {value!r} "
            f"± {tolerance} for the profile '{profile}'; find out why before changing either."
        )


@dataclass(frozen=True)
class Order:
    """A relation that must hold between reported numbers: `bleu_0.high < bleu_1.low < bleu_50.low`."""

    rule: str
    profiles: tuple[str, ...]  # empty: in every profile, smoke included

    def disagreement(self, items: Mapping[str, Reported], profile: str) -> str | None:
        """One sentence when the rule fails on these numbers, else None."""
        if self.profiles and profile not in self.profiles:
            return None
        parts = re.split(r"\s*(<=|>=|<|>)\s*", self.rule.strip())
        if len(parts) < 3:
            raise ClaimError(f"the order '{self.rule}' in claims.yml has no <, <=, > or >=; write 'a < b'.")
        values = []
        for operand in parts[::2]:
            if re.fullmatch(r"-?[0-9.]+", operand):
                values.append(float(operand))
                continue
            name, _, field = operand.partition(".")
            if name not in items:
                return f"order '{self.rule}': no chapter reports '{name}'."
            found = items[name].field(field or "value")
            if isinstance(found, str):
                raise ClaimError(
                    f"the order '{self.rule}' compares '{name}', which is a text; compare numbers."
                )
            values.append(found)
        for left, sign, right in zip(values, parts[1::2], values[1:], strict=False):
            holds = {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[sign]
            if not holds:
                shown = " ".join(
                    f"{v:.6g}" if i % 2 == 0 else str(v)
                    for i, v in enumerate(_interleave(values, parts[1::2]))
                )
                return f"order '{self.rule}' does not hold in the profile '{profile}': {shown}."
        return None


def _interleave(values: list[Any], signs: list[str]) -> list[Any]:
    woven = [values[0]]
    for sign, value in zip(signs, values[1:], strict=True):
        woven += [sign, value]
    return woven


@dataclass(frozen=True)
class Claims:
    """All of book/claims.yml."""

    claims: Mapping[str, Claim]
    orders: tuple[Order, ...]

    @classmethod
    def read(cls, path: Path) -> Claims:
        """Read and validate. Raises ClaimError naming the line or the entry that is malformed."""
        content = read_yaml(path, ClaimError)
        unknown = set(content) - {"claims", "order"}
        if unknown:
            raise ClaimError(
                f"{path.name} has the unknown section '{min(unknown)}'; it takes 'claims' and 'order'."
            )
        claims, orders = content.get("claims") or {}, content.get("order") or []
        if not isinstance(claims, dict) or not isinstance(orders, list):
            raise ClaimError(f"{path.name} needs 'claims' as name: {{...}} and 'order' as a list.")
        return cls(
            {name: _claim(name, entry) for name, entry in claims.items()}, tuple(_order(entry) for entry in orders)
        )


class _NoKeyTwice(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in known:
                    raise yaml.MarkedYAMLError(problem=f"'{key.value}' stands here twice", problem_mark=key.start_mark)
                known.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, kind: type[TutorialError] = TutorialError) -> dict[str, Any]:
    """The mapping in a file. Raises an error of this kind, naming the file and the line that is not as it should be."""
    data = path.read_bytes()
    try:
        content = yaml.load(data.decode(), _NoKeyTwice)  # a SafeLoader
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        if isinstance(error, UnicodeDecodeError):
            line, why = data.count(b"\n", 0, error.start), "is not UTF-8 text"
        elif isinstance(error, yaml.reader.ReaderError):
            line, why = data.decode().count("\n", 0, error.position), "holds a character that YAML does not allow"
        else:
            mark = getattr(error, "problem_mark", None)
            line, why = mark.line if mark else 0, f"is not valid YAML: {getattr(error, 'problem', None) or error}"
        raise kind(f"{path.name}, line {line + 1}, {why}; mend it.") from error
    if content is not None and not isinstance(content, dict):
        raise kind(f"{path.name}, line 1, begins a {type(content).__name__}; it should be a mapping, key: value.")
    return content or {}


def _claim(name: str, entry: Any) -> Claim:
    keys = {"chapter", "what", "unit", "ours", "paper"}
    if not isinstance(entry, dict) or "chapter" not in entry or "what" not in entry or set(entry) - keys:
        raise ClaimError(
            f"the claim '{name}' needs 'chapter' and 'what' and takes only {', '.join(sorted(keys))}."
        )
    ours = entry.get("ours") or {}
    if not isinstance(ours, dict):
        raise ClaimError(f"the claim '{name}' needs 'ours' as profile: {{value: ..., tolerance: ...}}.")
    for profile, expected in ours.items():
        if (
            not isinstance(expected, dict)
            or "value" not in expected
            or set(expected) - {"value", "tolerance"}
        ):
            raise ClaimError(f"the claim '{name}' needs ours.{profile} as {{value: ..., tolerance: ...}}.")
        if not isinstance(expected.get("tolerance", 0), int | float):
            raise ClaimError(
                f"the claim '{name}' has the tolerance {expected['tolerance']!r} for '{profile}', which YAML reads as "
                "text; write a number with a point, such as 1.0e-10."
            )
        _check_finite(name, expected["value"], f"the value for '{profile}'")
        _check_finite(name, expected.get("tolerance", 0), f"the tolerance for '{profile}'")
        if expected.get("tolerance", 0) < 0:
            raise ClaimError(
                f"the claim '{name}' has a negative tolerance for '{profile}'; it takes 0 or more."
            )
    paper = entry.get("paper")
    if paper is not None:
        if not isinstance(paper, dict) or not {"value", "source"} <= set(paper):
            raise ClaimError(f"the claim '{name}' quotes a paper without 'value' and 'source'.")
        _check_finite(name, paper["value"], "the paper's value")
    return Claim(name, entry["chapter"], entry["what"], entry.get("unit", ""), ours, paper)


def _check_finite(name: str, value: Any, what: str) -> None:
    """Any number is within an infinite tolerance, and none within one that is not a number."""
    if not isinstance(value, int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise ClaimError(f"the claim '{name}' has {value!r} as {what}; it takes a finite number, or a text as value.")


def _order(entry: Any) -> Order:
    if isinstance(entry, str):
        return Order(entry, ())
    whole = isinstance(entry, dict) and not set(entry) - {"rule", "profiles"}
    if not whole or not isinstance(entry.get("rule"), str) or not isinstance(entry.get("profiles") or [], list):
        raise ClaimError(
            f"the order {entry!r} must be a text such as 'a < b' or {{rule: ..., profiles: [...]}}."
        )
    return Order(entry["rule"], tuple(entry.get("profiles") or ()))


def compare(
    chapters: Mapping[str, Mapping[str, Reported]], claims: Claims, profile: str, *, partial: bool = False
) -> list[str]:
    """Every disagreement between reported numbers and claims, one sentence each; empty when all agree.

    chapters: chapter stem -> its reported numbers. `partial`: only these chapters ran, so claims of other
    chapters, and orders that need them, are left alone. In the smoke profile only presence and order count.
    """
    problems: list[str] = []
    items: dict[str, Reported] = {}
    for chapter, numbers in chapters.items():
        for name, item in numbers.items():
            if name in items:
                problems.append(f"{name}: reported by more than one chapter; give each number its own name.")
            items[name] = item
            claim = claims.claims.get(name)
            if claim is None:
                problems.append(f"{name}: {chapter} reports it, but claims.yml has no such claim; add one.")
            elif claim.chapter != chapter:
                problems.append(
                    f"{name}: claims.yml expects it from {claim.chapter}, but {chapter} reports it."
                )
    for name, claim in claims.claims.items():
        if name in items:
            problem = None if profile == SMOKE else claim.disagreement(items[name], profile)
            problems += [problem] if problem else []
        elif not partial or claim.chapter in chapters:
            problems.append(
                f"{name}: claimed of {claim.chapter}, but not reported there; report it or drop the claim."
            )
    for order in claims.orders:
        if partial and not _names(order.rule) <= set(items):
            continue
        problem = order.disagreement(items, profile)
        problems += [problem] if problem else []
    return problems


def _names(rule: str) -> set[str]:
    return {name for name in re.findall(r"[a-z][a-z0-9_]*(?=[.\s<>=]|$)", rule) if name not in FIELDS}


def union(chapters: Iterable[Mapping[str, Reported]]) -> dict[str, Reported]:
    """All chapters' numbers in one mapping, for prose that cites another chapter's."""
    return {name: item for numbers in chapters for name, item in numbers.items()}
