"""Figures: what is drawn is what was given, the same bytes every time, and HTML that nothing can break."""

from __future__ import annotations

import html as html_library
import json
import math
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutorial_lib import figures
from tutorial_lib.errors import TutorialError
from tutorial_lib.explorer import align, coloured_diff, explorer, inversion_path, scores_table
from tutorial_lib.metrics import Estimate, Scores

NASTY = "<script>alert('x')</script> \"&amp; $5 and $6 🙂 --> </style>"


@dataclass(frozen=True)
class Step:
    step: int
    text: str
    cosine: float
    queries: int


class Uncased:
    def normalise(self, texts):
        return [text.lower() for text in texts]


TRACE = [
    Step(0, "peace the keep", 0.71, 8),
    Step(1, "keep peace now", 0.86, 80),
    Step(2, "keep peace now", 0.86, 152),
    Step(3, "keep the peace", 0.99999999, 224),
]


def inversion(*traces):
    return SimpleNamespace(trace=list(traces))


class Tags(HTMLParser):
    """Checks that tags nest, and collects tags, text and attributes."""

    VOID = frozenset({"input", "br", "img", "meta"})

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.attributes: list[dict] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


# --- alignment --------------------------------------------------------------------------------------

sentences = st.lists(st.sampled_from("a b c d".split()), max_size=7)


def test_align_marks_right_moved_and_wrong():
    assert align("we keep the peace".split(), "we keep the peace".split()) == ("rrrr", "rrrr")
    assert align("we keep the peace".split(), "we the keep war".split()) in [
        ("rmrw", "rrmw"),
        ("rrmw", "rmrw"),
    ]
    assert align(["a", "b"], []) == ("ww", "") and align([], ["a"]) == ("", "w")
    assert align(["the", "a"], ["the", "the", "the"]) == ("rw", "rww"), "one the is matched once"


@settings(max_examples=150)
@given(sentences, sentences)
def test_align_is_a_longest_common_subsequence(reference, guess):
    above, below = align(reference, guess)
    kept = [w for w, s in zip(reference, above, strict=True) if s == "r"]
    assert kept == [w for w, s in zip(guess, below, strict=True) if s == "r"]
    moved = sorted(w for w, s in zip(reference, above, strict=True) if s == "m")
    assert moved == sorted(w for w, s in zip(guess, below, strict=True) if s == "m")
    left = {w for w, s in zip(reference, above, strict=True) if s == "w"}
    assert not left & {w for w, s in zip(guess, below, strict=True) if s == "w"}, (
        "a shared word left unmatched"
    )

    def longest(a, b):
        if not a or not b:
            return 0
        return 1 + longest(a[1:], b[1:]) if a[0] == b[0] else max(longest(a[1:], b), longest(a, b[1:]))

    assert len(kept) == longest(reference, guess)


# --- HTML -------------------------------------------------------------------------------------------


def test_diff_says_everything_without_colour():
    diff = coloured_diff("we keep the peace", "we peace keep hold")
    assert str(diff) in (
        "text:  we keep ○the ○peace\nguess: we ↔peace keep ✗hold",
        "text:  we ○keep ○the peace\nguess: we peace ↔keep ✗hold",
    )
    page = Tags(diff.html)
    assert not page.open and {"u", "s", "sup"} <= set(page.tags)
    assert "✗hold" in page.text and any(a.get("title") == "wrong" for a in page.attributes)
    assert diff._repr_mimebundle_()["text/plain"] == str(diff)


def test_diff_of_an_empty_guess_and_of_nasty_text():
    assert "(empty)" in str(coloured_diff("peace", "")) and "(empty)" in coloured_diff("peace", "").html
    page = Tags(coloured_diff(NASTY, NASTY).html)
    assert not page.open and "script" not in page.tags
    assert " ".join(NASTY.split()) in " ".join(page.text.split())


def test_path_shows_rounds_that_changed_something_and_the_last():
    path = inversion_path(TRACE, "keep the peace")
    rounds = [line.split()[0] for line in str(path).splitlines()[1:]]
    assert rounds == ["0", "1", "3"]
    assert (
        inversion_path([*TRACE, Step(4, "keep the peace", 1, 300)], "keep the peace").text.count("1.0000")
        == 2
    )
    page = Tags(path.html)
    assert not page.open and page.tags.count("tr") == 5
    with pytest.raises(TutorialError, match="empty trace"):
        inversion_path([], "peace")


def test_cosine_is_not_rounded_up_to_one():
    shown = str(inversion_path([Step(0, "a", 0.99997, 1), Step(1, "b", 0.9999999, 2)], "b"))
    assert "0.9999 " in shown and "1.0000" in shown


