// The figures. Each draws itself into its holder, again whenever what is picked, the theme or the width changes.

const TITLES = {
  "eval/win_rate": "share of prompts won",
  "glassbox/true_win_rate": "share of prompts won",
  "rewards/accuracies": "share of pairs ranked right",
};
const NEUTRAL = { "eval/win_rate": [0.5, "as good as the reference"], "glassbox/true_win_rate": [0.5, "as good as the start"], "rewards/accuracies": [0.5, "chance"] };
const ORDER = POINTS.map((_, k) => k);
const shownPoints = () => ORDER.filter((k) => isOn(POINTS[k]));
const SHARE = new Set(["eval/win_rate", "glassbox/true_win_rate", "rewards/accuracies", "ranking/accuracy"]);

/** The x axis over the swept value, and where each point stands on it; series stand side by side. */
function valueAxis() {
  const numeric = AXIS.kind === "alpha";
  const places = new Map(XS.map((x, i) => [x, numeric ? x : i]));
  const at = [...places.values()];
  const gap = at.length > 1 ? Math.min(...at.slice().sort((a, b) => a - b).map((v, i, s) => (i ? v - s[i - 1] : Infinity))) : 1;
  const [low, high] = [Math.min(...at), Math.max(...at)];
  const aside = (k) => (SERIES.length > 1 ? 0.5 * gap * (SERIES.indexOf(POINTS[k].series) / (SERIES.length - 1) - 0.5) : 0);
  const axis = numeric
    ? { low: low - gap * 0.6, high: high + gap * 0.6, title: AXIS.name }
    : { low: -0.6, high: at.length - 0.4, title: AXIS.name, labels: XS.map(named) };
  return { axis, place: (k) => places.get(POINTS[k].x) + aside(k), joined: AXIS.kind !== "category" };
}

function zeroRule(frame) {
  if (AXIS.kind === "alpha") frame.rule("x", 0, DATA.zero ? `α = 0: ${DATA.zero}` : "");
}

/** A linear axis, or a logarithmic one where positive values span more than a factor of twenty. */
function scaleOf(values, around = []) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low > 0 && high > 20 * low) return { low: low / 1.4, high: high * 1.4, log: true };
  const [from, to] = extent(values, around);
  return { low: from, high: to };
}

/** A value at the end of training against the swept value. `pick(k)` gives {mean, low, high, values, done, rows}. */
function overValues(holder, { pick, title, around = [], neutral, label, log = false, band = false }) {
  const { axis, place, joined } = valueAxis();
  const found = ORDER.map((k) => [k, pick(k)]).filter(([, v]) => v);
  const on = found.filter(([k]) => isOn(POINTS[k]));
  if (!found.length) return empty(holder);
  const [low, high] = extent((on.length ? on : found).flatMap(([, v]) => [v.low, v.high, v.mean]), around);
  const frame = new Frame(holder, { x: axis, y: { low, high, title, log }, label });
  zeroRule(frame);
  if (neutral) frame.rule("y", ...neutral);
  if (joined) {
    for (const series of SERIES) {
      const mine = on.filter(([k, v]) => POINTS[k].series === series && v.done).sort((a, b) => place(a[0]) - place(b[0]));
      if (band) frame.area(mine.map(([k, v]) => [place(k), v.low, v.high]), "band", "var(--soft)");
      if (mine.length) frame.line(mine.map(([k, v]) => [place(k), v.mean]), mine[0][0], { thin: true, colour: "var(--soft)" });
    }
  }
  for (const [k, v] of found) {
    const off = !isOn(POINTS[k]);
    if (v.high > v.low) frame.bar(place(k), v.low, v.high, k, { off });
    if (!off && (state.seeds || band)) v.values.forEach((one) => v.values.length > 1 && frame.dot(place(k), one, k, { small: true, hollow: true }));
    frame.dot(place(k), v.mean, k, { hollow: !v.done || v.hollow, off });
    if (!off) frame.hit(place(k), v.mean, k, v.rows);
  }
  return frame;
}

const range = (v) => (v.high > v.low ? `${written(v.low)} to ${written(v.high)}` : "");
const finished = (v) => (v.done ? [] : [["", "not finished"]]);

