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
// shows at once. Interpolated in Oklab (Ottosson 2020).
const SCALES = {
  light: {
    diverging: ["#0891a6", "#1674cc", "#2559c9", "#3a3fa6", "#15171c", "#932234", "#c23a22", "#d8650f", "#d48c00"],
    ordered: ["#3b2a7e", "#1f5fb4", "#0e8f8f", "#5f9e2e", "#c78a00"],
    categories: ["#0b62b0", "#c8501a", "#12805c", "#a3518f", "#8a6d00", "#3f8fc4", "#15171c", "#7d7f85"],
  },
  dark: {
    diverging: ["#22c3cf", "#3fa6ee", "#6f9cfb", "#a3a8ff", "#f6f3ec", "#ffb3a6", "#fb8a6a", "#f28a3a", "#e9b02b"],
    ordered: ["#a99cf2", "#6aa8f5", "#3fc9c2", "#9bd05e", "#f0b93a"],
    categories: ["#63aef0", "#f08a56", "#4cc79a", "#d792c6", "#d9bb45", "#9bd0ee", "#f3f0ea", "#9a9da5"],
  },
};
const media = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (media.matches ? "dark" : "light")) === "dark";

function toOklab(hex) {
  const [r, g, b] = [1, 3, 5].map((i) => {
    const c = parseInt(hex.slice(i, i + 2), 16) / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

/** The colour at `t` in [0, 1] of a scale of hex colours. */
function along(scale, t) {
  const place = Math.min(Math.max(t, 0), 1) * (scale.length - 1);
  const i = Math.min(Math.floor(place), scale.length - 2);
  const [a, b] = [toOklab(scale[i]), toOklab(scale[i + 1])];
  const [L, A, B] = a.map((v, n) => v + (b[n] - v) * (place - i));
  return `oklab(${L.toFixed(4)} ${A.toFixed(4)} ${B.toFixed(4)})`;
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