def test_explorer_carries_every_step_and_no_ids():
    figure = explorer(inversion(TRACE, TRACE[:1]), ["Keep THE peace", "keep the peace"], Uncased())
    page = Tags(figure.html)
    assert not page.open and not any("id" in attributes for attributes in page.attributes)
    (data,) = [json.loads(a["data-explorer"]) for a in page.attributes if "data-explorer" in a]
    first, second = data["texts"]
    assert first["target"] == ["keep", "the", "peace"] and len(second["steps"]) == 1
    assert [s["step"] for s in first["steps"]] == [0, 1, 2, 3]
    assert first["steps"][3]["states"] == first["steps"][3]["missing"] == "rrr"
    assert [s["queries"] for s in first["steps"]] == [8, 80, 152, 224]
    assert [s["words"] for s in first["steps"]] == [step.text.split() for step in TRACE]
    for step in first["steps"]:
        assert align(first["target"], step["words"]) == (step["missing"], step["states"])
    assert "round 3, cosine 1.0000, 224 queries" in str(figure)


def test_a_cosine_that_nobody_knows_is_a_dash():
    """Guesses for the vectors of a table cannot be embedded; JSON has no NaN, and a browser refuses it."""
    trace = [Step(0, "keep peace", math.nan, 0)]
    assert str(inversion_path(trace, "keep the peace")).splitlines()[1].split()[:3] == ["0", "–", "0"]
    figure = explorer(inversion(trace), ["keep the peace"], Uncased())
    assert "round 0, cosine –, 0 queries" in str(figure)
    (data,) = [a["data-explorer"] for a in Tags(figure.html).attributes if "data-explorer" in a]
    (step,) = json.loads(data, parse_constant=pytest.fail)["texts"][0]["steps"]
    assert step["cosine"] is None


def test_explorer_is_self_contained_deterministic_and_safe():
    made = [
        explorer(inversion([Step(0, NASTY, 0.5, 1)]), [NASTY], Uncased(), title=NASTY).html for _ in range(2)
    ]
    assert made[0] == made[1]
    page = Tags(made[0])
    assert not page.open and page.tags.count("script") == 1, "only ours"
    outside = re.sub(r"http://www\.w3\.org/2000/svg", "", made[0])
    assert not re.search(r"https?://|\bsrc=|@import|url\(|fetch\(", outside), "nothing from the network"
    assert "innerHTML" not in made[0]
    assert html_library.escape(NASTY.lower()).split()[0] in made[0]


def test_explorer_refuses_what_does_not_pair():
    with pytest.raises(TutorialError, match="1 inversions and 2 references"):
        explorer(inversion(TRACE), ["a", "b"], Uncased())
    with pytest.raises(TutorialError, match="0 inversions and 0 references"):
        explorer(inversion(), [], Uncased())
    with pytest.raises(TutorialError, match="empty trace"):
        explorer(inversion([]), ["a"], Uncased())


def test_scores_table_sets_published_figures_apart():
    estimate = Estimate(31.94, 30.1, 33.7, 2)
    ours = Scores(
        estimate, estimate, Estimate(0, 0, 65.8, 2), Estimate(0.8421, 0.836, 0.848, 2), {}, ("a", "b")
    )
    table = scores_table({"<ours>": ours, "paper": {"bleu": 97.3, "exact": 92}})
    page = Tags(table.html)
    assert not page.open and "<ours>" in page.text and "30.1–33.7" in page.text and "published" in page.text
    lines = str(table).splitlines()
    assert lines[1].endswith("0.842 (0.836–0.848) | 2") and lines[2] == "paper | 97.3 | – | 92 | – | –"
    unknown = replace(ours, cosine=Estimate(float("nan"), float("nan"), float("nan"), 2))  # of a table's vectors
    table = scores_table({"ours": unknown})
    assert "nan" not in table.html + str(table) and str(table).splitlines()[1].endswith(" | – | 2")
    assert table.html.count("<td") == 5
    with pytest.raises(TutorialError, match="no rows"):
        scores_table({})


# --- plots ------------------------------------------------------------------------------------------


def drawn(fig):
    """x and y of every line with a label of its own."""
    return {
        line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist())
        for line in fig.axes[0].lines
        if not line.get_label().startswith("_")
    }


def test_style_leaves_the_readers_settings_alone(tmp_path):
    before = dict(mpl.rcParams)
    fig, ax = figures.figure()
    ax.plot([1, 2], [1, 2])
    figures.save(fig, tmp_path / "a.png")
    figures.bits({"a": 1.0, "b": 2.0})
    assert dict(mpl.rcParams) == before
    with figures.style():
        assert mpl.rcParams["figure.facecolor"] == "white"
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_figures_are_the_same_bytes_every_time(tmp_path, kind):
    rows = {"a": [0.0, 1e-3, 0.2], "b": np.linspace(0.1, 1, 50)}
    paths = [
        figures.save(figures.distributions(rows, xlabel="x", marks={"int8": 1e-5}), tmp_path / f"{i}.{kind}")
        for i in range(2)
    ]
    first, second = (path.read_bytes() for path in paths)
    assert first == second and len(first) > 5000
    assert b"Matplotlib v" not in first and b"dc:date" not in first
    with pytest.raises(TutorialError, match=r"'a.pdf'"):
        figures.save(figures.bits({"a": 1}), tmp_path / "a.pdf")


