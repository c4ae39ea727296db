"use strict";
// The live page: reads /v1/live (one event per second) and draws. No library; everything received is put in as text.
const COLOURS = ["--a", "--c", "--d", "--f", "--e"].map((name) => `var(${name})`), CLOUD = "var(--b)";
const SCHEDULE = ["--soft", "--f", "--e", "--d", "--c", "--a", "--b"].map((name) => `var(${name})`);
const $ = (id) => document.getElementById(id);
const state = { stream: hashed(), shown: "", points: [], token: sessionStorage.getItem("token") || "", abort: null, learned: null };

// the name of a stream is percent-encoded after the "#"
function hashed() {
  try { return decodeURIComponent(location.hash.slice(1)); } catch (error) { return location.hash.slice(1); }
}
function el(name, given = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "rect", "g", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(given)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const show = (id, ...children) => $(id).replaceChildren(...children);
const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits }));
const share = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();
const exitName = (e, edge) => (e < edge ? `exit ${e + 1}` : "cloud");
const colour = (e, edge) => (e < edge ? COLOURS[e % COLOURS.length] : CLOUD);

// ---- charts

const H = 150, LEFT = 34, BOTTOM = 18;
function chart(about, low, high, from, to, ticksX, draw, legend, wide) {
  const W = wide ? Math.max(360, Math.min(1100, innerWidth - 70)) : 360;
  const x = (v) => LEFT + ((W - LEFT) * (v - from)) / Math.max(to - from, 1e-9);
  const y = (v) => H - BOTTOM - ((H - BOTTOM - 6) * (v - low)) / Math.max(high - low, 1e-9);
  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": about });
  for (let k = 0; k <= 4; k++) {
    const v = low + ((high - low) * k) / 4;
    svg.append(el("line", { class: "grid", x1: LEFT, x2: W, y1: y(v), y2: y(v) }));
    if (k % 2 === 0) svg.append(el("text", { x: LEFT - 4, y: y(v) + 4, "text-anchor": "end" }, number(v, high > 20 ? 0 : 2)));
  }
  for (const [v, label, anchor] of ticksX) svg.append(el("text", { x: x(v), y: H - 4, "text-anchor": anchor || "middle" }, label));
  draw(svg, x, y);
  const keys = el("div", { class: "legend" });
  for (const [name, stroke] of legend) {
    const mark = el("i");
    mark.style.background = stroke;
    keys.append(el("span", {}, mark, name));
  }
  return [svg, keys];
}
function line(points, x, y) {
  let path = "", pen = false;
  for (const [a, b] of points) {
    if (b === null || b === undefined) { pen = false; continue; }
    path += `${pen ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`;
    pen = true;
  }
  return path;
}
const stroke = (path, ink, more = {}) => el("path", { d: path, fill: "none", stroke: ink, "stroke-width": 2, "stroke-linejoin": "round", ...more });

function overTime(about, columns, high, alarms) {
  const points = state.points;
  if (!points.length) return [el("p", {}, "no frames yet")];
  const to = points[points.length - 1][0], from = Math.min(points[0][0], to - 30);
  const top = high || Math.max(1, ...columns.flatMap(([c]) => points.map((p) => p[c] || 0))) * 1.1;
  const ticks = [[from, `${number(to - from, 0)} s ago`, "start"], [to, "now", "end"]];
  return chart(about, 0, top, from, to, ticks, (svg, x, y) => {
    for (const at of alarms || []) if (at >= from) svg.append(el("line", { class: "alarm", x1: x(at), x2: x(at), y1: 6, y2: H - BOTTOM }));
    for (const [c, , ink] of columns) svg.append(stroke(line(points.map((p) => [p[0], p[c]]), x, y), ink));
  }, columns.map(([, name, ink]) => [name, ink]));
}

function stacked(edge) {
  const points = state.points.filter((p) => p[1]);
  if (!points.length) return [el("p", {}, "no frames yet")];
  const to = points[points.length - 1][0], from = Math.min(points[0][0], to - 30), first = 2 + edge;
  const ticks = [[from, `${number(to - from, 0)} s ago`, "start"], [to, "now", "end"]];
  return chart("Shares of the exits over time", 0, 1, from, to, ticks, (svg, x, y) => {
    for (let e = 0; e <= edge; e++) {
      const sum = (p, n) => p.slice(first, first + n).reduce((a, b) => a + (b || 0), 0);
      const up = points.map((p) => [p[0], sum(p, e + 1)]), down = points.map((p) => [p[0], sum(p, e)]).reverse();
      svg.append(el("path", { d: line([...up, ...down], x, y) + "Z", fill: colour(e, edge), opacity: 0.8 }));
    }
  }, Array.from({ length: edge + 1 }, (_, e) => [exitName(e, edge), colour(e, edge)]));
}

