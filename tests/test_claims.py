"""Reported numbers, claims and prose. The mutation tests are the point: a wrong number must not pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib.claims import (
    GLUE_PREFIX,
    Claim,
    Claims,
    Order,
    Reported,
    compare,
    format_value,
    report,
    reported,
)
from tutorial_lib.errors import ClaimError
from tutorial_lib.metrics import Estimate
from tutorial_lib.prose import fill, refresh, typed_by_hand


def claims_of(text: str, tmp_path: Path) -> Claims:
    path = tmp_path / "claims.yml"
    path.write_text(text, encoding="utf-8")
    return Claims.read(path)


CLAIMS = """
claims:
  bleu_0:
    chapter: "02"
    what: BLEU of the base model
    ours: {cpu: {value: 31.9, tolerance: 2}}
    paper: {value: 31.9, source: "Table 1"}
  bleu_50:
    chapter: "03"
    what: BLEU after 50 rounds
    ours: {cpu: {value: 85.0, tolerance: 2}}
order:
  - bleu_0.high < bleu_50.low
  - {rule: "bleu_50 > 80", profiles: [cpu]}
"""


def numbers(bleu_0: float = 31.9, bleu_50: float = 85.0) -> dict[str, dict[str, Reported]]:
    return {
        "02": {"bleu_0": Reported("bleu_0", bleu_0, bleu_0 - 1, bleu_0 + 1, 100)},
        "03": {"bleu_50": Reported("bleu_50", bleu_50, bleu_50 - 1, bleu_50 + 1, 100)},
    }


def notebook_with(*records: tuple[str, Any, dict[str, Any] | None]) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell("...")
    for name, value, note in records:
        metadata = {"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}}
        if note is not None:
            metadata["tutorial_lib"] = note
        cell.outputs.append(
            nbformat.v4.new_output(
                "display_data", data={GLUE_PREFIX + "text/plain": repr(value)}, metadata=metadata
            )
        )
    return nbformat.v4.new_notebook(cells=[cell])


def test_agreement_is_silent(tmp_path: Path) -> None:
    assert compare(numbers(), claims_of(CLAIMS, tmp_path), "cpu") == []


@pytest.mark.parametrize(
    ("mutation", "complaint"),
    [
        (lambda text, got: (text, numbers(bleu_0=34.5)), "bleu_0: 02 reports 34.5"),
        (
            lambda text, got: (text.replace("value: 31.9, tol", "value: 29.0, tol"), got),
            "claims.yml says 29.0",
        ),
        (lambda text, got: (text.replace("tolerance: 2}", "tolerance: 0}", 1), numbers(bleu_0=31.8)), "± 0"),
        (lambda text, got: (text, {"02": got["02"]}), "bleu_50: claimed of 03, but not reported"),
        (
            lambda text, got: (text, {**got, "04": {"x": Reported("x", 1)}}),
            "x: 04 reports it, but claims.yml",
        ),
        (lambda text, got: (text, {**got, "04": got["02"]}), "reported by more than one chapter"),
        (lambda text, got: (text.replace('"02"', '"01"'), got), "expects it from 01"),
        (lambda text, got: (text.replace("> 80", "> 90"), got), "'bleu_50 > 90' does not hold"),
        (lambda text, got: (text.replace("bleu_0.high <", "bleu_0.high >"), got), "does not hold"),
        (
            lambda text, got: (text.replace("cpu: {value: 85.0", "gpu: {value: 85.0"), got),
            "nothing for the profile",
        ),
    ],
)
def test_every_mutation_is_noticed(mutation: Any, complaint: str, tmp_path: Path) -> None:
    text, got = mutation(CLAIMS, numbers())
    problems = compare(got, claims_of(text, tmp_path), "cpu")
    assert any(complaint in problem for problem in problems), problems


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 10))
def test_tolerance_is_symmetric_and_exact(claimed: float, measured: float, tolerance: float) -> None:
    claim = Claim("x", "02", "", "", {"cpu": {"value": claimed, "tolerance": tolerance}}, None)
    off = abs(claimed - measured)
    if abs(off - tolerance) > 1e-6:
        assert (claim.disagreement(Reported("x", measured), "cpu") is None) == (off < tolerance)


def test_smoke_checks_presence_and_order_only(tmp_path: Path) -> None:
    claims = claims_of(CLAIMS, tmp_path)
    assert compare(numbers(bleu_0=3, bleu_50=9), claims, "smoke") == []
    assert compare(numbers(bleu_0=9, bleu_50=3), claims, "smoke") != []
    assert compare({"02": numbers()["02"]}, claims, "smoke", partial=True) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("claim: {}", "unknown section 'claim'"),
        ("claims: {x: {chapter: a}}", "needs 'chapter' and 'what'"),
        ("claims: {x: {chapter: a, what: b, ours: {cpu: 3}}}", "ours.cpu"),
        ("claims: {x: {chapter: a, what: b, ours: {cpu: {value: 1, tolerance: -1}}}}", "negative tolerance"),
        ("claims: {x: {chapter: a, what: b, ours: {cpu: {value: 1, tolerance: 1e-10}}}}", "such as 1.0e-10"),
        ("claims: {x: {chapter: a, what: b, paper: {value: 1}}}", "without 'value' and 'source'"),
        ("order: [[1]]", "must be a text"),
        ("order: [{rule: 3}]", "must be a text"),
        ("order: [{rule: a < b, profiles: 3}]", "must be a text"),
        ("order: 3", "'order' as a list"),
        ("claims: 3", r"needs 'claims' as name"),
        ("claims: {x: {chapter: a, what: b, ours: 3}}", "needs 'ours' as profile"),
        ("claims: {x: {chapter: a, what: b, paper: 3}}", "without 'value' and 'source'"),
        ("claims: {x: {chapter: a, what: b, paper: {value: .nan, source: c}}}", "nan as the paper's value"),
        ("claims: {x: {chapter: a, what: b, ours: {cpu: {value: .nan}}}}", "nan as the value for 'cpu'"),
        ("claims: {x: {chapter: a, what: b, ours: {cpu: {value: [1]}}}}", r"\[1\] as the value for 'cpu'"),
        ("claims: {x: {chapter: a, what: b, ours: {cpu: {value: 1, tolerance: .inf}}}}", "inf as the tolerance"),
        ("claims:\n  x: {chapter: a, what: b}\n  x: {chapter: a, what: c}", r"yml, line 3, .*'x' stands here twice"),
        ("claims:\n  x: {chapter: a, what: b,\n what: b}", r"line 3, .*'what' stands here twice"),
        ("claims:\n  x: {chapter: a", r"claims.yml, line 2, is not valid YAML: expected"),
        ("claims:\n  x: \x07", r"claims.yml, line 2, holds a character that YAML does not allow"),
        ("[1]", r"claims.yml, line 1, begins a list"),
    ],
)
def test_malformed_claims_say_what_is_wrong(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ClaimError, match=complaint):
        claims_of(text, tmp_path)


def test_claims_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "claims.yml").write_bytes(b"claims:\n  # \xff\n")
    with pytest.raises(ClaimError, match=r"claims\.yml, line 2, is not UTF-8 text"):
        Claims.read(tmp_path / "claims.yml")


def test_orders_refuse_what_they_cannot_compare() -> None:
    with pytest.raises(ClaimError, match="has no <"):
        Order("a b", ()).disagreement({}, "cpu")
    with pytest.raises(ClaimError, match="is a text"):
        Order("a < 1", ()).disagreement({"a": Reported("a", "word")}, "cpu")
    with pytest.raises(ClaimError, match="without an interval"):
        Order("a.low < 1", ()).disagreement({"a": Reported("a", 1.0)}, "cpu")
    assert "no chapter reports 'a'" in str(Order("a < 1", ()).disagreement({}, "cpu"))
    assert (
        Order("1 <= a <= 2 < b", ()).disagreement({"a": Reported("a", 2), "b": Reported("b", 3)}, "cpu")
        is None
    )


def test_report_prints_a_line_outside_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    report("bleu", Estimate(31.94, 30.1, 33.6, 200))
    report("bits", 12288)
    report("share", 0.5, fmt=".0%")
    assert capsys.readouterr().out == "bleu = 31.9 (30.1–33.6, n = 200)\nbits = 12,288\nshare = 50%\n"


@pytest.mark.parametrize(
    ("name", "value"), [("Big", 1), ("a:b", 1), ("a", math.nan), ("a", math.inf), ("a", [1])]
)
def test_report_refuses(name: str, value: Any) -> None:
    with pytest.raises(ClaimError):
        report(name, value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(max_size=20))
def test_what_is_stored_is_what_is_read(value: float | int | str) -> None:
    found = reported(notebook_with(("x", value, {"estimate": False, "fmt": None})))
    assert found["x"].value == value
    assert type(found["x"].value) is type(value)


def test_records_of_an_estimate_belong_together() -> None:
    note = {"estimate": True, "fmt": ".1f"}
    book = notebook_with(("x", 2.0, note), ("x_low", 1.0, None), ("x_high", 3.0, None), ("x_n", 9, None))
    assert reported(book) == {"x": Reported("x", 2.0, 1.0, 3.0, 9, ".1f")}
    with pytest.raises(ClaimError, match="twice"):
        reported(notebook_with(("x", 1, {"estimate": False, "fmt": None}), ("x", 2, None)))
    book = notebook_with(("x", 1, {"estimate": False, "fmt": None}))
    book.cells[0].outputs[0].data[GLUE_PREFIX + "text/plain"] = "os.remove"
    with pytest.raises(ClaimError, match="cannot be read"):
        reported(book)


ITEMS = {
    "bleu": Reported("bleu", 31.94, 30.12, 33.61, 200, ".1f"),
    "bits": Reported("bits", 12288),
    "exact": Reported("exact", 92.04, 88.0, 95.1, 100),
    "who": Reported("who", "the second text"),
}
PAPER = {
    "bleu": Claim("bleu", "02", "", "", {}, {"value": 97.3, "source": "Table 1"}),
    "exact": Claim("exact", "03", "", "%", {}, None),
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("a {report}`bleu` b", "a 31.9 (95 % interval 30.1–33.6, n = 200) b"),
        ("{report}`bleu.value`, {report}`bleu.low:.2f`, {report}`bleu.n`", "31.9, 30.12, 200"),
        ("{report}`bleu:.0f`", "32 (95 % interval 30–34, n = 200)"),
        ("{report}`bits` bits, {report}`who`", "12,288 bits, the second text"),
        ("{paper}`bleu` against {report}`bleu.value`", "97.3 against 31.9"),
        ("`{braces}` and {other}`role` stay", "`{braces}` and {other}`role` stay"),
    ],
)
def test_fill(text: str, filled: str) -> None:
    assert fill(text, ITEMS, PAPER) == filled


@pytest.mark.parametrize(
    "text",
    [
        "{report}`nobody`",
        "{paper}`bits`",
        "{report}`bits.low`",
        "{report}`Bad Name`",
        "{report}`who:.1f`x{report}`bits:q`",
    ],
)
def test_fill_refuses(text: str) -> None:
    with pytest.raises(ClaimError):
        fill(text, ITEMS, PAPER)


def test_refresh_writes_between_markers_and_is_idempotent() -> None:
    text = "| <!--report bleu.value:.1f-->?<!--/report--> | <!--paper bleu-->0<!--/paper--> |\n"
    text += "<!-- generated table: why -->\nold\n<!-- /generated -->\n"
    once = refresh(text, ITEMS, PAPER, {"table": lambda: "new\n"})
    assert "-->31.9<!--/report-->" in once
    assert "-->97.3<!--/paper-->" in once
    assert "\nnew\n" in once
    assert "old" not in once
    assert refresh(once, ITEMS, PAPER, {"table": lambda: "new\n"}) == once
    with pytest.raises(ClaimError, match="no generated block 'table'"):
        refresh(text, ITEMS, PAPER, {})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("BLEU reaches 31.9 here", ["31.9"]),
        ("of 12,288 bits, 12288 bits", ["12,288", "12288"]),
        ("between 30.1 and 33.6", ["30.1", "33.6"]),
        ("about 92 % exact", ["92 %"]),
        ("rounded to 31.94.", ["31.94"]),
        ("<!--by hand-->once 31.9<!--/by hand--> and now 31.9", ["31.9"]),
    ],
)
def test_typed_by_hand_finds(text: str, found: list[str]) -> None:
    assert [typed for typed, _ in typed_by_hand(text, ITEMS, PAPER)] == found


@pytest.mark.parametrize(
    "text",
    [
        "BLEU reaches {report}`bleu` here",
        "a setting of `31.9`, maths $31.9$, [31.9](https://x.org/31.9), <!-- 31.9 -->",
        "32 tokens, 92 texts, 31.8, 1931.9, arXiv 2310.06816, version 1.31.9",
        "a 95 % interval of 95 % bootstrap intervals",
        "<!--report bleu.value-->31.9<!--/report-->",
        "<!--by hand-->\n\n| once | 31.9 |\n\n<!--/by hand-->",
    ],
)
def test_typed_by_hand_leaves_alone(text: str) -> None:
    text = text.replace("[31.9]", "[there]")
    assert list(typed_by_hand(text, ITEMS | {"level": Reported("level", 95.0)}, PAPER)) == []


@given(st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9))
def test_format_value_reads_back(value: float | int) -> None:
    read = float(format_value(value, None).replace(",", ""))
    assert (
        read == value if isinstance(value, int) else math.isclose(read, value, rel_tol=6e-3, abs_tol=1e-300)
    )


@given(st.floats(10, 99).map(lambda x: round(x, 1)).filter(lambda x: x * 10 % 10 >= 1))
def test_a_number_shown_by_a_role_is_found_when_typed(value: float) -> None:
    items = {"x": Reported("x", value)}
    shown = fill("{report}`x:.1f`", items, {})
    assert [name for _, name in typed_by_hand(f"It is {shown}.", items, {})] == ["x"]


def test_report_writes_the_records_that_are_read_back() -> None:
    interactive = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell
    from IPython.utils.capture import capture_output

    interactive.instance()
    try:
        with capture_output() as shown:
            report("bleu", Estimate(31.94, 30.1, 33.6, 200), fmt=".1f")
            report("alone", Estimate(5.0, math.nan, math.nan, 1))
    finally:
        interactive.clear_instance()
    outputs = [
        nbformat.v4.new_output("display_data", data=out.data, metadata=out.metadata) for out in shown.outputs
    ]
    names = [out.metadata["scrapbook"]["name"] for out in outputs]
    assert names == ["bleu", "bleu_low", "bleu_high", "bleu_n", "alone", "alone_n"]
    found = reported(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)]))
    assert found["bleu"] == Reported("bleu", 31.94, 30.1, 33.6, 200, ".1f")
    assert found["alone"].text() == "5.0 (n = 1)"
