"""What in a recovered text is about a person: e-mail addresses, telephone numbers, dates, identifiers, names.

    find_pii(text)                    -> findings, in reading order
    pii_recovered(texts, guesses)     -> per kind, the share of the text's items that stand in the guess
    names_recovered(names, guesses)   -> full, first and last names found, per cent
    facts_recovered(facts, guesses)   -> texts whose facts all stand in the guess, per cent
    mask(text)                        -> the same text, unreadable, for a report that others will see

Telephone numbers are found by `phonenumbers` (Google's rules, updated with every country's numbering plan),
because no regular expression knows them.  The other kinds have shapes that are fixed by a standard, so short
expressions and check digits do.  Presidio and spaCy know more, but need models that do not come from PyPI,
and their name models rely on capitals, which an uncased embedder has destroyed: names are therefore only ever
matched against names that are known.  Chapter 4 uses all of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import TextError
from ..metrics import Estimate, proportion

Kind = Literal["email", "phone", "date", "identifier"]
KINDS: tuple[Kind, ...] = ("email", "phone", "date", "identifier")


@dataclass(frozen=True)
class Finding:
    """One item: its kind, its letters and digits alone (for comparison), and where it stands in the text."""

    kind: Kind
    value: str  # lower case, letters and digits only (and "@" in an address)
    start: int  # first character
    end: int  # one past the last


# The usual endings of an address, beside those of countries.  Not just any word: once a text is tokenised, the dot
# before an ending looks like the full stop before the next sentence, and "see me @ noon . then" is no address.
_ENDING = "|".join(
    "com org net edu gov mil int info biz name pro mobi jobs coop aero museum post example test invalid "
    "dev app xyz tech cloud online site website web page host digital software systems network email "
    "health healthcare clinic hospital care dental doctor pharmacy med fitness life "
    "law legal attorney bank finance financial insurance money tax accountants capital "
    "company business enterprises agency consulting solutions services support management group partners team work "
    "school academy education college university institute foundation charity ngo church community social club "
    "store shop market global world international media news blog press studio design".split()
)
# A tokenizer puts spaces around punctuation ("ann . lee @ mail . org"), hence the \s? everywhere. The bounds are those
# of an address, and keep a key of 100 kB from taking minutes: without them every letter of it begins a search.
_EMAIL = re.compile(
    r"(?<![a-z0-9])[a-z0-9]{1,64}(?:\s?[._+-]\s?[a-z0-9]{1,64}){0,8}\s?@"
    r"\s?[a-z0-9-]{1,63}(?:\s?\.\s?[a-z0-9-]{1,63}){0,8}?"
    rf"\s?\.\s?(?:{_ENDING}|[a-z]{{2}})\b(?!\s?\.\s?(?:com|org|net|edu|gov)\b)(?:\s?\.\s?[a-z]{{2}}\b)?",
    re.IGNORECASE,
)
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DATE = re.compile(
    r"\b(?:\d{4}\s?-\s?\d{1,2}\s?-\s?\d{1,2}|\d{1,2}\s?([/.-])\s?\d{1,2}\s?\1\s?\d{2,4}"
    rf"|{_MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?(?:\s?,?\s?\d{{4}})?|\d{{1,2}}(?:st|nd|rd|th)?\s{_MONTH}(?:\s\d{{4}})?)\b",
    re.IGNORECASE,
)
_SSN = re.compile(r"\b\d{3}\s?-\s?\d{2}\s?-\s?\d{4}\b")
_IPV4 = re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\s?\.\s?){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b")
_IBAN = re.compile(r"\b[a-z]{2}\d{2}(?:\s?[a-z0-9]{4}){2,7}(?:\s?[a-z0-9]{1,3})?\b", re.IGNORECASE)
_CARD = re.compile(r"\b\d(?:[ -]{0,3}\d){12,18}\b")
# A record number: six digits or more, or a code that mixes letters and at least three digits.
_CODE = re.compile(r"\b(?:\d{6,}|(?=[a-z0-9]*[a-z])(?=(?:[a-z]*\d){3})[a-z0-9]{5,})\b", re.IGNORECASE)


def _iban(value: str) -> bool:
    moved = value[4:] + value[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _luhn(value: str) -> bool:
    doubled = [int(c) * (1 + i % 2) for i, c in enumerate(reversed(value))]
    return sum(d - 9 * (d > 9) for d in doubled) % 10 == 0


def find_pii(text: str, *, region: str = "US") -> list[Finding]:
    """Items in `text`, without overlaps, in reading order.

    region: the country (ISO 3166) whose telephone numbers are written without a country code.
    """
    from phonenumbers import Leniency, PhoneNumberMatcher  # here: its tables take a moment to import

    found: list[Finding] = []

    def add(kind: Kind, start: int, end: int, value: str) -> None:
        if value and not any(start < f.end and f.start < end for f in found):
            found.append(Finding(kind, value, start, end))

    def plain(value: str) -> str:
        return re.sub(r"[^a-z0-9@]", "", value.lower())

    for match in _EMAIL.finditer(text):
        add("email", *match.span(), plain(match[0]))
    for pattern, valid in ((_IBAN, _iban), (_CARD, _luhn), (_SSN, None), (_IPV4, None)):
        for match in pattern.finditer(text):
            if valid is None or valid(plain(match[0])):
                add("identifier", *match.span(), plain(match[0]))
    for match in _DATE.finditer(text):
        add("date", *match.span(), plain(match[0]))
    for phone in PhoneNumberMatcher(text, region, leniency=Leniency.POSSIBLE):
        if not (
            phone.raw_string.isdigit() and len(phone.raw_string) < 10
        ):  # a bare short number names a record
            add("phone", phone.start, phone.end, re.sub(r"\D", "", phone.raw_string))
    for match in _CODE.finditer(text):
        add("identifier", *match.span(), plain(match[0]))
    return sorted(found, key=lambda f: f.start)


def pii_hits(text: str, guess: str, *, region: str = "US") -> list[tuple[Kind, bool]]:
    """For each item of `text`: its kind, and whether the very same item stands in `guess`."""
    guessed = {(f.kind, f.value) for f in find_pii(guess, region=region)}
    return [(f.kind, (f.kind, f.value) in guessed) for f in find_pii(text, region=region)]


def pii_recovered(texts: Sequence[str], guesses: Sequence[str], *, region: str = "US") -> dict[str, Estimate]:
    """Per kind, the share of items of `texts` that the guesses give away, in per cent.

    n counts items, not texts, but the interval allows for items of one text that come back together; a kind
    that no text holds is left out.  Raises TextError for lists of different lengths.
    """
    _same_length(texts, guesses)
    hits: dict[str, list[bool]] = {}
    found_in: dict[str, list[int]] = {}
    for index, (text, guess) in enumerate(zip(texts, guesses, strict=True)):
        for kind, hit in pii_hits(text, guess, region=region):
            hits.setdefault(kind, []).append(hit)
            found_in.setdefault(kind, []).append(index)
    return {kind: proportion(hits[kind], texts=found_in[kind]) for kind in KINDS if kind in hits}


@dataclass(frozen=True)
class NameScores:
    """Share of texts whose person is named in the guess, per cent, as Morris et al. (2023) count it."""

    full: Estimate  # first and last name, side by side
    first: Estimate
    last: Estimate


_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CHINESE}]|[^\W_{_CHINESE}]+")
_MARK = "\u01c5"  # stands for a mark while a text is masked: a letter ("ǅ") that no one types


def words(text: str) -> list[str]:
    """Lower-case words without accents or punctuation, the form in which names are compared.

    Of any script.  A Chinese character is a word of its own, as tokenizers write it.
    """
    bare = unicodedata.normalize("NFKD", text.lower())
    return _WORD.findall(bare if bare.isascii() else "".join(c for c in bare if not _is_mark(c)))


def check_names(names: Sequence[str]) -> None:
    """Raises TextError for the first name without a letter or digit: nothing could be looked for."""
    for name in names:
        if not words(name):
            raise TextError(f"the name {name!r} has no letters: give the name as it stands in the text")


def name_hits(name: str, guess: str) -> tuple[bool, bool, bool]:
    """Whether the full name, its first part and its last part stand in the guess."""
    check_names([name])
    parts, found = words(name), words(guess)
    size = len(parts)
    full = any(found[i : i + size] == parts for i in range(len(found) - size + 1))
    return full, parts[0] in found, parts[-1] in found


def names_recovered(names: Sequence[str], guesses: Sequence[str]) -> NameScores:
    """Full, first and last names recovered; `names[i]` is the person in the text behind `guesses[i]`."""
    _same_length(names, guesses)
    hits = [name_hits(name, guess) for name, guess in zip(names, guesses, strict=True)]
    return NameScores(*(proportion([h[i] for h in hits]) for i in range(3)))


def facts_recovered(facts: Sequence[Sequence[str]], guesses: Sequence[str]) -> Estimate:
    """Share of texts all of whose facts (a condition, a city, a sum) stand in the guess, word for word, per cent.

    `facts[i]` are those of the text behind `guesses[i]`, as in the fields of a record, and are compared as names are.
    Raises TextError for lists of different lengths, and for a text without a fact.  Chapter 4.
    """
    _same_length(facts, guesses)
    if (bare := next((i for i, each in enumerate(facts) if not each), None)) is not None:
        raise TextError(f"text {bare} has no fact to look for: leave it and its guess out")
    pairs = zip(facts, guesses, strict=True)
    return proportion([all(name_hits(fact, guess)[0] for fact in each) for each, guess in pairs])


def mask(text: str) -> str:
    """Hide a text but keep its shape: first letter of words over three letters, digits never.

    Vowel signs and accents written as characters of their own are hidden as letters are.
    """
    hidden = re.sub(r"\d", "•", unicodedata.normalize("NFC", text))
    hidden = "".join(_MARK if _is_mark(c) else c for c in hidden)
    hidden = re.sub(
        r"[^\W\d_•]+", lambda m: (m[0][0] if len(m[0]) > 3 else "•") + "•" * (len(m[0]) - 1), hidden
    )
    return hidden.replace(_MARK, "•")


def _is_mark(character: str) -> bool:
    """An accent, or a vowel sign of an Indic script: part of a word, though `\\w` does not say so."""
    return unicodedata.category(character).startswith("M")


def _same_length(a: Sequence[object], b: Sequence[str]) -> None:
    if len(a) != len(b):
        raise TextError(f"{len(a)} originals and {len(b)} guesses were given: one guess for each is needed")