function histogram(stream, edge) {
  const rows = stream.confidence, bins = rows[0].length;
  const shares = rows.map((row) => { const sum = row.reduce((a, b) => a + b, 0); return sum ? row.map((v) => v / sum) : null; });
  const top = Math.max(0.05, ...shares.flatMap((row) => row || [0]));
  return chart("Confidence of the frames that visited each exit", 0, top, 0, 1, [[0, "0"], [0.5, "0.5"], [1, "1", "end"]], (svg, x, y) => {
    shares.forEach((row, e) => {
      if (row) svg.append(stroke(line(row.flatMap((v, k) => [[k / bins, v], [(k + 1) / bins, v]]), x, y), colour(e, edge)));
    });
  }, rows.map((_, e) => [exitName(e, edge), colour(e, edge)]));
}

function curve(learned) {
  if (!learned) return [el("p", {}, "nothing yet")];
  const ticks = [[0, "0"], [0.5, "0.5"], [1, "1", "end"]], c = learned.curve;
  const marks = (svg, x) => learned.exit_at.forEach((at, e) => {
    if (at !== null) svg.append(el("line", { x1: x(at), x2: x(at), y1: 6, y2: H - BOTTOM, stroke: colour(e, learned.exit_at.length), "stroke-dasharray": "3 3" }));
  });
  if (c) {
    const top = Math.max(0.1, ...c.high);
    return [el("p", {}, "Gain of offloading by confidence, ± one standard error; the level line is its price, the upright ones the thresholds."),
      ...chart("Learned gain of offloading by confidence", 0, top, 0, 1, ticks, (svg, x, y) => {
        const band = [...c.confidence.map((v, k) => [v, c.high[k]]), ...c.confidence.map((v, k) => [v, c.low[k]]).reverse()];
        svg.append(el("path", { class: "band", d: line(band, x, y) + "Z", fill: "var(--a)" }));
        svg.append(stroke(line(c.confidence.map((v, k) => [v, c.gain[k]]), x, y), "var(--a)"));
        svg.append(el("line", { x1: LEFT, x2: x(1), y1: y(Math.min(top, learned.overhead)), y2: y(Math.min(top, learned.overhead)), stroke: CLOUD }));
        marks(svg, x);
      }, [["gain", "var(--a)"], ["price", CLOUD]])];
  }
  const a = learned.arms;
  if (!a) return [el("p", {}, `Thresholds ${learned.exit_at.map((v) => number(v)).join(", ")}; this policy learns no curve.`)];
  const means = a.mean.filter((v) => v !== null), low = Math.min(0, ...means), top = Math.max(0.05, ...means);
  return [el("p", {}, "Mean reward of each threshold played."),
    ...chart("Mean reward by threshold", low, top, 0, 1, ticks, (svg, x, y) => {
      svg.append(stroke(line(a.threshold.map((v, k) => [v, a.mean[k]]), x, y), "var(--a)"));
      marks(svg, x);
    }, [["mean reward", "var(--a)"]])];
}

// a played stream: frames along the bottom, the schedule as background, a line of regret per policy with its uncertainty
function regret(played) {
  const kinds = [...new Set(played.pieces.map((p) => p[2]))], tint = (kind) => SCHEDULE[kinds.indexOf(kind) % SCHEDULE.length];
  const lines = Object.entries(played.regret).filter(([, points]) => points.length), ink = (k) => [...COLOURS, CLOUD][k % 6];
  const values = lines.flatMap(([, points]) => points.flatMap((p) => [p[1], p[3]])), total = Math.max(1, played.total);
  const low = Math.min(0, ...values), high = Math.max(low + 1, ...values) * 1.05;
  const ticks = [[0, "frame 0", "start"], [total, number(total), "end"]];
  const now = played.pieces.find((p) => p[0] <= played.frame && played.frame < p[1]) || played.pieces[played.pieces.length - 1];
  const parts = [el("p", {}, `${played.now}: ${number(played.frame)} of ${number(total)} frames${now ? `; now ${now[2]}` : ""}.`)];
  parts.push(...chart("Distortion schedule, and regret by frames", low, high, 0, total, ticks, (svg, x, y) => {
    for (const [start, stop, kind] of played.pieces) {
      const box = el("rect", { x: x(start), width: Math.max(0, x(stop) - x(start)), y: 6, height: H - BOTTOM - 6, fill: tint(kind), opacity: 0.3 });
      box.append(el("title", {}, `${kind}: frames ${number(start)} to ${number(stop - 1)}`));
      svg.append(box);
    }
    lines.forEach(([, points], k) => {
      const band = [...points.map((p) => [p[0], p[3]]), ...points.map((p) => [p[0], p[1]]).reverse()];
      svg.append(el("path", { class: "band", d: line(band, x, y) + "Z", fill: ink(k) }), stroke(line(points.map((p) => [p[0], p[2]]), x, y), ink(k)));
    });
    svg.append(el("line", { x1: x(played.frame), x2: x(played.frame), y1: 6, y2: H - BOTTOM, stroke: "var(--text)" }));
  }, [...lines.map(([name], k) => [`regret of ${name}`, ink(k)]), ...kinds.slice(0, SCHEDULE.length).map((kind) => [kind, tint(kind)])], true));
  const sampled = played.sampled[played.now];
  parts.push(el("p", {}, lines.length ? `Regret: what the best fixed threshold so far would have earned more; estimated from ${number(sampled)} frames of which every exit was run, ± one standard error. The summary at the end has it exactly.` : "No regret yet: it needs frames of which every exit was run."));
  return parts;
}