def test_background_is_opaque_white(tmp_path):
    from matplotlib.image import imread

    image = imread(figures.save(figures.bits({"a": 10.0}), tmp_path / "a.png"))
    assert (image[..., 3] == 1).all() and (image[0, 0, :3] == 1).all()
    assert image.shape[1] == 1080


def test_show_gives_a_picture_and_words(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: seen.append((a, k)))
    figures.show(figures.bits({"a": 1}), alt=" One bar. ", caption="Bits.")
    ((bundle,), options) = seen[0]
    assert bundle["text/plain"] == "One bar. Bits." and bundle["image/png"].startswith(b"\x89PNG")
    assert options["metadata"] == {"image/png": {"alt": "One bar."}}
    with pytest.raises(TutorialError, match="no alt text"):
        figures.show(figures.bits({"a": 1}), alt=" ")


def test_curve_draws_the_values_and_their_band():
    fig, ax = figures.figure()
    figures.curve_with_interval(ax, [1, 2], [Estimate(5, 4, 6, 9), Estimate(7, 6, 9, 9)], "ours", series=8)
    assert drawn(fig) == {"ours": ([1, 2], [5, 7])}
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 4 and band[:, 1].max() == 9
    figures.curve_with_interval(ax, [1], [Estimate(5, math.nan, math.nan, 1)], "one text")
    with pytest.raises(TutorialError, match="2 positions and 1 estimates"):
        figures.curve_with_interval(ax, [1, 2], [Estimate(5, 4, 6, 9)], "x")
    with pytest.raises(TutorialError, match="0 positions"):
        figures.curve_with_interval(ax, [], [], "x")


def test_exact_against_queries_sorts_and_sets_the_paper_apart():
    ours = [(100.0, Estimate(30, 20, 40, 9)), (0, Estimate(0, 0, 5, 9))]
    fig = figures.exact_against_queries({"ours": ours, "none": []}, paper={"GTR": figures.PUBLISHED_SWEEP})
    lines = drawn(fig)
    assert lines["ours"] == ([1, 100], [0, 30]), "no queries stands at 1 on a logarithmic axis"
    assert lines["GTR"][1] == [exact for _, exact in figures.PUBLISHED_SWEEP]
    styles = {line.get_label(): line.get_linestyle() for line in fig.axes[0].lines}
    assert styles["GTR"] == "None" and styles["ours"] == "-"
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["ours", "GTR"]
    with pytest.raises(TutorialError, match="no points"):
        figures.exact_against_queries({"ours": []})


def test_distributions_name_rows_of_zeros_and_refuse_bad_ones():
    fig = figures.distributions(
        {"case": [0, 0], "swap": [0.1, 0.2]}, xlabel="1 − cosine", marks={"int8": 1e-4}
    )
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["case (0)", "swap"]
    assert ax.texts[0].get_text().strip() == "int8" and ax.get_ylim()[0] > ax.get_ylim()[1]
    for rows in ({}, {"a": []}, {"a": [-1.0]}, {"a": [math.nan]}):
        with pytest.raises(TutorialError, match="distributions was given"):
            figures.distributions(rows, xlabel="x")


def test_bits_write_the_number_at_the_point():
    fig = figures.bits({"text $5 $6": Estimate(58.2, 57, 59, 9), "vector": 12288})
    assert [t.get_text() for t in fig.axes[0].texts] == ["58", "12,288"]
    for rows in ({}, {"a": 0}, {"a": math.inf}):
        with pytest.raises(TutorialError, match="bits was given"):
            figures.bits(rows)


def test_loss_curve_reads_the_training_csv(tmp_path):
    path = tmp_path / "loss.csv"
    path.write_text(
        "step,seconds,sequences,loss,lr\n1,2,128,9,1e-3\n2,4,256,3,1e-3\n3,6,384,3,1e-3\n4,8,512,,1e-3\n"
    )
    fig = figures.loss_curve({"small": path}, window=3)
    assert drawn(fig) == {"small": ([128, 256, 384], [6, 5, 3])}
    seconds = figures.loss_curve(path, x="seconds").axes[0]
    assert seconds.get_xlabel() == "seconds" and seconds.lines[0].get_xdata().tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("step,seconds,sequences,loss\n", "no rows yet"),
        ("a,b\n1,2\n", "KeyError"),
        ("sequences,loss\n1,x\n", "ValueError"),
    ],
)
def test_loss_curve_refuses_other_files(tmp_path, content, words):
    path = tmp_path / "loss.csv"
    path.write_text(content)
    with pytest.raises(TutorialError, match=words):
        figures.loss_curve(path)
    with pytest.raises(TutorialError, match="does not exist"):
        figures.loss_curve(tmp_path / "none.csv")