function outcomeFigure(holder) {
  const key = DATA.outcome || "glassbox/true_win_rate";
  const frame = overValues(holder, {
    title: TITLES[key] || key, neutral: NEUTRAL[key], band: true, label: `Outcome against ${AXIS.name}`,
    pick: (k) => {
      const end = ending(k, key), own = POINTS[k].mean;
      if (!end) return null;
      const [low, high] = own ? [own[1], own[2]] : [end.mean, end.mean];
      const rows = [[TITLES[key] || key, written(end.mean)], [`95 % interval over ${POINTS[k].over || "prompts"}`, own ? range({ low, high }) : "–"], ["seeds", String(end.values.length)]];
      return { ...end, low, high, rows: [...rows, ...finished(end)] };
    },
  });
  if (frame && DATA.marked && known(DATA.best) && isOn(POINTS[DATA.best])) {
    const { place } = valueAxis(), end = ending(DATA.best, key);
    svgNode("circle", { class: "best", cx: frame.px(place(DATA.best)), cy: frame.py(end.mean), r: 8.5, "data-p": DATA.best }, frame.marks);
  }
}

function advantageFigure(holder) {
  overValues(holder, {
    title: `${TITLES[DATA.outcome] || "outcome"}, minus that at alpha = 0`, around: [0], neutral: [0, ""], label: "Advantage over alpha = 0",
    pick: (k) => {
      const gain = POINTS[k].gain;
      if (!gain && POINTS[k].alpha === 0) return { mean: 0, low: 0, high: 0, values: [], done: true, rows: [["", "what the others are compared with"]] };
      if (!gain) return null;
      const { verdict, gain_over: over } = POINTS[k], sure = verdict === "distinguishable";
      const rows = [["advantage", signed(gain[0])], [`95 % interval over ${over}`, range({ low: gain[1], high: gain[2] })], ["", verdict]];
      return { mean: gain[0], low: gain[1], high: gain[2], values: [], done: true, hollow: !sure, rows };
    },
  });
}

function endingFigure(holder, key, { title, around = [0], neutral }) {
  overValues(holder, {
    title, around, neutral, label: `${key} against ${AXIS.name}`,
    pick: (k) => {
      const end = ending(k, key);
      return end && { ...end, rows: [[title, written(end.mean)], ...(end.high > end.low ? [["seeds", range(end)]] : []), ...finished(end)] };
    },
  });
}

/** Size of the mean gradient of both sides: filled at the end of training, hollow at step 0, on one logarithmic axis. */
function gradientFigure(holder) {
  const { axis, place, joined } = valueAxis();
  const sides = [["chosen", "var(--chosen)", -1], ["rejected", "var(--rejected)", 1]];
  const size = (cells, part, side) => {
    const values = cells.map((c) => c[part][`gradient_weight/${side}`]).filter(known).map(Math.abs);
    return values.length ? mean(values) : null;
  };
  const found = ORDER.flatMap((k) => {
    const cells = complete(k).length ? complete(k) : cellsOf[k];
    return sides.map(([side, colour, aside]) => ({ k, side, colour, aside, start: size(cells, "start", side), end: size(cells, "final", side) }));
  }).filter((v) => v.start || v.end);
  if (!found.length) return empty(holder);
  const on = found.filter((v) => isOn(POINTS[v.k]));
  const y = scaleOf((on.length ? on : found).flatMap((v) => [v.start, v.end]).filter((v) => v > 0), [0]);
  const frame = new Frame(holder, { x: axis, y: { ...y, title: "size of the mean dL/ds" + (y.log ? ", logarithmic" : "") }, label: `Gradient weight against ${AXIS.name}` });
  zeroRule(frame);
  const gap = (axis.high - axis.low) / frame.width * 4; // four pixels aside
  for (const [side, colour] of sides) {
    for (const series of joined ? SERIES : []) {
      const mine = on.filter((v) => v.side === side && v.end && POINTS[v.k].series === series).sort((a, b) => place(a.k) - place(b.k));
      if (mine.length) frame.line(mine.map((v) => [place(v.k) + v.aside * gap, v.end]), mine[0].k, { thin: true, colour });
    }
  }
  for (const v of found) {
    const at = place(v.k) + v.aside * gap, off = !isOn(POINTS[v.k]);
    if (known(v.start)) frame.dot(at, v.start, v.k, { colour: v.colour, hollow: true, small: true, off });
    if (known(v.end)) frame.dot(at, v.end, v.k, { colour: v.colour, off });
    if (!off) frame.hit(at, v.end ?? v.start, v.k, [["side", v.side], ["step 0", written(v.start)], ["end", written(v.end)]]);
  }
}