// ---- the page

const pair = (name, value, bad) => [el("dt", {}, name), el("dd", bad ? { class: "bad" } : {}, value)];
function table(head, rows) {
  const right = (k) => (typeof head[k] === "string" && head[k].startsWith(">") ? { class: "n" } : {});
  const t = el("table"), h = el("tr");
  head.forEach((name, k) => h.append(el("th", { scope: "col", ...right(k) }, name.replace(">", ""))));
  t.append(el("thead", {}, h), el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell, k) => el("td", right(k), cell))))));
  return t;
}

function drawn(given) {
  const edge = given.edge_exits, stream = given.stream, refused = Object.entries(given.refused || {}).map(([k, v]) => `${v} ${k}`).join(", ");
  show("totals", `${number(given.answered)} of ${number(given.frames)} frames answered${refused ? ` (${refused})` : ""}; policy ${given.policy}`);
  const names = given.streams.map((row) => row.stream);
  if ([...$("streams").children].map((b) => b.textContent).join() !== names.join()) {
    show("streams", ...names.map((name) => {
      const button = el("button", { type: "button" }, name);
      button.addEventListener("click", () => { state.stream = name; location.hash = encodeURIComponent(name); connect(); });
      return button;
    }));
  }
  for (const button of $("streams").children) button.setAttribute("aria-pressed", String(stream && button.textContent === stream.name));
  $("cards").hidden = !stream;
  show("all", table(["stream", ">frames", ">answered", ">refused", ">accuracy", ">frames/s", ">alarms"], given.streams.map((row) =>
    [row.stream, number(row.frames), number(row.answered), number(Object.values(row.refused).reduce((a, b) => a + b, 0)), share(row.accuracy), number(row.now ? row.now[1] : 0), number(row.alarms)])));
  const played = given.played;
  $("played").hidden = !played;
  $("set-card").hidden = $("api").hidden = Boolean(played);
  if (played) show("regret", ...regret(played));
  if (!stream) return;
  if (stream.learned) state.learned = stream.learned;
  const exits = Array.from({ length: edge }, (_, e) => [2 + e, exitName(e, edge), colour(e, edge)]), first = 2 + edge + edge + 1;
  show("threshold", ...overTime("Threshold of each exit over time", exits, 1, stream.alarms));
  show("shares", ...stacked(edge));
  show("latency", ...overTime("Latency over time", [[first + 2, "p50", "var(--a)"], [first + 3, "p99", "var(--b)"]], 0));
  show("confidence", ...histogram(stream, edge));
  show("curve", ...curve(state.learned));
  const last = (wanted) => state.points.filter(wanted).slice(-1)[0] || [], latest = last((p) => p[1]), seen = Math.max(1, stream.frames);
  show("figures", ...pair("frames finished", number(stream.frames)), ...pair("offloaded", share(stream.offloaded / seen)),
    ...pair("fallbacks", number(stream.fallbacks), stream.fallbacks > 0), ...pair("sent", `${number(stream.bytes / 1e6)} MB`),
    ...pair("saved against always offloading", stream.saved.bytes === null ? "–" : `${number(stream.saved.bytes / 1e6)} MB, ${number(stream.saved.ms / 1000)} s`),
    ...pair("latency p50, p99", `${number(latest[first + 2])}, ${number(latest[first + 3])} ms`),
    ...pair("accuracy, last second with labels", share(last((p) => p[first + 4] !== null)[first + 4])), ...pair("thresholds", Array.isArray(stream.thresholds) ? "set" : stream.thresholds));
  const link = given.link || {}, workers = link.workers || [];
  show("link", ...(workers.length ? workers.flatMap((w) => [...pair(w.endpoint, w.state, w.state !== "up"), ...pair("round trip", w.round_trip_ms === null ? "–" : `${number(w.round_trip_ms)} ms`), ...pair("breaker", w.breaker, w.breaker !== "closed")]) : pair("worker", given.worker === "none" ? "none" : given.worker)),
    ...["missed_deadlines", "failed", "lost", "refused"].filter((k) => link[k]).flatMap((k) => pair(k.replace("_", " "), number(link[k]), true)));
  show("alarms", stream.alarms.length ? el("p", {}, stream.alarms.map(clock).reverse().join(", ")) : el("p", {}, "none"));
  show("last", table(["frame", "answer", ">confidence", "exit", ">latency, ms", "name"], stream.last.map((a) => {
    const cell = el("span", {}, `${a.frame} `);
    if (a.picture) cell.append(el("img", { src: a.picture, alt: "" }));
    return a.reason ? [cell, el("span", { class: "bad" }, a.reason), "–", "–", "–", a.detail]
      : [cell, a.label, number(a.confidence), a.where === "cloud" ? "cloud" : `exit ${a.exit}${a.fallback ? " (fallback)" : ""}`, number(a.latency_ms, 1), a.name];
  })));
}

