// One chart: axes, marks, and a tip at the nearest point.

const tip = document.getElementById("tip");
const focusRule = document.getElementById("focus");

function svgNode(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

/** Round numbers inside [low, high], about `count` of them; of whole things whole numbers. */
function roundTicks(low, high, count, integer = false) {
  const raw = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999 && (!integer || Number.isInteger(s))) ?? 1;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const m of [1, 3]) if (m * 10 ** power >= low && m * 10 ** power <= high) ticks.push(m * 10 ** power);
  }
  return ticks;
}

/** The range of values with a little air, always some. `around` must be inside. */
function extent(values, around = []) {
  const all = [...values, ...around].filter(known);
  if (!all.length) return [0, 1];
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const air = (high - low) * 0.05;
  return [low - air, high + air];
}

let clips = 0;

/**
 * A frame with axes in `holder`, emptied before.
 *
 * An axis is {low, high, title, labels (categories at 0, 1, ...), log, ticks (where), write (how a tick is written)}. Marks are added through the methods; `hit` makes
 * a place that answers to the pointer. `left` is the width of the ticks' column, for frames above one another.
 */
class Frame {
  constructor(holder, { x, y, height = 300, label = "", left }) {
    Object.assign(this, { holder, x, y, targets: [] });
    this.width = Math.max(holder.clientWidth, 130);
    this.yTicks = y.labels ? [] : y.ticks ? y.ticks : y.log ? logTicks(y.low, y.high) : roundTicks(y.low, y.high, height > 240 ? 6 : 4);
    const widest = Math.max(...(y.labels || this.yTicks.map(y.write || written)).map((t) => t.length), 2);
    this.left = left ?? Math.min(widest * 6.6 + 14, this.width * 0.4);
    this.right = x.write ? 22 : 14;
    const inner = this.width - this.left - this.right;
    this.slanted = Boolean(x.labels) && Math.max(...x.labels.map((t) => t.length)) * 6.8 > inner / x.labels.length - 6;
    const longest = x.labels ? Math.max(...x.labels.map((t) => t.length)) : 0;
    this.bottom = (this.slanted ? Math.min(longest * 4.6 + 14, 110) : 22) + (x.title ? 18 : 4);
    this.top = y.title ? 26 : 10;
    this.height = height + (this.slanted ? this.bottom - 40 : 0);
    this.svg = svgNode("svg", { width: this.width, height: this.height, role: "img", "aria-label": label });
    const id = `clip-${clips++}`;
    const clip = svgNode("clipPath", { id }, this.svg);
    svgNode("rect", { x: this.left - 5, y: this.top - 5, width: inner + 12, height: this.height - this.top - this.bottom + 10 }, clip);
    this.#axes();
    this.marks = svgNode("g", { "clip-path": `url(#${id})` }, this.svg);
    holder.replaceChildren(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.#move(event));
    this.svg.addEventListener("pointerdown", (event) => this.#move(event));
    this.svg.addEventListener("pointerleave", unfocus);
  }

  #place(axis, value, from, to) {
    const [low, high, at] = axis.log ? [axis.low, axis.high, Math.max(value, axis.low)].map(Math.log10) : [axis.low, axis.high, value];
    return from + ((at - low) / (high - low)) * (to - from);
  }
  px(value) { return this.#place(this.x, value, this.left, this.width - this.right); }
  py(value) { return this.#place(this.y, value, this.height - this.bottom, this.top); }

  #axes() {
    const { svg, x, y, left, width, right, top, height, bottom } = this;
    const base = height - bottom;
    for (const tick of this.yTicks) {
      svgNode("line", { class: "grid", x1: left, x2: width - right, y1: this.py(tick), y2: this.py(tick) }, svg);
      svgNode("text", { class: "tick", x: left - 8, y: this.py(tick) + 4, "text-anchor": "end" }, svg, (y.write || written)(tick));
    }
    (y.labels || []).forEach((text, i) => {
      if (text) svgNode("text", { class: "tick", x: left - 8, y: this.py(i) + 4, "text-anchor": "end" }, svg, text);
    });
    if (x.labels) {
      x.labels.forEach((text, i) => {
        const at = { class: "tick", x: this.px(i), y: base + 17, "text-anchor": this.slanted ? "end" : "middle" };
        if (this.slanted) at.transform = `rotate(-38 ${at.x} ${at.y})`;
        svgNode("text", at, svg, text.length > 22 ? `${text.slice(0, 21)}…` : text);
      });
    } else {
      for (const tick of x.ticks || roundTicks(x.low, x.high, Math.min(Math.max((width - left) / 70, 3), 8), x.integer)) {
        svgNode("line", { class: "notch", x1: this.px(tick), x2: this.px(tick), y1: base, y2: base + 4 }, svg);
        svgNode("text", { class: "tick", x: this.px(tick), y: base + 17, "text-anchor": "middle" }, svg, (x.write || written)(tick));
      }
    }
    svgNode("line", { class: "axis", x1: left, x2: width - right, y1: base, y2: base }, svg);
    if (y.title) svgNode("text", { class: "title", x: 0, y: 11 }, svg, y.title);
    if (x.title) svgNode("text", { class: "title", x: width - right, y: height - 3, "text-anchor": "end" }, svg, x.title);
  }

  /** A thin line at a value that means "no change": horizontal for y, vertical for x, with a word beside it. */
  rule(axis, value, word) {
    const [low, high] = axis === "y" ? [this.y.low, this.y.high] : [this.x.low, this.x.high];
    if (!(value >= low && value <= high)) return;
    const at = axis === "y" ? this.py(value) : this.px(value);
    const ends = axis === "y" ? { x1: this.left, x2: this.width - this.right, y1: at, y2: at } : { x1: at, x2: at, y1: this.top, y2: this.height - this.bottom };
    svgNode("line", { class: "rule", ...ends }, this.marks);
    if (!word) return;
    const right = this.width - this.right;
    const end = axis === "y" ? { x: right - 2, y: at - 5, "text-anchor": "end" } : { x: at + 5, y: this.top + 9 };
    const said = svgNode("text", { class: "word", ...end }, this.marks, word);
    if (axis === "x" && at + 5 + said.getComputedTextLength() > right) { // no room to the right of the line
      said.setAttribute("x", at - 5);
      said.setAttribute("text-anchor", "end");
    }
  }

  line(places, k, { thin = false, off = false, colour, dash = dashOf(k) } = {}) {
    if (places.length < 2) return;
    const d = places.map(([a, b], i) => `${i ? "L" : "M"}${this.px(a).toFixed(1)} ${this.py(b).toFixed(1)}`).join("");
    svgNode("path", {
      d, class: `line${thin ? " thin" : ""}${off ? " off" : ""}`, stroke: colour || colourOf(k),
      "stroke-dasharray": dash || undefined, "data-p": k,
    }, this.marks);
  }

  area(places, k, fill, crowd = "") {
    if (places.length < 2) return;
    const ends = [...places.map(([a, , high]) => [a, high]), ...places.map(([a, low]) => [a, low]).reverse()];
    const d = ends.map(([a, b], i) => `${i ? "L" : "M"}${this.px(a).toFixed(1)} ${this.py(b).toFixed(1)}`).join("") + "Z";
    svgNode("path", { d, class: `area ${crowd}`, fill, "data-p": k }, this.marks);
  }

  bar(at, low, high, k, { colour = colourOf(k), off = false } = {}) {
    svgNode("line", { class: `bar${off ? " off" : ""}`, x1: this.px(at), x2: this.px(at), y1: this.py(low), y2: this.py(high), stroke: colour, "data-p": k }, this.marks);
  }

  dot(at, value, k, { colour = colourOf(k), hollow = false, small = false, off = false } = {}) {
    svgNode("circle", {
      class: `dot${hollow ? " hollow" : ""}${small ? " small" : ""}${off ? " off" : ""}`, cx: this.px(at), cy: this.py(value),
      r: small ? 2.4 : 4.5, stroke: colour, fill: hollow ? undefined : colour, "data-p": k,
    }, this.marks);
  }

  cross(at, value, k) {
    const [x, y] = [this.px(at), this.py(value)];
    svgNode("path", { class: "cross", d: `M${x - 4} ${y - 4}L${x + 4} ${y + 4}M${x - 4} ${y + 4}L${x + 4} ${y - 4}`, stroke: colourOf(k), "data-p": k }, this.marks);
  }

  /** Here the pointer finds point `k`; `rows` are [name, value] pairs of the tip. */
  hit(at, value, k, rows, title = titleOf(k)) {
    this.targets.push({ x: this.px(at), y: this.py(value), k, rows, title });
  }

  #move(event) {
    const box = this.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let nearest = null;
    for (const target of this.targets) {
      const distance = Math.hypot(target.x - x, target.y - y);
      if (distance < 48 && (!nearest || distance < nearest.distance)) nearest = { ...target, distance };
    }
    if (!nearest) return unfocus();
    const others = `[data-p]:not([data-p="${nearest.k}"])`;
    focusRule.textContent = `svg ${others}{opacity:.1} svg .area${others}{opacity:.03}`;
    tip.replaceChildren(
      html("strong", { style: { "--swatch": colourOf(nearest.k) } }, nearest.title),
      ...nearest.rows.map(([name, text]) => html("span", {}, html("i", {}, name), html("b", {}, text))),
    );
    tip.hidden = false;
    const wide = tip.offsetWidth, tall = tip.offsetHeight;
    const px = box.left + nearest.x, py = box.top + nearest.y;
    tip.style.left = `${Math.max(6, Math.min(px + 14, window.innerWidth - wide - 6))}px`;
    tip.style.top = `${py - tall - 12 > 4 ? py - tall - 12 : py + 16}px`;
  }
}

function unfocus() {
  focusRule.textContent = "";
  tip.hidden = true;
}
