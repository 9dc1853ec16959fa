// Reward shapes: the curves, where on them the pairs are, how hard the loss pulls, and its field with the path of the means.

const SHAPES = DATA.shapes || {};
const shaped = () => ORDER.filter((k) => SHAPES[k]);
const BOTH = [["chosen", "var(--chosen)"], ["rejected", "var(--rejected)"]];
const ALONE = POINTS.length === 1;
const inkOf = (k) => (ALONE ? "var(--ink)" : colourOf(k));

/** The value at `x` of a curve through (xs, ys), between its nodes. */
function interpolated(xs, ys, x) {
  const i = Math.max(1, xs.findIndex((at) => at >= x)), part = (x - xs[i - 1]) / (xs[i] - xs[i - 1] || 1);
  return ys[i - 1] + (ys[i] - ys[i - 1]) * Math.min(Math.max(part, 0), 1);
}

/** h(s) or h'(s) of every point over the scores that its pairs have, with the mean scores of up to eight on it. */
function shapeFigure(holder) {
  const part = holder.dataset.part, has = shaped();
  const on = has.filter((k) => isOn(POINTS[k])), seen = on.length ? on : has;
  if (!has.length) return empty(holder);
  const values = seen.flatMap((k) => valuesOf(k, part));
  const y = part === "slope" ? slopeScale(values) : shapeScale(values);
  const units = [...new Set(has.map((k) => SHAPES[k].unit))], [low, high] = extent(seen.flatMap((k) => SHAPES[k].grid));
  const frame = new Frame(holder, { x: { low, high, title: units.length === 1 ? `score s, ${units[0]}` : "score s, each in its own unit" }, y: { ...y, title: `${SIGNS[part]}${y.log || y.ticks ? ", logarithmic" : ""}` }, label: `${part} over the score` });
  for (const k of has) drawCurve(frame, k, part, y.at, { off: !isOn(POINTS[k]), dots: on.length <= 8 });
}
const valuesOf = (k, part) => [...SHAPES[k][part], ...(SHAPES[k].start[part] || [])].filter(known);
const SIGNS = { shape: "h(s)", slope: "h′(s)" };

/** A point's curve, dotted that of step 0 where it was another, and its mean scores on them: open at step 0, filled at the
    end; `at` is where a value stands. */
function drawCurve(frame, k, part, at = (v) => v, { off = false, dots = true } = {}) {
  const { grid, means, steps } = SHAPES[k], curve = SHAPES[k][part], start = SHAPES[k].start[part];
  const along = (values) => grid.map((s, i) => [s, at(values[i])]).filter(([, v]) => known(v));
  frame.line(along(curve), k, { off, colour: inkOf(k), thin: !dots });
  if (start && !off) frame.line(along(start), k, { colour: inkOf(k), thin: true, dash: "2 3" });
  if (off || !dots) return;
  BOTH.forEach(([side, colour], i) => {
    for (const [mean, hollow, step] of [[means[i][0], true, steps[0]], [means[i].at(-1), false, steps.at(-1)]]) {
      if (!known(mean)) continue;
      const value = interpolated(grid, (hollow && start) || curve, mean);
      frame.dot(mean, at(value), k, { colour, hollow });
      frame.hit(mean, at(value), k, [["mean score", `${side}, step ${step}`], ["s", written(mean)], [SIGNS[part], written(value)]]);
    }
  });
}

function slopeScale(values) {
  const positive = values.filter((v) => v > 0), [low, high] = [Math.min(...positive), Math.max(...values)];
  if (positive.length && high > 20 * low) return { low: Math.max(low / 1.4, high * 1e-12), high: high * 1.4, log: true };
  return { low: 0, high: (high || 1) * 1.1 };
}

/** A linear scale; beyond 20 in size one that is linear near 0 and logarithmic far from it, for either sign. */
function shapeScale(values) {
  if (Math.max(...values.map(Math.abs)) <= 20) return { low: extent(values)[0], high: extent(values)[1] };
  const at = (v) => Math.sign(v) * Math.log10(1 + Math.abs(v)), [low, high] = extent(values.map(at));
  const sizes = [0, 1, 10, 100, 1e3, 1e4, 1e6, 1e8, 1e10, 1e12];
  const ticks = [...new Set(sizes.flatMap((v) => [at(-v), at(v)]))].filter((v) => v >= low && v <= high).sort((a, b) => a - b);
  return { low, high, at, ticks, write: (v) => written(Number((Math.sign(v) * (10 ** Math.abs(v) - 1)).toPrecision(3))) };
}