/** One metric against steps: thick means, a band over seeds, thin seeds, a cross where a cell failed. */
function curvesFigure(holder, key, { title, around = [], neutral, shared = [key] } = {}) {
  const has = ORDER.filter((k) => cellsOf[k].some((c) => c.curves[key]));
  if (!has.length) return empty(holder);
  const on = has.filter((k) => isOn(POINTS[k]));
  const drawn = on.length ? on : has;
  const values = drawn.flatMap((k) => shared.flatMap((s) => cellsOf[k].flatMap((c) => curveOf(c, s).map(([, v]) => v))));
  const last = Math.max(...has.flatMap((k) => cellsOf[k].flatMap((c) => curveOf(c, key).map(([step]) => step))), 1);
  const [low, high] = extent(values, around);
  const frame = new Frame(holder, { x: { low: 0, high: last, title: "optimizer step", integer: true }, y: { low, high, title }, label: `${key} against steps` });
  if (neutral) frame.rule("y", ...neutral);
  const curves = new Map(has.map((k) => [k, meanCurve(k, key)]));
  const path = (k) => curves.get(k).map((p) => [p.step, p.mean]);
  for (const k of has) if (!isOn(POINTS[k])) frame.line(path(k), k, { off: true });
  const crowd = on.length > 6 ? "crowd" : "";
  for (const k of on) frame.area(curves.get(k).filter((p) => p.high > p.low).map((p) => [p.step, p.low, p.high]), k, colourOf(k), crowd);
  for (const k of on) {
    if (state.seeds) cellsOf[k].forEach((c) => frame.line(curveOf(c, key), k, { thin: true }));
    for (const c of cellsOf[k].filter((one) => one.state === "failed")) {
      const curve = curveOf(c, key);
      frame.line(curve, k, { thin: true });
      if (curve.length) frame.cross(...curve.at(-1), k);
      if (curve.length) frame.hit(...curve.at(-1), k, [["failed at step", written(curve.at(-1)[0])]]);
    }
    frame.line(path(k), k);
    if (path(k).length === 1) frame.dot(...path(k)[0], k);
    for (const p of curves.get(k)) frame.hit(p.step, p.mean, k, [["step", written(p.step)], [key, written(p.mean)], ...(p.high > p.low ? [["seeds", range(p)]] : [])]);
  }
}

/** The band of a metric, from the metrics `<key>/<end>` of its lower and upper end: [step, low, high]. */
function bandOf(k, key, ends) {
  if (ends.length !== 2) return [];
  const [low, high] = ends.map((end) => new Map(meanCurve(k, `${key}/${end}`).map((p) => [p.step, p.mean])));
  return [...low.keys()].filter((step) => high.has(step)).map((step) => [step, low.get(step), high.get(step)]);
}