function taken(event, given) {
  const name = given.stream ? given.stream.name : "";
  state.stream = (event === "all" && name) || state.stream || name; // settings go to the one that is shown
  if (event === "tick" && name && name !== state.shown) { connect(); return; } // a new one, or another: from its beginning on
  state.shown = name;
  if (event === "all" || !name) { state.points = name ? given.stream.points : []; state.learned = null; }
  else for (const p of given.stream.points) if (!state.points.length || p[0] > state.points[state.points.length - 1][0]) state.points.push(p);
  state.points = state.points.slice(-300);
  said(name || !state.stream ? "live" : `live; there is no stream '${state.stream}' now`, "live");
  if (event === "all" && name && !given.played) settings();
  drawn(given);
}

const headers = () => (state.token ? { Authorization: `Bearer ${state.token}` } : {});
function said(text, kind) { $("state").textContent = text; $("state").dataset.state = kind; }

async function connect() {
  if (state.abort) state.abort.abort();
  const abort = (state.abort = new AbortController());
  while (!abort.signal.aborted) {
    try {
      const response = await fetch(`v1/live?stream=${encodeURIComponent(state.stream)}`, { headers: headers(), signal: abort.signal });
      $("token").hidden = response.status !== 401;
      if (response.status === 401) { said("a token is needed", "lost"); return; }
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
      said("live", "live");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ; ) {
        const { value, done } = await Promise.race([reader.read(), new Promise((_, no) => setTimeout(() => no(new Error("silent")), 15000))]);
        if (done) break;
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const one of events) {
          const kind = /^event: (.*)$/m.exec(one), data = /^data: (.*)$/m.exec(one);
          if (kind && data) taken(kind[1], JSON.parse(data[1]));
          if (abort.signal.aborted) return; // another stream is shown from here on
        }
      }
    } catch (error) {
      if (abort.signal.aborted) return;
    }
    said("the connection is lost; trying again …", "lost");
    await new Promise((then) => setTimeout(then, 1000));
  }
}

async function settings() {
  const name = state.stream, response = await fetch(`v1/settings?stream=${encodeURIComponent(name)}`, { headers: headers() });
  if (!response.ok) return;
  const given = await response.json(), form = $("settings").elements;
  if (name !== state.stream) return; // another one was chosen meanwhile
  if ($("settings").contains(document.activeElement)) return; // somebody types
  for (const key of ["overhead", "budget", "deadline_ms"]) form[key].value = given[key] === null ? "" : given[key];
  form.thresholds.value = given.thresholds === "learning" ? "learning" : "frozen";
  state.thresholds = given.thresholds;
}

$("settings").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target.elements, text = (key) => form[key].value.trim();
  const wanted = { overhead: text("overhead") || null, budget: text("budget") || null, deadline_ms: text("deadline_ms") ? Number(text("deadline_ms")) : null };
  if (!Array.isArray(state.thresholds) || form.thresholds.value === "learning") wanted.thresholds = form.thresholds.value;
  const name = state.stream, response = await fetch(`v1/settings?stream=${encodeURIComponent(name)}`, { method: "PUT", headers: headers(), body: JSON.stringify(wanted) });
  const given = await response.json();
  $("set").textContent = response.ok ? "set" : given.error;
  $("set").className = response.ok ? "" : "bad";
  if (response.ok && name === state.stream) state.thresholds = given.thresholds;
});
$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = event.target.elements.token.value;
  sessionStorage.setItem("token", state.token);
  connect();
});
addEventListener("hashchange", () => { if (hashed() !== state.stream) { state.stream = hashed(); connect(); } });
connect();
