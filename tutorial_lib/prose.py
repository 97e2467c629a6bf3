"""Reported numbers in sentences: roles in the chapters, markers in the plain pages, and digits typed by hand.

    fill                 {report}`name` and {paper}`name` -> text, for a chapter's Markdown cells
    refresh              the same between HTML comments, for README.md and pages that are not executed
    typed_by_hand        numbers in prose that a chapter reports and that should therefore be roles

Roles are replaced with text before anyone reads the page, since neither Colab nor GitHub renders them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from .claims import Claim, Reported, format_value
from .errors import ClaimError

_ROLE = re.compile(r"\{(report|paper)\}`([a-z][a-z0-9_]*)(?:\.(value|low|high|n))?(?::([^`]+))?`")
_MARK = re.compile(
    r"<!-- ?(report|paper) ([a-z][a-z0-9_]*)(?:\.(value|low|high|n))?(?::([^ ]+?))? ?-->(.*?)<!-- ?/\1 ?-->",
    re.S,
)
_BLOCK = re.compile(r"(<!-- generated ([a-z_]+)[^>]*-->\n)(.*?)(<!-- /generated -->)", re.S)


def fill(text: str, numbers: Mapping[str, Reported], claims: Mapping[str, Claim]) -> str:
    """Replace every role: {report}`name`, {report}`name.low:.1f`, {paper}`name`.

    Raises ClaimError for a name nobody reports or a role that is misspelt.
    """
    filled = _ROLE.sub(lambda match: _resolve(match, numbers, claims), text)
    misspelt = re.search(r"\{(?:report|paper)\}`[^`]*`?", filled)
    if misspelt:
        raise ClaimError(
            f"{misspelt.group()} is not a role this book knows; write {{report}}`name`, "
            "{report}`name.low:.1f` or {paper}`name`."
        )
    return filled


def refresh(
    text: str,
    numbers: Mapping[str, Reported],
    claims: Mapping[str, Claim],
    blocks: Mapping[str, Callable[[], str]],
) -> str:
    """Rewrite what stands between markers: `<!--report name:.1f-->31.9<!--/report-->`, and whole blocks
    `<!-- generated chapters -->` ... `<!-- /generated -->` from the function of that name."""

    def mark(match: re.Match[str]) -> str:
        opening = match.group().split("-->", 1)[0]
        return f"{opening}-->{_resolve(match, numbers, claims)}<!--/{match.group(1)}-->"

    def block(match: re.Match[str]) -> str:
        opening, name, _, closing = match.groups()
        if name not in blocks:
            raise ClaimError(f"there is no generated block '{name}'; there are {', '.join(sorted(blocks))}.")
        return f"{opening}{blocks[name]()}{closing}"

    return _BLOCK.sub(block, _MARK.sub(mark, text))


def _resolve(match: re.Match[str], numbers: Mapping[str, Reported], claims: Mapping[str, Claim]) -> str:
    kind, name, field, spec = match.groups()[:4]
    if kind == "paper":
        claim = claims.get(name)
        if claim is None or claim.paper is None:
            raise ClaimError(f"{{paper}}`{name}` needs a claim '{name}' with a 'paper' entry in claims.yml.")
        return format_value(claim.paper["value"], spec)
    if name not in numbers:
        raise ClaimError(
            f"{{report}}`{name}` is in the text, but no chapter reports '{name}'; report it first."
        )
    item = numbers[name]
    try:
        if field:
            return format_value(item.field(field), spec or (item.fmt if field != "n" else None))
        return item.text(spec)
    except (ValueError, TypeError) as error:
        if isinstance(error, ClaimError):
            raise
        raise ClaimError(f"'{spec}' does not format the value of '{name}'; use one such as '.1f'.") from error


# What is not prose: code, mathematics, addresses, roles, HTML comments and tags. And what says that it was measured
# once and typed: it cannot be live, and a live number it happens to equal is another one.
_SKIP = re.compile(
    r"<!--by hand-->.*?<!--/by hand-->|```.*?```|~~~.*?~~~|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$"
    r"|\]\([^)]*\)|<!--.*?-->|<[^>]+>|https?://\S+",
    re.S,
)
_NUMBER = re.compile(r"(?<![\w.,/:-])(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:\s?(%))?(?![\w/-])")
_LEVEL = re.compile(
    r"\s?%?\s*(?:bootstrap |confidence |credible )?interval", re.I
)  # "95 % interval" is no result


def typed_by_hand(
    text: str, numbers: Mapping[str, Reported], claims: Mapping[str, Claim]
) -> Iterator[tuple[str, str]]:
    """Pairs (what was typed, name of the reported number it repeats) in one piece of Markdown.

    A number counts when it carries information: three significant digits, or two with a decimal point, or
    two as a percentage of something measured in per cent. Write it as a role, or as code (`32`) when it is
    a setting that only happens to agree; `<!--by hand-->` ... `<!--/by hand-->` holds a record of old measurements.
    """
    prose = _SKIP.sub(lambda match: " " * len(match.group()), _MARK.sub("", text))
    for match in _NUMBER.finditer(prose):
        whole, decimals, percent = match.groups()
        if (whole is None and decimals is None) or _LEVEL.match(prose, match.end()):
            continue
        digits = (whole or "0").replace(",", "") + (decimals or "")
        significant = len(digits.replace(".", "").lstrip("0"))
        informative = significant >= 3 or (significant == 2 and decimals is not None and digits[-1] != "0")
        typed, places = float(digits), len(decimals or ".") - 1
        for name, item in numbers.items():
            unit = claims[name].unit if name in claims else ""
            if not informative and not (percent and unit == "%" and significant == 2):
                continue
            values = (item.value, item.low, item.high) if informative else (item.value,)
            if any(_repeats(typed, places, value) for value in values):
                yield match.group().strip(), name
                break


def _repeats(typed: float, places: int, value: float | int | str | None) -> bool:
    if value is None or isinstance(value, str):
        return False
    if isinstance(value, int):
        return typed == abs(value)
    return round(abs(value), places) == typed
