// The data, what is picked, colours and numbers. Everything below draws from these.

const DATA = JSON.parse(document.getElementById("data").textContent);
const { points: POINTS, cells: CELLS, groups: GROUPS, axis: AXIS, metrics: METRICS } = DATA;
const SERIES = [...new Set(POINTS.map((p) => p.series))];
const XS = [...new Set(POINTS.map((p) => p.x))];

// Picked values of each swept key; an empty set shows all of them.
const state = { picked: GROUPS.map(() => new Set()), seeds: false };
const isOn = (point) => state.picked.every((set, g) => !set.size || set.has(point.picks[g]));
const anyPicked = () => state.picked.some((set) => set.size);

const cellsOf = POINTS.map((_, k) => CELLS.filter((c) => c.point === k));
const complete = (k) => cellsOf[k].filter((c) => c.state === "complete");
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

/** The value of `key` at the end of a point: mean and range over complete seeds, or of what has been reached so far. */
function ending(k, key) {
  const of = (cells) => cells.map((c) => c.final[key]).filter(known);
  const done = of(complete(k));
  const values = done.length ? done : of(cellsOf[k].filter((c) => c.state !== "failed"));
  if (!values.length) return null;
  return { mean: mean(values), low: Math.min(...values), high: Math.max(...values), values, done: done.length > 0 };
}

/** Steps and values of one cell's curve. */
function curveOf(cell, key) {
  const found = cell.curves[key];
  return found ? DATA.grids[found[0]].map((step, i) => [step, found[1][i]]).filter(([, v]) => known(v)) : [];
}

/** Mean and range over a point's complete seeds, at steps that all of them have; of what is there while none is. */
function meanCurve(k, key) {
  const alive = cellsOf[k].filter((c) => c.state !== "failed" && curveOf(c, key).length);
  const done = alive.filter((c) => c.state === "complete");
  const maps = (done.length ? done : alive).map((c) => new Map(curveOf(c, key)));
  if (!maps.length) return [];
  return [...maps[0].keys()]
    .filter((step) => maps.every((m) => m.has(step)))
    .map((step) => {
      const values = maps.map((m) => m.get(step));
      return { step, mean: mean(values), low: Math.min(...values), high: Math.max(...values) };
    });
}

// Colours. A scale runs from one end over 0 to the other; the middle is the strongest contrast to the page, because the
// points near alpha = 0 are those that all others are compared with, and hue sets in steeply beside it, so that the sign
// shows at once. On light pages those of the pictures, which come with the data; dark ones have lighter ones of these.
const evenly = (colours) => colours.map((colour, i) => [i / (colours.length - 1), colour]);
const SCALES = {
  light: DATA.colours,
  dark: {
    diverging: evenly(["#22c3cf", "#3fa6ee", "#6f9cfb", "#a3a8ff", "#f6f3ec", "#ffb3a6", "#fb8a6a", "#f28a3a", "#e9b02b"]),
    ordered: evenly(["#a99cf2", "#6aa8f5", "#3fc9c2", "#9bd05e", "#f0b93a"]),
    categories: ["#63aef0", "#f08a56", "#4cc79a", "#d792c6", "#d9bb45", "#9bd0ee", "#f3f0ea", "#9a9da5"],
  },
};
const media = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (media.matches ? "dark" : "light")) === "dark";

/** The colour at `t` in [0, 1] of a scale of [place, hex colour], between two of them as matplotlib mixes them. */
function along(scale, t) {
  const place = Math.min(Math.max(t, 0), 1);
  const i = Math.max(scale.findIndex(([at]) => at >= place), 1);
  const [[from, a], [to, b]] = [scale[i - 1], scale[i]];
  const part = (place - from) / (to - from);
  const mixed = [1, 3, 5].map((n) => {
    const [x, y] = [a, b].map((hex) => parseInt(hex.slice(n, n + 2), 16));
    return Math.round(x + (y - x) * part);
  });
  return `rgb(${mixed.join(" ")})`;
}

/** The colour of a value on the axis: alpha's own place on a scale centred on 0, else its place in the order. */
function colourOfX(x) {
  const scales = SCALES[isDark() ? "dark" : "light"];
  if (AXIS.kind === "alpha") {
    const reach = Math.max(...XS.map(Math.abs)) || 1;
    return along(scales.diverging, (x / reach + 1) / 2);
  }
  const place = XS.indexOf(x);
  if (AXIS.kind === "ordered") return along(scales.ordered, XS.length > 1 ? place / (XS.length - 1) : 0);
  return scales.categories[place % scales.categories.length];
}
const colourOf = (k) => colourOfX(POINTS[k].x);
const DASHES = ["", "7 4", "2 3.5", "9 3 2 3"];
const dashOf = (k) => DASHES[SERIES.indexOf(POINTS[k].series) % DASHES.length];

/** Four significant digits at most, a true minus sign, no trailing zeros. */
function written(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1).replace(".0e", "e") : String(Number(value.toPrecision(4)));
  return text.replace("-", "−");
}
/** A point's label for people: "alpha = −1". */
const titleOf = (k) => POINTS[k].label.replaceAll("=", " = ").replaceAll("= -", "= −");
const signed = (value) => (value > 0 ? "+" : "") + written(value);
const named = (x) => (typeof x === "number" ? written(x) : x);

/** An HTML element; text is always set as text, never as markup. */
function html(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style") Object.entries(value).forEach(([k, v]) => made.style.setProperty(k, v));
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