/** Curves of runs over their steps. One run: each of the metrics in its own colour; several: one metric, a colour each. */
function stepsFigure(holder) {
  const keys = holder.dataset.keys.split(" "), ends = holder.dataset.band.split(" ").filter(Boolean);
  const beside = holder.dataset.shared.split(" ").filter(Boolean);
  const side = (key) => (keys.length > 1 ? `var(--${key.split("/").at(-1)})` : undefined);
  const size = keys[0].startsWith("gradient_weight/") ? Math.abs : (v) => v;
  // A run is a cell of its own; one that failed is drawn as far as it came.
  const placesOf = (k, key) => cellsOf[k].flatMap((cell) => curveOf(cell, key)).map(([step, value]) => [step, size(value)]);
  const drawn = ORDER.flatMap((k) => keys.map((key) => ({ k, key, places: placesOf(k, key), band: bandOf(k, key, ends) }))).filter((c) => c.places.length);
  if (!drawn.length) return empty(holder);
  const on = drawn.filter((c) => isOn(POINTS[c.k])), seen = on.length ? on : drawn;
  const neutral = NEUTRAL[keys[0]] || (keys[0].startsWith("displacement/") && !keys[0].includes("share") ? [0, ""] : undefined);
  const share = SHARE.has(keys[0]) || keys[0].includes("share_");
  const [low, high] = share ? [-0.02, 1.02] : extent(seen.flatMap((c) => [...c.places.map((p) => p[1]), ...c.band.flatMap((b) => [b[1], b[2]]), ...beside.flatMap((key) => placesOf(c.k, key).map((p) => p[1]))]), neutral ? [neutral[0]] : keys[0].startsWith("gradient_weight/") ? [0] : []);
  const last = Math.max(...drawn.flatMap((c) => c.places.map((p) => p[0])), 1);
  const frame = new Frame(holder, { x: { low: 0, high: last, title: "optimizer step", integer: true }, y: { low, high, title: holder.dataset.unit }, label: `${keys.join(" and ")} against steps` });
  if (neutral) frame.rule("y", ...neutral);
  const best = keys[0] === "ranking/accuracy" && POINTS.length === 1 ? ending(0, "ranking/idealised_accuracy") : null;
  if (best) frame.rule("y", best.mean, "DPO's optimum");
  for (const mark of DATA.marks || []) frame.rule("x", mark.step, keys[0] === "glassbox/true_win_rate" ? mark.word : "");
  for (const c of drawn) if (!isOn(POINTS[c.k])) frame.line(c.places, c.k, { off: true });
  const crowd = on.length > 3 ? "crowd" : "";
  for (const c of on) frame.area(c.band, c.k, side(c.key) || colourOf(c.k), crowd);
  for (const c of on) {
    const colour = side(c.key) || colourOf(c.k), dash = c.key === keys[0] ? undefined : "7 4";
    frame.line(c.places, c.k, { colour, dash });
    if (c.places.length === 1) frame.dot(...c.places[0], c.k, { colour });
    if (cellsOf[c.k].some((cell) => cell.state === "failed")) frame.cross(...c.places.at(-1), c.k);
    const within = new Map(c.band.map(([step, from, to]) => [step, `${written(from)} to ${written(to)}`]));
    const what = ends.includes("low") ? "95 % interval over prompts" : "10 to 90 % of pairs";
    for (const [step, value] of c.places) frame.hit(step, value, c.k, [["step", written(step)], [c.key, written(value)], ...(within.has(step) ? [[what, within.get(step)]] : [])]);
  }
}

/** The path of each point through (x metric, y metric), from a common start (open) to its end (dot). */
function pathsFigure(holder, xKey, yKey, { xTitle, yTitle, neutral, given }) {
  const path = (k) => {
    if (given) return (given.paths[k] || []).map(([step, x, y]) => [x, y, step]);
    const xs = new Map(meanCurve(k, xKey).map((p) => [p.step, p.mean]));
    return meanCurve(k, yKey).filter((p) => xs.has(p.step)).map((p) => [xs.get(p.step), p.mean, p.step]);
  };
  const paths = new Map(ORDER.map((k) => [k, path(k)]).filter(([, p]) => p.length));
  if (!paths.size) return empty(holder);
  const on = [...paths.keys()].filter((k) => isOn(POINTS[k]));
  const places = (on.length ? on : [...paths.keys()]).flatMap((k) => paths.get(k));
  const [xLow, xHigh] = extent(places.map((p) => p[0]), [0]);
  const y = scaleOf(places.map((p) => p[1]));
  const frame = new Frame(holder, { x: { low: xLow, high: xHigh, title: xTitle }, y: { ...y, title: yTitle + (y.log ? ", logarithmic" : "") }, label: `${yKey} against ${xKey}` });
  frame.rule("x", 0);
  if (neutral) frame.rule("y", ...neutral);
  for (const [k, p] of paths) {
    const off = !isOn(POINTS[k]);
    frame.line(p, k, { off });
    if (off) continue;
    frame.dot(p[0][0], p[0][1], k, { hollow: true, small: true });
    frame.dot(p.at(-1)[0], p.at(-1)[1], k);
    for (const [x, y, step] of p) frame.hit(x, y, k, [["step", written(step)], [xTitle, written(x)], [yTitle, written(y)]]);
  }
  if (given) frontLine(frame, given.front.map((k) => paths.get(k).at(-1)), xHigh);
}

