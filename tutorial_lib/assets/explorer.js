// Turns every explorer on the page that is not alive yet into one: the static list it finds is replaced by controls.
// The data are in the element's own attribute, no ids are used, so any number of explorers can share a page.
(function () {
  "use strict";
  const MEANING = { r: "right", m: "in the wrong place", w: "wrong" };
  const SYMBOL = { r: "", m: "↔", w: "✗" };

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children); // strings become text nodes: nothing in a text is ever read as HTML
    return element;
  }

  function draw(tag, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function word(text, state, isTarget) {
    if (state === "r") return make("span", { class: "r" }, text);
    const meaning = isTarget ? "not recovered in this place" : MEANING[state];
    const mark = make("sup", { "aria-hidden": "true" }, isTarget ? "○" : SYMBOL[state]);
    return make(isTarget || state === "m" ? "u" : "s", { class: state, title: meaning }, mark, text);
  }

  function spaced(elements) {
    return elements.flatMap((element) => [element, " "]);
  }

  function count(states, letter) {
    return [...states].filter((state) => state === letter).length;
  }

  function digits(cosine) {
    if (cosine === null) return "–"; // guesses for the vectors of a table cannot be embedded
    return (Math.floor(cosine * 1e4 + 0.05) / 1e4).toFixed(4);
  }

  function start(app) {
    const { title, texts } = JSON.parse(app.dataset.explorer);
    let current = 0, at = 0, timer = null;

    const options = texts.map((entry, index) => {
      const start = entry.target.join(" ");
      const last = entry.steps[entry.steps.length - 1];
      const share = `${count(last.missing, "r")} of ${entry.target.length}`;
      return make("option", { value: index }, `${index + 1}: ${start.length > 44 ? start.slice(0, 43) + "…" : start} (${share})`);
    });
    const select = make("select", { "aria-label": "text, with the words in place after its last round" }, ...options);
    const guess = make("dd", { class: "tl-words" }), guessName = make("dt");
    const target = make("dd", { class: "tl-words" });
    const play = make("button", { type: "button", class: "tl-play" }, "▶ Play");
    const back = make("button", { type: "button", "aria-label": "one round back" }, "‹");
    const next = make("button", { type: "button", "aria-label": "one round on" }, "›");
    const slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "round of correction" });
    const stats = ["round", "cosine", "embedder queries", "words in place"].map((name) => {
      const value = make("b");
      return { value, box: make("div", {}, value, make("span", {}, name)) };
    });
    const chart = draw("svg", { role: "img", height: 120 });
    const spoken = make("p", { class: "tl-quiet", "aria-live": "polite" });
    const legend = make("p", { class: "tl-legend" },
      make("span", {}, word("word", "r"), " right"), make("span", {}, word("word", "m"), " right word, wrong place"),
      make("span", {}, word("word", "w"), " wrong"), make("span", {}, word("word", "w", true), " not recovered yet"));

    const left = 44, top = 12, bottom = 94;
    let width = 640, dot, rule, across, up;

    function plot() {
      const steps = texts[current].steps;
      const known = steps.filter((step) => step.cosine !== null);
      chart.style.display = known.length ? "" : "none";
      const low = Math.min(0.95, ...known.map((step) => step.cosine));
      const floor = Math.max(-1, Math.floor(low * 20 - 0.2) / 20);
      const last = Math.max(1, steps[steps.length - 1].step), right = width - 12;
      chart.setAttribute("viewBox", `0 0 ${width} 120`);
      across = (step) => left + ((right - left) * step) / last;
      up = (cosine) => bottom - ((bottom - top) * (cosine - floor)) / (1 - floor);
      const path = known.map((step) => `${across(step.step).toFixed(1)},${up(step.cosine).toFixed(1)}`).join(" ");
      dot = draw("circle", { r: 7, fill: "var(--go)", stroke: "var(--bg)", "stroke-width": 2.5 });
      rule = draw("line", { y1: top, y2: bottom, stroke: "var(--go)", "stroke-dasharray": "3 4", opacity: 0.7 });
      chart.replaceChildren(
        draw("line", { x1: left, x2: right, y1: up(1), y2: up(1), stroke: "var(--line)" }),
        draw("line", { x1: left, x2: right, y1: bottom, y2: bottom, stroke: "var(--line)" }),
        draw("text", { x: left - 8, y: up(1) + 4, "text-anchor": "end" }, "1"),
        draw("text", { x: left - 8, y: bottom + 4, "text-anchor": "end" }, floor.toFixed(2)),
        draw("text", { x: left, y: 113 }, "round 0"),
        draw("text", { x: (left + right) / 2, y: 113, "text-anchor": "middle" }, "cosine"),
        draw("text", { x: right, y: 113, "text-anchor": "end" }, `round ${steps[steps.length - 1].step}`),
        draw("polygon", { points: `${left},${bottom} ${path} ${across(steps[steps.length - 1].step)},${bottom}`, fill: "var(--go)", opacity: 0.12 }),
        draw("polyline", { points: path, fill: "none", stroke: "var(--go)", "stroke-width": 2.5, "stroke-linejoin": "round" }),
        rule, dot);
      chart.setAttribute("aria-label", `Cosine with the target by round: from ${digits(steps[0].cosine)} at the first guess ` +
        `to ${digits(steps[steps.length - 1].cosine)} at round ${steps[steps.length - 1].step}.`);
    }

    function mark() {
      const step = texts[current].steps[at], x = across(step.step);
      dot.style.display = step.cosine === null ? "none" : "";
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", up(step.cosine));
      rule.setAttribute("x1", x);
      rule.setAttribute("x2", x);
    }

    function render(index) {
      const { target: words, steps } = texts[current];
      const before = steps[at] ? steps[at].words : [];
      at = Math.max(0, Math.min(steps.length - 1, index));
      const step = steps[at], last = steps[steps.length - 1].step, found = count(step.missing, "r");
      guessName.textContent = step.step === 0 ? "first guess" : `guess after round ${step.step}`;
      guess.replaceChildren(...spaced(step.words.map((text, i) => {
        const element = word(text, step.states[i]);
        if (before.length && before[i] !== text) element.classList.add("tl-fresh");
        return element;
      })));
      target.replaceChildren(...spaced(words.map((text, i) => word(text, step.missing[i], true))));
      stats[0].value.textContent = `${step.step} / ${last}`;
      stats[1].value.textContent = digits(step.cosine);
      stats[2].value.textContent = step.queries.toLocaleString("en");
      stats[3].value.textContent = `${found} / ${words.length}`;
      slider.max = steps.length - 1;
      slider.value = at;
      slider.setAttribute("aria-valuetext", `round ${step.step} of ${last}, cosine ${digits(step.cosine)}`);
      back.disabled = at === 0;
      next.disabled = at === steps.length - 1;
      mark();
      if (timer === null || at === steps.length - 1) {
        spoken.textContent = `Round ${step.step}: ${step.words.join(" ")}. ${found} of ${words.length} words in place.`;
      }
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "▶ Play";
      play.setAttribute("aria-label", "play the rounds");
    }

    function run() {
      const steps = texts[current].steps;
      if (timer !== null) return stop();
      play.textContent = "❚❚ Stop";
      play.setAttribute("aria-label", "stop");
      timer = setInterval(() => {
        if (!app.isConnected || at >= steps.length - 1) return stop();
        let to = at + 1; // rounds that change nothing pass unseen
        while (to < steps.length - 1 && steps[to].words.join(" ") === steps[at].words.join(" ")) to += 1;
        render(to);
        if (at >= steps.length - 1) stop();
      }, 700);
      render(at >= steps.length - 1 ? 0 : at);
    }

    function go(index) {
      stop();
      render(index);
    }

    select.addEventListener("change", () => { current = Number(select.value); at = -1; plot(); go(0); });
    slider.addEventListener("input", () => go(Number(slider.value)));
    back.addEventListener("click", () => go(at - 1));
    next.addEventListener("click", () => go(at + 1));
    play.addEventListener("click", run);
    chart.addEventListener("click", (event) => { // the nearest round to where the curve was touched
      const box = chart.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * width;
      const gaps = texts[current].steps.map((step) => Math.abs(across(step.step) - x));
      go(gaps.indexOf(Math.min(...gaps)));
    });

    app.replaceChildren( // controls above the words: they stay put while the words below them wrap and unwrap
      make("p", { class: "tl-title" }, title),
      make("label", { class: "tl-pick" }, "text", select),
      make("div", { class: "tl-row" }, play, back, slider, next),
      make("dl", { class: "tl-diff" }, guessName, guess, make("dt", {}, "text behind the vector"), target),
      make("div", { class: "tl-stats" }, ...stats.map((stat) => stat.box)),
      chart, legend, spoken);
    at = -1;
    plot();
    stop();
    render(0);
    spoken.textContent = ""; // say nothing before the reader has moved
    new ResizeObserver(() => { // one unit per pixel, so that the labels stay legible on a phone
      const now = Math.round(chart.clientWidth);
      if (now < 100 || now === width) return;
      width = now;
      plot();
      mark();
    }).observe(chart);
  }

  for (const app of document.querySelectorAll(".tl-app:not([data-alive])")) {
    app.dataset.alive = "";
    start(app);
  }
})();
