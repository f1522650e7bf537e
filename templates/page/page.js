// What moves on the review page: tables, figures, the browser of latents. Text of others goes through textContent alone.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const SVG = "http://www.w3.org/2000/svg";

  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  function drawn(tag, attributes, text) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }
  const percent = (value) => (value >= 0.0001 ? `${(100 * value).toFixed(value < 0.01 ? 2 : 1)}%` : "<0.01%");
  const fixed = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
  const short = (value) => (value === null || value === undefined ? "–" : String(+Number(value).toPrecision(3)));

  // Tables: sorted by a column's button, filtered by a word and an outcome.
  function sortKey(cell) {
    const text = cell.textContent.trim(), number = parseFloat(text.replaceAll(",", ""));
    return text === "" || text === "-" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  }
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
      all("thead th", table).forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map((row) => [sortKey(row.cells[column]), row]);
      keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : compare(a, b) * (down ? -1 : 1)));
      body.append(...keyed.map(([, row]) => row));
    }));
  }
  for (const form of all("form.filters[data-table]")) {
    const rows = all(`#${form.dataset.table} tbody tr`), [search, outcome] = form.elements;
    const filter = () => {
      const word = search.value.trim().toLowerCase();
      for (const row of rows) {
        const other = outcome.value && row.dataset.outcome !== outcome.value;
        row.hidden = Boolean(other) || !row.textContent.toLowerCase().includes(word);
      }
      form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs`;
    };
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    filter();
  }

  // Figures: the measured point closest to the pointer, in words; the same run stands out in the whole figure.
  const tip = document.getElementById("tip"), vertices = new WeakMap();
  function pointsOf(mark) {
    if (!vertices.has(mark)) {
      const path = mark.querySelector(":scope > path"), use = mark.querySelector("use");
      const numbers = (path ? path.getAttribute("d") : `${use.getAttribute("x")} ${use.getAttribute("y")}`)
        .match(/-?[\d.]+(?:e-?\d+)?/g).map(Number);
      const points = [];
      for (let i = 0; i + 1 < numbers.length; i += 2) points.push([numbers[i], numbers[i + 1]]);
      vertices.set(mark, points);
    }
    return vertices.get(mark);
  }
  function valueAt(axis, place) {
    const [low, high, start, end] = axis.split(" ", 4).map(Number), share = (place - start) / (end - start);
    return axis.endsWith("log") ? low * (high / low) ** share : low + share * (high - low);
  }
  function inside(panel, x, y) {
    const [, , left, right] = panel.dataset.x.split(" ").map(Number), [, , bottom, top] = panel.dataset.y.split(" ").map(Number);
    return x >= left - 6 && x <= right + 6 && y >= top - 6 && y <= bottom + 6;
  }
  function closest(svg, x, y) {
    let best = null;
    for (const panel of all(".panel", svg).filter((each) => inside(each, x, y)))
      for (const mark of all(".mark", panel))
        for (const point of pointsOf(mark)) {
          const distance = Math.hypot(point[0] - x, point[1] - y);
          if (distance < 16 && (!best || distance <= best.distance)) best = { distance, mark, point, panel };
        }
    return best;
  }
  function inWords({ mark, point, panel }) {
    if (mark.dataset.hover) return mark.dataset.hover;
    const { x, y, xTitle, yTitle } = panel.dataset;
    return `${mark.dataset.name}\n${xTitle} ${short(valueAt(x, point[0]))}, ${yTitle} ${short(valueAt(y, point[1]))}`;
  }
  function clear(svg) {
    tip.hidden = true;
    svg.classList.remove("picking");
    all(".lit", svg).forEach((mark) => mark.classList.remove("lit"));
  }
  for (const svg of all("svg.figure")) {
    let found = null;
    svg.addEventListener("pointermove", (event) => {
      const matrix = svg.getScreenCTM();
      if (!matrix) return;
      const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
      clear(svg);
      if (!(found = closest(svg, x, y))) return;
      svg.classList.add("picking");
      all(`[data-run="${found.mark.dataset.run}"]`, svg).forEach((mark) => mark.classList.add("lit"));
      tip.textContent = inWords(found);
      tip.hidden = false;
      tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18}px`;
    });
    svg.addEventListener("pointerleave", () => clear(svg));
    if (!svg.classList.contains("curves"))
      svg.addEventListener("click", () => {
        const study = svg.closest("[data-study]");
        if (found && study) location.hash = `${study.dataset.study}run-${found.mark.dataset.run}`;
      });
  }

  for (const attempt of all("details.attempt")) // what a log ends with says why
    attempt.addEventListener("toggle", () => all("pre.log", attempt).forEach((log) => (log.scrollTop = log.scrollHeight)));

  // A link into something folded unfolds it.
  function reveal(node) {
    for (let each = node; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  }
  function settle(target) { // what was out of sight takes its real height only once it is scrolled past
    target.scrollIntoView();
    requestAnimationFrame(() => requestAnimationFrame(() => target.scrollIntoView()));
  }

  // The browser of latents.
  const data = JSON.parse(document.getElementById("features-data").textContent);
  const form = document.getElementById("features-form");
  const browser = data && form ? makeBrowser(data, form) : null;

  function makeBrowser({ runs, vocabulary, matches, few, same }, form) {
    const { run: runBox, beside, token, label, show, sort } = form.elements;
    const output = form.querySelector("output"), body = document.querySelector("#latents tbody");
    const head = document.querySelector("#latents thead"), more = document.getElementById("more");
    const panel = document.getElementById("latent"), about = document.getElementById("features-about");
    const places = runs.map((run) => new Map(run.latents.map((latent, place) => [latent.latent, place])));
    const lower = vocabulary.map((text) => text.toLowerCase());
    let shown = 100, current = null;
    form.hidden = false;

    const options = (box, pairs) => box.replaceChildren(...pairs.map(([value, text]) => {
      const option = el("option", { value });
      option.textContent = text;
      return option;
    }));
    options(runBox, runs.map((run, number) => [number, run.name]));
    options(show, [["all", "all latents"], ["named", "named by the idea"], ["new", "without counterpart in the baseline"],
      ["lost", "without counterpart beside"], ["few", `fired fewer than ${few} times`]]);
    options(sort, [["named", "named by the idea first"], ["density", "density"], ["max", "max activation"],
      ["beside", "cosine to its counterpart"], ["latent", "number"]]);

    const chosen = () => runs[runBox.value];
    const match = (place, other = beside.value, from = runBox.value) => {
      const pairs = other === "" ? null : matches[`${from},${other}`];
      return pairs ? { latent: runs[other].latents[pairs[0][place]] ?? null, cosine: pairs[1][place] / 100 } : null;
    };
    const contexts = (latent) => [...(latent.top || []), ...(latent.spread || [])];
    const plain = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
    function fillBeside() {
      const before = beside.value, from = runBox.value;
      const others = runs.map((run, number) => [String(number), run.name]).filter(([number]) => matches[`${from},${number}`]);
      options(beside, [["", "no other run"], ...others]);
      if (others.some(([number]) => number === before)) beside.value = before;
    }
    function peakToken(latent) {
      const context = (latent.top || [])[0];
      return context ? plain(vocabulary[context[1][context[0]]] ?? "") : "";
    }
    function isActiveOn(latent, wanted) {
      return contexts(latent).some(([, tokens, places]) => places.some((place) => wanted.has(tokens[place])));
    }
    function cosineOf(latent, place) {
      if (beside.value !== "") return match(place)?.cosine ?? null;
      return latent.in_baseline ? latent.in_baseline[1] : null;
    }
    const keep = {
      all: () => true,
      named: ([latent]) => (latent.labels || []).length > 0,
      new: ([latent]) => latent.in_baseline && latent.in_baseline[1] < same,
      lost: ([, place]) => (match(place)?.cosine ?? 1) < same,
      few: ([latent]) => latent.fired < few,
    };
    const order = {
      named: ([a], [b]) => ((b.labels || []).length > 0) - ((a.labels || []).length > 0) || a.latent - b.latent,
      density: ([a], [b]) => b.density - a.density,
      max: ([a], [b]) => (b.max ?? 0) - (a.max ?? 0),
      beside: (a, b) => (cosineOf(...a) ?? 2) - (cosineOf(...b) ?? 2),
      latent: ([a], [b]) => a.latent - b.latent,
    };
    function selected() {
      const word = token.value.trim().toLowerCase(), name = label.value.trim().toLowerCase();
      const wanted = new Set(lower.flatMap((text, number) => (word && text.includes(word) ? [number] : [])));
      return chosen().latents.map((latent, place) => [latent, place])
        .filter((each) => keep[show.value](each))
        .filter(([latent]) => !word || isActiveOn(latent, wanted))
        .filter(([latent]) => !name || String(latent.latent) === name || (latent.labels || []).some((l) => l.toLowerCase().includes(name)))
        .sort(order[sort.value]);
    }
    const anchor = (run, latent) => `#${run.anchor}-latent-${latent.latent}`;

    function list() {
      const rows = selected(), run = chosen(), counterpart = beside.value === "" ? "baseline" : "beside";
      const titles = ["latent", "responds to", "density", "max", counterpart];
      head.replaceChildren(el("tr", {}, ...titles.map((title) => el("th", { scope: "col" }, title))));
      body.replaceChildren(...rows.slice(0, shown).map(([latent, place]) => {
        const hint = el("span", { class: "hint" }), peak = el("code"), named = el("span");
        peak.textContent = peakToken(latent).trim() || "␣";
        named.textContent = (latent.labels || [])[0] ?? "";
        hint.append(peak, " ", named);
        const link = el("a", { href: anchor(run, latent) }, String(latent.latent));
        return el("tr", { "aria-current": latent === current ? "true" : undefined }, el("td", {}, link), el("td", {}, hint),
          el("td", {}, percent(latent.density)), el("td", {}, short(latent.max)), el("td", {}, fixed(cosineOf(latent, place))));
      }));
      more.hidden = rows.length <= shown;
      output.textContent = `${rows.length} of ${run.latents.length} latents`;
    }
    function describeRun() {
      const run = chosen(), sampled = run.latents.filter((latent) => latent.sampled).length;
      const lines = [`${run.latents.length} of ${run.d_sae.toLocaleString("en")} latents were kept, ${sampled} of them a random sample; ` +
        `${run.alive.toLocaleString("en")} fired at least once. They were looked at on ${run.text}.`,
        ...(run.turnover || []), ...(run.direct_effect ? [`Promoted tokens are left out: ${run.direct_effect}.`] : [])];
      document.querySelector(".browser").classList.toggle("pairwise", beside.value !== "");
      about.replaceChildren(...lines.map((line) => {
        const note = el("p", { class: "note" });
        note.textContent = line;
        return note;
      }));
    }

    function contextLine([peak, tokens, active, values], most) {
      const byPlace = new Map(active.map((place, i) => [place, values[i]])), text = el("p");
      tokens.forEach((number, place) => {
        const value = byPlace.get(place), word = plain(vocabulary[number] ?? "");
        if (value === undefined) return text.append(word);
        const level = Math.max(1, Math.min(5, Math.ceil((5 * value) / (most || 1))));
        const mark = el("mark", { class: `a${level}${place === peak ? " peak" : ""}`, title: `activation ${short(value)}` });
        mark.textContent = word || "□";
        text.append(mark);
      });
      return el("div", { class: "context" }, el("span", { class: "peak-value" }, short(byPlace.get(peak) ?? Math.max(0, ...values))), text);
    }
    function histogram(counts, most) {
      const svg = drawn("svg", { viewBox: "0 0 200 56", class: "histogram", role: "img", "aria-label": "Histogram of activations, logarithmic counts" });
      const high = Math.log1p(Math.max(...counts, 1)), width = 200 / counts.length;
      counts.forEach((count, bin) => {
        const height = (40 * Math.log1p(count)) / high;
        const bar = drawn("rect", { x: bin * width + 0.5, y: 42 - height, width: Math.max(0.5, width - 1), height });
        bar.append(drawn("title", {}, `${short((bin * most) / counts.length)} to ${short(((bin + 1) * most) / counts.length)}: ${count} tokens`));
        svg.append(bar);
      });
      svg.append(drawn("text", { x: 0, y: 54 }, "0"), drawn("text", { x: 200, y: 54, "text-anchor": "end" }, short(most)));
      return svg;
    }
    function tokenList(pairs) {
      return el("ol", { class: "tokens" }, ...pairs.map(([number, value]) => {
        const code = el("code");
        code.textContent = plain(vocabulary[number] ?? "");
        return el("li", {}, code, el("span", {}, short(value)));
      }));
    }
    function linked(runNumber, pairs) {
      return el("ul", { class: "tokens" }, ...pairs.map(([number, value]) => {
        const place = places[runNumber].get(number), kept = place === undefined ? null : runs[runNumber].latents[place];
        const name = kept ? el("a", { href: anchor(runs[runNumber], kept) }, `latent ${number}`) : el("span", { title: "not kept" }, `latent ${number}`);
        return el("li", {}, name, el("span", {}, value === undefined ? "" : short(value)));
      }));
    }
    const titled = (title, node) => (node ? el("div", {}, el("h4", {}, title), node) : null);
    const some = (items, make) => (items && items.length ? make(items) : null);

    function truth(latent) {
      if (!latent.true) return null;
      const { feature, cosine, f1, parents } = latent.true;
      const line = el("p");
      line.textContent = `true feature ${feature}, cosine ${short(cosine)}, F1 ${short(f1)}` +
        (parents.length ? `, below ${parents.join(", ")}` : "");
      return line;
    }
    function closestInBaseline(runNumber, [number, cosine]) {
      const other = runs.findIndex((run) => run.anchor === runs[runNumber].baseline), link = other >= 0 && places[other].has(number);
      const name = link ? el("a", { href: `#${runs[other].anchor}-latent-${number}` }, `latent ${number}`) : `latent ${number}`;
      return el("div", {}, el("span", {}, "closest in the baseline "), name, `, cosine ${fixed(cosine)}`);
    }
    function portrait(runNumber, latent, remark) {
      const run = runs[runNumber], node = el("article", { "aria-label": `latent ${latent.latent} of ${run.name}` });
      const title = el("h3");
      title.textContent = `Latent ${latent.latent}`;
      const of = el("p", { class: "eyebrow" });
      of.textContent = run.name;
      const labels = (latent.labels || []).map((text) => {
        const tag = el("span", { class: "label" });
        tag.textContent = text;
        return tag;
      });
      const facts = [["fired", `${latent.fired.toLocaleString("en")} times`], ["density", percent(latent.density)], ["max", short(latent.max)]];
      node.append(title, of, ...(remark ? [el("p", { class: "note" }, remark)] : []), el("div", {}, ...labels),
        el("div", { class: "facts" }, ...facts.map(([name, value]) => el("div", {}, el("span", {}, `${name} `), value)),
          latent.in_baseline ? closestInBaseline(runNumber, latent.in_baseline) : null));
      if (latent.fired < few) node.append(el("p", { class: "few" }, `Fired fewer than ${few} times: too little to say what it responds to.`));
      const parts = [
        titled("Strongest contexts", some(latent.top, (top) => el("div", {}, ...top.map((each) => contextLine(each, latent.max))))),
        titled("Weaker contexts", some(latent.spread, (spread) => el("div", {}, ...spread.map((each) => contextLine(each, latent.max))))),
        titled("Activations where it fires (log counts)", some(latent.histogram, (counts) => histogram(counts, latent.max))),
        titled("True feature", truth(latent)),
        el("div", { class: "pairs" }, ...[
          titled("Promoted tokens", some(latent.promoted, tokenList)),
          titled("Suppressed tokens", some(latent.suppressed, tokenList)),
          titled("Closest decoder rows (cosine)", some(latent.near, (near) => linked(runNumber, near))),
          titled("Fires with (correlation)", some(latent.fires_with, (with_) => linked(runNumber, with_))),
          titled("Related by the idea", some(latent.related, (related) => linked(runNumber, related.map((number) => [number])))),
        ].filter(Boolean)),
      ];
      node.append(...parts.filter(Boolean));
      return node;
    }
    function open(runNumber, number) {
      const place = places[runNumber].get(number);
      if (String(runNumber) !== runBox.value) choose(runNumber);
      panel.id = `${runs[runNumber].anchor}-latent-${number}`;
      if (place === undefined) {
        current = null;
        panel.replaceChildren(el("p", { class: "note" }, `Latent ${number} of this run was not kept.`));
      } else {
        current = runs[runNumber].latents[place];
        const other = match(place), pages = [portrait(runNumber, current)];
        if (other && !other.latent) {
          const text = `The closest latent of that run, ${current.in_baseline[0]} with cosine ${short(other.cosine)}, was not kept.`;
          pages.push(el("p", { class: "note" }, text));
        } else if (other) {
          const is = other.cosine >= same ? "The closest latent kept of this run" : `No counterpart (no kept latent has a cosine of ${same}); the closest`;
          pages.push(portrait(Number(beside.value), other.latent, `${is}, cosine ${short(other.cosine)}.`));
        }
        panel.replaceChildren(el("div", { class: pages.length > 1 ? "beside" : "" }, ...pages));
      }
      list();
      settle(document.getElementById("features"));
      panel.focus({ preventScroll: true });
    }
    function choose(number) {
      runBox.value = String(number);
      shown = 100;
      fillBeside();
      describeRun();
    }
    form.addEventListener("input", (event) => {
      shown = 100;
      if (event.target === runBox) { choose(runBox.value); current = null; panel.replaceChildren(); }
      if (event.target === beside) describeRun();
      if (event.target === beside && current) return open(Number(runBox.value), current.latent);
      list();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => { shown += 200; list(); });
    choose(0);
    list();
    return {
      follow(hash) {
        const found = /^(.*run-\d+)-(?:latent-(\d+)|features)$/.exec(hash);
        const number = found ? runs.findIndex((run) => run.anchor === found[1]) : -1;
        if (number < 0) return false;
        if (found[2] !== undefined) open(number, Number(found[2]));
        else { choose(number); current = null; panel.replaceChildren(); list(); settle(document.getElementById("features")); }
        return true;
      },
    };
  }

  function follow() {
    const hash = location.hash.slice(1);
    if (!hash || browser?.follow(hash)) return;
    const target = document.getElementById(hash);
    if (target) { reveal(target); settle(target); }
  }
  addEventListener("hashchange", follow);
  follow();

  // Served while a study runs: load again when it has gone on, or offer to where that would lose what was typed.
  const version = document.documentElement.dataset.live;
  if (version) {
    const timer = setInterval(async () => {
      let now;
      try { now = await (await fetch("version", { cache: "no-store" })).text(); } catch { return; }
      if (now === version) return;
      const busy = all("input").some((input) => input.value) || document.activeElement?.tagName === "SELECT";
      if (!busy) { clearInterval(timer); return location.reload(); }
      if (document.getElementById("reload")) return;
      const button = el("button", { type: "button", id: "reload" }, "The study has gone on: load again");
      button.addEventListener("click", () => location.reload());
      document.body.append(button);
    }, 1500);
  }
})();