/** The stepped line over the ends that no other beats in both. */
function frontLine(frame, ends, right) {
  if (!ends.length) return;
  const steps = ends.map(([x, y], i) => `${i ? `H${frame.px(x).toFixed(1)}V` : `M${frame.px(x).toFixed(1)} `}${frame.py(y).toFixed(1)}`).join("");
  svgNode("path", { class: "line thin front", d: `${steps}H${frame.px(right).toFixed(1)}`, stroke: "var(--ink)", "stroke-dasharray": "4 3" }, frame.marks);
  for (const [x, y] of ends) svgNode("circle", { class: "ring", cx: frame.px(x), cy: frame.py(y), r: 7, fill: "none", stroke: "var(--ink)" }, frame.marks);
}

const QUADRANTS = [ // drawn from the middle outwards: chosen up to the right, chosen down to the left
  ["up_down", 1, "var(--q1)"], ["up_up", 1, "var(--q2)"], ["down_down", -1, "var(--q3)"], ["down_up", -1, "var(--q4)"],
];
const WORDS = { up_down: "chosen up, rejected down", up_up: "both up", down_down: "both down", down_up: "chosen down, rejected up" };

function quadrantFigure(holder) {
  const key = (name) => `displacement/quadrant/${name}`;
  const rows = ORDER.filter((k) => QUADRANTS.every(([name]) => ending(k, key(name))));
  if (!rows.length) return empty(holder);
  const tall = Math.max(9, Math.min(44, 250 / rows.length));
  const labels = rows.map((k) => (GROUPS.length ? POINTS[k].picks.join(" · ") : POINTS[k].label).replaceAll("-", "−").slice(0, 28));
  const every = Math.ceil(11 / tall);
  const frame = new Frame(holder, {
    x: { low: -1, high: 1, ticks: [-1, -0.5, 0, 0.5, 1], write: (v) => `${Math.abs(v) * 100} %`, title: "← chosen less likely · share of pairs · more likely →" },
    y: { low: rows.length - 0.4, high: -0.6, labels: labels.map((text, i) => (i % every ? "" : text)) },
    height: rows.length * tall + 60, label: "Quadrant shares",
  });
  rows.forEach((k, row) => {
    const ends = { 1: 0, "-1": 0 };
    const values = QUADRANTS.map(([name]) => [WORDS[name], `${(ending(k, key(name)).mean * 100).toFixed(1)} %`]);
    for (const [name, side, fill] of QUADRANTS) {
      const share = ending(k, key(name)).mean, from = ends[side], to = from + side * share;
      ends[side] = to;
      const [a, b] = [frame.px(Math.min(from, to)), frame.px(Math.max(from, to))];
      if (b - a < 0.05) continue;
      svgNode("rect", { class: isOn(POINTS[k]) ? "share" : "share off", x: a, width: b - a, y: frame.py(row) - tall * 0.38, height: tall * 0.76, fill, "data-p": k }, frame.marks);
      if (isOn(POINTS[k])) frame.hit((from + to) / 2, row, k, values);
    }
  });
  frame.rule("x", 0);
}

function empty(holder) {
  holder.replaceChildren(html("p", { class: "nothing" }, "Not measured yet."));
}

const FIGURES = {
  steps: stepsFigure,
  outcome: outcomeFigure,
  advantage: advantageFigure,
  chosen: (h) => curvesFigure(h, "displacement/chosen", { title: "nats per token since step 0", around: [0], neutral: [0, ""], shared: ["displacement/chosen", "displacement/rejected"] }),
  rejected: (h) => curvesFigure(h, "displacement/rejected", { title: "nats per token since step 0", around: [0], neutral: [0, ""], shared: ["displacement/chosen", "displacement/rejected"] }),
  trajectory: (h) => pathsFigure(h, "displacement/chosen", "rewards/margins", { xTitle: "displacement of chosen, nats per token", yTitle: "reward margin" }),
  quadrants: quadrantFigure,
  gradient: gradientFigure,
  kl: (h) => endingFigure(h, "kl/reference", { title: "KL to the start, nats per token" }),
  length: (h) => endingFigure(h, "glassbox/length", { title: "tokens per answer", around: [] }),
  frontier: (h) => pathsFigure(h, "kl/reference", DATA.outcome || "rewards/accuracies", { xTitle: "KL to the start, nats per token", yTitle: TITLES[DATA.outcome] || "outcome", neutral: NEUTRAL[DATA.outcome], given: DATA.frontier }),
  explorer: (h) => {
    const key = document.getElementById("metric").value;
    curvesFigure(h, key, { title: METRICS[key]?.unit || "", neutral: NEUTRAL[key] });
  },
};
