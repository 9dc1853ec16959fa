// What the reader does: pick values, show seeds, change the theme, read answers, sort tables.

const holders = [...document.querySelectorAll("[data-figure]")];

function draw(only) {
  unfocus();
  for (const holder of holders) if (!only || only === holder) FIGURES[holder.dataset.figure](holder);
}

function drawAll() {
  for (const mark of document.querySelectorAll("[data-swatch]")) mark.style.setProperty("--swatch", colourOf(Number(mark.dataset.swatch)));
  for (const row of document.querySelectorAll("tr[data-point]")) row.classList.toggle("off", !isOn(POINTS[Number(row.dataset.point)]));
  drawPicker();
  draw();
  drawSamples();
}

// ---- picking

const picker = document.getElementById("picker");

function drawPicker() {
  GROUPS.forEach((group, g) => {
    const row = picker.querySelector(`[data-group="${g}"]`);
    row.querySelectorAll("button[data-value]").forEach((chip, i) => {
      const on = state.picked[g].has(group.values[i]);
      chip.setAttribute("aria-pressed", String(on));
      chip.classList.toggle("off", state.picked[g].size > 0 && !on);
      if (group.key === AXIS.key) chip.style.setProperty("--swatch", colourOfX(POINTS.find((p) => p.picks[g] === group.values[i]).x));
    });
  });
  const all = picker.querySelector("#all");
  if (all) all.disabled = !anyPicked();
}

/** With a second swept key, its values are told apart by dashes: a sample of the stroke for its chip. */
function strokeOf(group, i) {
  if (GROUPS.length !== 2 || group.key === AXIS.key) return [];
  const made = svgNode("svg", { width: 26, height: 9, "aria-hidden": "true" });
  svgNode("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: "currentColor", "stroke-width": 1.8, "stroke-dasharray": DASHES[i % DASHES.length] || undefined }, made);
  return [made];
}

function makePicker() {
  GROUPS.forEach((group, g) => {
    const chips = group.values.map((value, i) => html("button", {
      type: "button", class: group.key === AXIS.key ? "chip swatched" : "chip", "data-value": value, "aria-pressed": "false",
      onclick: () => {
        const set = state.picked[g];
        if (!set.delete(value)) set.add(value);
        if (set.size === group.values.length) set.clear();
        drawAll();
      },
    }, ...strokeOf(group, i), AXIS.kind === "alpha" && group.key === AXIS.key ? value.replace("-", "−") : value));
    picker.querySelector(".rows").append(html("div", { class: "chips", "data-group": g, role: "group", "aria-label": `Pick ${group.name}` }, html("span", { class: "name", title: group.key }, group.name), ...chips));
  });
  const tools = picker.querySelector(".tools");
  if (GROUPS.length) tools.append(html("button", { type: "button", id: "all", class: "tool", onclick: () => { state.picked.forEach((s) => s.clear()); drawAll(); } }, "All"));
  if (CELLS.some((c, i) => CELLS.findIndex((o) => o.point === c.point) !== i)) {
    tools.append(html("button", { type: "button", id: "seeds", class: "tool", "aria-pressed": "false", onclick: (event) => {
      state.seeds = !state.seeds;
      event.currentTarget.setAttribute("aria-pressed", String(state.seeds));
      draw();
    } }, "Seeds"));
  }
  if (!tools.children.length) picker.hidden = true;
}

// ---- theme: the system's, until the reader says otherwise

const THEMES = ["", "light", "dark"];
const themeButton = document.getElementById("theme");

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  themeButton.textContent = { "": "Auto", light: "Light", dark: "Dark" }[theme];
  // Where pages from files may not store anything, the choice lasts as long as the page.
  try { localStorage.setItem("alphapo-theme", theme); } catch { /* as said */ }
}
themeButton.addEventListener("click", () => {
  setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "") + 1) % THEMES.length]);
  drawAll();
});
media.addEventListener("change", drawAll);

// ---- answers side by side

const answers = document.getElementById("answers");
let promptsShown = 3;

/** What is picked; before that the best point, alpha = 0 and the largest value. */
function sampledPoints() {
  const has = ORDER.filter((k) => DATA.samples.answers[k]);
  if (anyPicked()) return has.filter((k) => isOn(POINTS[k])).slice(0, 8);
  const zero = has.find((k) => POINTS[k].alpha === 0);
  const usual = [...new Set([DATA.best, zero, has.at(-1), has[0]])].filter((k) => has.includes(k)).slice(0, 3);
  return usual.sort((a, b) => a - b);
}

function answerCard(name, [text, reward, cut], start, k) {
  const foot = [];
  if (known(reward)) {
    const verdict = k === undefined ? "" : reward > start ? "beats the start" : reward < start ? "loses to the start" : "ties with the start";
    foot.push(html("span", { class: "reward" }, `true reward ${reward.toFixed(2).replace("-", "−")}`), html("span", { class: `verdict ${verdict.split(" ")[0]}` }, verdict));
  }
  if (cut) foot.push(html("span", {}, `${cut} more characters`));
  return html("article", { class: "answer", style: { "--swatch": k === undefined ? "var(--faint)" : colourOf(k) } },
    html("h4", {}, name), text.trim() ? html("p", {}, text) : html("p", { class: "nothing" }, "empty"), html("footer", {}, ...foot));
}

function drawSamples() {
  if (!answers) return;
  const { prompts, start, answers: of } = DATA.samples;
  const columns = sampledPoints();
  answers.replaceChildren(...prompts.slice(0, promptsShown).map((prompt, i) => html("section", { class: "prompt" },
    html("h3", {}, prompt),
    html("div", { class: "side-by-side" }, answerCard("before training", start[i], null), ...columns.map((k) => answerCard(POINTS.length === 1 ? "after training" : titleOf(k), of[k][i], start[i][1], k))))));
  document.getElementById("which").textContent = anyPicked() ? "the picked values" : columns.map(titleOf).join(", ");
  document.getElementById("which-words").hidden = POINTS.length === 1;
  document.getElementById("more").hidden = promptsShown >= prompts.length;
}
document.getElementById("more")?.addEventListener("click", () => { promptsShown += 5; drawSamples(); });

// ---- any metric

const select = document.getElementById("metric");

function explainMetric() {
  const { text, bad } = METRICS[select.value];
  document.getElementById("meaning").textContent = text + (bad ? ` Bad: ${bad}.` : "");
}
select?.addEventListener("change", () => { explainMetric(); draw(holders.find((h) => h.dataset.figure === "explorer")); });

// ---- tables and commands

for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const sort = () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const number = (row) => (value(row) === "" ? NaN : Number(value(row)));
      const order = (a, b) => {
        const [x, y] = [number(a), number(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || value(a).localeCompare(value(b));
        return falling ? y - x : x - y;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
for (const button of document.querySelectorAll("button.copy")) {
  if (!navigator.clipboard) button.hidden = true;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// ---- begin

let stored = "";
try { stored = localStorage.getItem("alphapo-theme") || ""; } catch { /* nothing stored */ }
setTheme(THEMES.includes(stored) ? stored : "");
makePicker();
if (select) explainMetric();
drawAll();
const widths = new Map();
const observer = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const before = widths.get(target);
    widths.set(target, contentRect.width);
    if (before !== undefined && before !== contentRect.width) draw(target);
  }
});
holders.forEach((holder) => observer.observe(holder));