/** Histograms of both sides' scores: outlined at step 0, filled at the end. */
function histogram(holder, k, { height = 300, x, titles = true, left } = {}) {
  const { bins, counts, unit, pairs, steps } = SHAPES[k], n = counts.end[0].length, wide = (bins[1] - bins[0]) / n;
  const most = Math.max(...counts.start.flat(), ...counts.end.flat(), 1);
  const [low, high] = x || extent(bins);
  const frame = new Frame(holder, { x: { low, high, title: titles ? `score s, ${unit}` : "" }, y: { low: 0, high: most * 1.06, title: titles ? `answers, of ${pairs} pairs` : "", integer: true }, height, left, label: `Scores of ${titleOf(k)}` });
  const outline = (side) => [[bins[0], 0], ...side.flatMap((v, i) => [[bins[0] + i * wide, v], [bins[0] + (i + 1) * wide, v]]), [bins[1], 0]];
  BOTH.forEach(([side, colour], i) => {
    frame.area(outline(counts.end[i]).map(([s, v]) => [s, 0, v]), k, colour, "filled");
    frame.line(outline(counts.start[i]), k, { colour, thin: true, dash: "4 3" });
    counts.end[i].forEach((v, bin) => { if (v) frame.hit(bins[0] + (bin + 0.5) * wide, v, k, [["score", `${written(bins[0] + bin * wide)} to ${written(bins[0] + (bin + 1) * wide)}`], [`${side}, step ${steps.at(-1)}`, String(v)], [`${side}, step 0`, String(counts.start[i][bin])]]); });
  });
}

/** The size of dL/ds of every answer against its score: open at step 0, filled at the end. */
function weightsFigure(holder) {
  const panel = SHAPES[0];
  const places = (panel?.dots || []).map((when) => when.map(([scores, sizes]) => scores.map((s, i) => [s, sizes[i]]).filter((p) => p.every(known))));
  const every = places.flat(2);
  if (!every.length) return empty(holder);
  const sizes = every.map((p) => p[1]), top = Math.max(...sizes), positive = sizes.filter((v) => v > 0);
  const log = positive.length > 0 && top > 20 * Math.min(...positive);
  const low = log ? Math.max(Math.min(...positive) / 1.4, top * 1e-6) : 0;
  const [left, right] = extent(every.map((p) => p[0]));
  const frame = new Frame(holder, { x: { low: left, high: right, title: `score s, ${panel.unit}` }, y: { low, high: log ? top * 1.4 : top * 1.08 || 1, log, title: `size of dL/ds${log ? ", logarithmic" : ""}` }, label: "Gradient weight against the score" });
  if (known(panel.limit)) frame.rule("y", panel.limit, "saturated below");
  places.forEach((when, end) => when.forEach((side, i) => side.forEach(([s, size]) => {
    frame.dot(s, Math.max(size, low), 0, { colour: BOTH[i][1], hollow: !end, small: true });
    if (end) frame.hit(s, Math.max(size, low), 0, [["answer", BOTH[i][0]], ["score", written(s)], ["size of dL/ds", written(size)]]);
  })));
  frame.marks.classList.add("faint-dots");
}

/** Arrows down the loss over both scores, the stronger the steeper, and the path of the mean scores through them. */
function fieldPanel(holder, k, by, { height = 300, titles = true } = {}) {
  const { field, means, steps } = SHAPES[k];
  const { x, y, to, level } = field ? field.by[by] : { x: [], y: [], to: [], level: [] }, count = Math.sqrt(x.length);
  const air = field ? (0.5 * (field.ends[1] - field.ends[0])) / count : 0, ends = field ? field.ends : extent(means.flat());
  const [low, high] = [ends[0] - air, ends[1] + air];
  const frame = new Frame(holder, { x: { low, high, title: titles ? "chosen score" : "" }, y: { low, high, title: titles ? "rejected score" : "" }, height, label: `Gradient field of ${titleOf(k)}` });
  svgNode("line", { class: "rule", x1: frame.px(low), y1: frame.py(low), x2: frame.px(high), y2: frame.py(high) }, frame.marks);
  if (!field) svgNode("text", { class: "word", x: frame.width - 16, y: frame.height - 30, "text-anchor": "end" }, frame.marks, "no field");
  const reach = !field ? 0 : 0.38 * Math.min(frame.px(x[1]) - frame.px(x[0]), frame.py(y[0]) - frame.py(y[count]));
  const [across, up] = [frame.px(1) - frame.px(0), frame.py(0) - frame.py(1)]; // pixels a unit of score
  x.forEach((at, i) => {
    const [right, rise] = [to[2 * i] * across, to[2 * i + 1] * up], size = Math.hypot(right, rise);
    if (!size) return;
    const [dx, dy] = [right / size, -rise / size];
    const [cx, cy] = [frame.px(at), frame.py(y[i])], [a, b] = [cx + dx * reach, cy + dy * reach];
    const head = [0.45, -0.45].map((side) => `L${(a - reach * 0.62 * (dx + side * dy)).toFixed(1)} ${(b - reach * 0.62 * (dy - side * dx)).toFixed(1)}`);
    const d = `M${(cx - dx * reach).toFixed(1)} ${(cy - dy * reach).toFixed(1)}L${a.toFixed(1)} ${b.toFixed(1)}${head[0]}M${a.toFixed(1)} ${b.toFixed(1)}${head[1]}`;
    svgNode("path", { class: "arrow", d, "stroke-opacity": (0.22 + 0.0078 * level[i]).toFixed(2) }, frame.marks);
  });
  const path = steps.map((step, i) => [means[0][i], means[1][i], step]).filter(([a, b]) => known(a) && known(b));
  if (!path.length) return;
  const d = path.map(([a, b], i) => `${i ? "L" : "M"}${frame.px(a).toFixed(1)} ${frame.py(b).toFixed(1)}`).join("");
  svgNode("path", { class: "path-halo", d }, frame.marks);
  frame.line(path, k, { colour: inkOf(k), dash: "" });
  const down = path.at(-1)[1] < path[0][1];
  for (const [[a, b, step], hollow, below] of [[path[0], true, !down], [path.at(-1), false, down]]) {
    frame.dot(a, b, k, { colour: inkOf(k), hollow });
    svgNode("text", { class: "word strong", x: frame.px(a), y: frame.py(b) + (below ? 18 : -9), "text-anchor": "middle" }, frame.marks, `step ${step}`);
  }
  for (const [a, b, step] of path) frame.hit(a, b, k, [["step", written(step)], ["mean chosen score", written(a)], ["mean rejected score", written(b)]]);
}

