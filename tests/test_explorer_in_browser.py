"""The explorer's controls, pressed in a browser without a window; left out where there is no Chromium or Chrome."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest

from tutorial_lib.explorer import explorer

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NASTY = "<img src=x onerror=document.title='read as html'> &amp; 🙂"
# Presses what a reader would press, one control after the other, and writes down what the page then says.
PRESS = """
const said = [];
const app = document.querySelector(".tl-app");
const note = (what) => said.push({
  what, guess: app.querySelector("dt").textContent + ": " + app.querySelector("dd").textContent.trim(),
  stats: [...app.querySelectorAll(".tl-stats b")].map((value) => value.textContent),
  play: app.querySelector(".tl-play").textContent,
  spoken: app.querySelector("[aria-live]").textContent,
  curve: app.querySelector("svg").style.display,
  disabled: [...app.querySelectorAll("button")].map((button) => button.disabled),
});
const press = (label) => app.querySelector(`button[aria-label="${label}"]`).click();
const slide = (to) => {
  const slider = app.querySelector("input");
  slider.value = to;
  slider.dispatchEvent(new Event("input"));
};
const choose = (to) => {
  const select = app.querySelector("select");
  select.value = to;
  select.dispatchEvent(new Event("change"));
};
note("start");
press("one round on"); note("next");
press("one round back"); note("back");
slide(3); note("slider");
press("play the rounds"); note("play");
press("stop"); note("stop");
press("play the rounds");
setTimeout(() => {
  note("played");
  choose(1); note("unknown cosine");
  choose(2); note("nasty");
}, 5000);
setTimeout(() => { // later, so that what was read as HTML has had its say
  const out = document.createElement("pre");
  out.textContent = JSON.stringify({
    said, title: document.title, alive: document.querySelectorAll("[data-alive]").length,
    options: [...app.querySelectorAll("option")].map((option) => option.textContent),
  });
  document.body.append(out);
}, 6000);
"""


def step(number: int, text: str, cosine: float) -> Any:
    return SimpleNamespace(step=number, text=text, cosine=cosine, queries=8 + 72 * number)


TRACE = [step(0, "the keep peace", 0.9), step(1, "keep the war", 0.95), step(2, "keep the war", 0.95),
         step(3, "keep the peace", 1.0)]  # fmt: skip


@pytest.fixture(scope="module")
def pressed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page said after each press, by the name of the press."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome")
    folder = tmp_path_factory.mktemp("browser")
    traces = [TRACE, [step(0, "peace", math.nan)], [step(0, NASTY, 0.5)]]
    uncased = SimpleNamespace(normalise=lambda texts: list(texts))
    figure = explorer(SimpleNamespace(trace=traces), ["keep the peace", "war", NASTY], uncased)  # type: ignore[arg-type]
    # twice on one page, as Jupyter may show it
    page = f"<!doctype html><meta charset=utf-8><body>{figure.html}{figure.html}<script>{PRESS}</script>"
    (folder / "page.html").write_text(page, encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --dump-dom --virtual-time-budget=10000".split()
    command = [browser, *options, f"--user-data-dir={folder}/profile", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    written = re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert written, (done.stdout + done.stderr)[-3000:]
    told = json.loads(unescape(written[1]))
    return told | {"said": {each.pop("what"): each for each in told["said"]}}


def test_the_controls_step_through_the_rounds(pressed: dict[str, Any]) -> None:
    said = pressed["said"]
    assert pressed["alive"] == 2
    assert pressed["options"][0] == "1: keep the peace (3 of 3)"
    assert said["start"]["stats"] == ["0 / 3", "0.9000", "8", "2 / 3"]
    assert said["start"]["spoken"] == ""  # nothing is read out before the reader has moved
    assert said["start"]["disabled"] == [False, True, False]
    assert said["next"]["stats"] == ["1 / 3", "0.9500", "80", "2 / 3"]
    assert said["next"]["guess"] == "guess after round 1: keep the ✗war"
    assert said["next"]["spoken"] == "Round 1: keep the war. 2 of 3 words in place."
    assert said["back"]["stats"] == said["start"]["stats"]
    assert said["back"]["guess"].startswith("first guess: ")
    assert said["slider"]["stats"] == ["3 / 3", "1.0000", "224", "3 / 3"]
    assert said["slider"]["disabled"] == [False, False, True]


def test_play_runs_to_the_end_and_stops(pressed: dict[str, Any]) -> None:
    said = pressed["said"]
    assert said["play"]["stats"][0] == "0 / 3"  # from the end it begins again
    assert (said["play"]["play"], said["stop"]["play"]) == ("❚❚ Stop", "▶ Play")
    assert said["stop"]["stats"] == said["play"]["stats"]
    assert said["played"]["stats"] == ["3 / 3", "1.0000", "224", "3 / 3"]
    assert said["played"]["play"] == "▶ Play"


def test_an_unknown_cosine_has_no_curve_and_a_text_is_never_read_as_html(pressed: dict[str, Any]) -> None:
    said = pressed["said"]
    assert said["unknown cosine"]["stats"] == ["0 / 0", "–", "8", "0 / 1"]
    assert said["unknown cosine"]["curve"] == "none"
    assert said["start"]["curve"] == said["nasty"]["curve"] == ""
    assert said["nasty"]["guess"] == f"first guess: {NASTY}"
    assert pressed["title"] == ""
