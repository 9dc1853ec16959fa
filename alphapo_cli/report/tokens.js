// The token view: pairs as cards, each token coloured by what happened to it. Text is only ever set as text.

const PAIRS = JSON.parse(document.getElementById("data").textContent);
const STEP = 40; // cards that are drawn at a time
const byId = (id) => document.getElementById(id);
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const signed = (value, digits = 3) => (known(value) ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}` : "–");
let shown = STEP;

for (const pair of PAIRS) {
  const texts = Object.values(pair.answers).map((answer) => answer.tokens.join(""));
  pair.text = [pair.prompt, ...texts].join("\n").toLowerCase();
  for (const answer of Object.values(pair.answers)) answer.change = answer.now.map((now, i) => now - answer.before[i]);
}

const VALUES = { moved: (answer) => answer.change, reward: (answer) => answer.reward };
const UNITS = { moved: "nats since the start", reward: "units of reward" };

/** The size of a value that has the full colour: the 98th percentile over all tokens, so that few of them are cut off. */
function fullSize(values) {
  const sizes = PAIRS.flatMap((pair) => Object.values(pair.answers).flatMap((answer) => values(answer).map(Math.abs)));
  sizes.sort((a, b) => a - b);
  return sizes.length ? Math.max(sizes[Math.floor((sizes.length - 1) * 0.98)], 1e-6) : 1;
}
const FULL = { moved: fullSize(VALUES.moved), reward: fullSize(VALUES.reward) };

const moved = (pair, side) => (pair.answers[side] && known(pair.answers[side].moved) ? pair.answers[side].moved : null);
const falling = (a, b) => (a === null) - (b === null) || a - b; // pairs without the value come last
const rising = (a, b) => (a === null) - (b === null) || b - a;
const ORDERS = {
  fell: (a, b) => falling(moved(a, "chosen"), moved(b, "chosen")),
  rose: (a, b) => rising(moved(a, "chosen"), moved(b, "chosen")),
  rejected: (a, b) => rising(moved(a, "rejected"), moved(b, "rejected")),
  ches: (a, b) => rising(a.ches, b.ches),
  row: (a, b) => a.row - b.row,
};

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawAnswer(answer, side, colour, numbers) {
  const box = element("div", `side ${side}`);
  const weight = known(answer.weight) ? `, gradient weight of a token ${signed(answer.weight, 4)}` : "";
  box.append(element("span", "name", `${side}, ${signed(answer.moved)} nats per token${weight}`));
  const values = VALUES[colour](answer);
  answer.tokens.forEach((text, i) => {
    const token = element("span", `tok ${values[i] < 0 ? "down" : "up"}`, text);
    token.style.setProperty("--size", Math.min(Math.abs(values[i]) / FULL[colour], 1).toFixed(3));
    const said = `log-prob ${signed(answer.before[i])} before, ${signed(answer.now[i])} now (${signed(answer.change[i])}), reward ${signed(answer.reward[i])}`;
    token.title = said;
    token.addEventListener("click", () => {
      for (const other of document.querySelectorAll(".tok.picked")) other.classList.remove("picked");
      token.classList.add("picked");
      numbers.textContent = `${JSON.stringify(text)}: ${said}`;
    });
    box.append(token);
  });
  return box;
}

function drawPair(pair, colour) {
  const card = element("article", "pair");
  const head = element("h3");
  head.append(element("span", "", `row ${pair.row} (${pair.set})`));
  if (pair.quadrant) head.append(element("span", "", `chosen ${pair.quadrant.replace("_", ", rejected ")}`));
  if (known(pair.ches)) head.append(element("span", "", `CHES, length-normalised ${signed(pair.ches, 2)}`));
  const prompt = element("details");
  prompt.append(element("summary", "", pair.prompt.trim().slice(-120)), element("pre", "", pair.prompt));
  const numbers = element("p", "numbers");
  card.append(head, prompt);
  for (const side of ["chosen", "rejected"]) {
    if (pair.answers[side]) card.append(drawAnswer(pair.answers[side], side, colour, numbers));
  }
  card.append(numbers);
  return card;
}

function draw() {
  const colour = byId("colour").value;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const quadrant = byId("quadrant").value;
  const found = PAIRS.filter(
    (pair) => (!quadrant || pair.quadrant === quadrant) && words.every((word) => pair.text.includes(word)),
  ).sort(ORDERS[byId("order").value]);
  byId("pairs").replaceChildren(...found.slice(0, shown).map((pair) => drawPair(pair, colour)));
  if (!found.length) byId("pairs").append(element("p", "nothing", "No pair has all of these words."));
  byId("more").hidden = found.length <= shown;
  byId("count").textContent = `${Math.min(shown, found.length)} of ${found.length} pairs shown`;
  byId("low").textContent = signed(-FULL[colour], 2);
  byId("high").textContent = signed(FULL[colour], 2);
  byId("unit").textContent = UNITS[colour];
}

function drawAnew() {
  shown = STEP;
  draw();
}

for (const id of ["search", "colour", "order", "quadrant"]) byId(id).addEventListener("input", drawAnew);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("more").addEventListener("click", () => {
  shown += STEP;
  draw();
});

const THEMES = ["Auto", "Light", "Dark"];
byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(byId("theme").textContent) + 1) % THEMES.length];
  byId("theme").textContent = next;
  if (next === "Auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next.toLowerCase();
});

draw();