function fieldFigure(holder) {
  if (!SHAPES[0]) return empty(holder);
  fieldPanel(holder, 0, holder.dataset.by, { height: Math.min(Math.max(holder.clientWidth, 200), 420) * 0.95 });
}

/** A small panel for each picked point, filled by `fill(holder, k)`. */
function multiples(holder, fill) {
  const has = shaped(), on = has.filter((k) => isOn(POINTS[k]));
  if (!has.length) return empty(holder);
  const grid = html("div", { class: "multiples" });
  holder.replaceChildren(grid);
  for (const k of on.length ? on : has) {
    const inside = html("div"), words = html("p", { class: "small-numbers" });
    grid.append(html("div", { class: "small" }, html("h4", { style: { "--swatch": colourOf(k) } }, titleOf(k)), words, inside));
    fill(inside, k, words);
  }
}

/** At most four powers of ten. */
function fewPowers(low, high) {
  const [from, to] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))], step = Math.max(1, Math.ceil((to - from + 1) / 4));
  return Array.from({ length: Math.max(to - from + 1, 0) }, (_, i) => from + i).filter((p) => p % step === 0).map((p) => Number(`1e${p}`));
}

function scoresFigure(holder) {
  if (ALONE) return SHAPES[0] ? histogram(holder, 0) : empty(holder);
  const has = shaped(), alike = new Set(has.map((k) => SHAPES[k].unit)).size === 1;
  const x = (k) => extent((alike ? has : [k]).flatMap((one) => SHAPES[one].bins));
  const y = slopeScale(has.flatMap((k) => valuesOf(k, "slope"))), left = 42;
  if (y.log) y.ticks = fewPowers(y.low, y.high);
  multiples(holder, (inside, k, words) => {
    words.append(...BOTH.map(([, colour], i) => html("span", { style: { "--swatch": colour } }, ...SHAPES[k].words[i].split(/(?<=,) /).map((text) => html("i", {}, `${text} `)))));
    const [above, below] = [html("div"), html("div")], [low, high] = x(k);
    inside.append(above, below);
    drawCurve(new Frame(above, { x: { low, high, ticks: [] }, y: { ...y, title: "h′(s)" }, height: 115, left, label: `Slope of ${titleOf(k)}` }), k, "slope");
    histogram(below, k, { height: 135, x: [low, high], titles: !alike, left });
  });
}

/** The share of saturated answers: over steps for a run, over the swept value for a sweep. */
function saturatedFigure(holder) {
  const has = shaped().filter((k) => SHAPES[k].saturated.flat().some(known));
  if (!has.length) return empty(holder);
  const { axis, place, joined } = valueAxis();
  const frame = new Frame(holder, { x: axis, y: { low: -0.02, high: 1.02, title: "share of answers saturated" }, label: `Saturated share against ${AXIS.name}` });
  zeroRule(frame);
  BOTH.forEach(([side, colour], i) => {
    const on = has.filter((k) => isOn(POINTS[k])).sort((a, b) => place(a) - place(b));
    if (joined) for (const series of SERIES) {
      const mine = on.filter((k) => POINTS[k].series === series);
      if (mine.length) frame.line(mine.map((k) => [place(k), SHAPES[k].saturated[i].at(-1)]), mine[0], { thin: true, colour });
    }
    for (const k of has) {
      const [start, end] = [SHAPES[k].saturated[i][0], SHAPES[k].saturated[i].at(-1)], off = !isOn(POINTS[k]);
      frame.dot(place(k), start, k, { colour, hollow: true, small: true, off });
      frame.dot(place(k), end, k, { colour, off });
      if (!off) frame.hit(place(k), end, k, [["side", side], ["saturated at step 0", `${(start * 100).toFixed(1)} %`], ["at the end", `${(end * 100).toFixed(1)} %`]]);
    }
  });
}

Object.assign(FIGURES, {
  shape: shapeFigure,
  scores: scoresFigure,
  weights: weightsFigure,
  field: fieldFigure,
  fields: (h) => multiples(h, (inside, k) => fieldPanel(inside, k, "s", { height: Math.min(inside.clientWidth || 230, 300), titles: false })),
  saturated: saturatedFigure,
});
