// Elements and figures. Text is only ever set as text. What is not known is shown as such, never as zero.

export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Other children in place of those that are there. The focus, if one of those had it, goes to the one of the
// same name, or else to `otherwise`: never to nothing.
export function replaceChildren(element, children, otherwise) {
  const focused = document.activeElement;
  const had = focused !== element && element.contains(focused) ? nameOf(focused) : null;
  element.replaceChildren(...children);
  if (had === null) return;
  const again = [...element.querySelectorAll("button, a, input, select")].find((each) => nameOf(each) === had);
  (again ?? otherwise).focus({ preventScroll: true });
}

const nameOf = (element) => element.getAttribute("aria-label") ?? element.textContent;

// Text with `commands` in it, each as code.
export function setRich(element, text) {
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.replaceChildren(...text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part)));
}

export function rich(tag, attributes, text) {
  const made = h(tag, attributes);
  setRich(made, text);
  return made;
}

// A figure in its element: `text` null is unknown, which looks and sounds different from zero.
export function setFigure(element, text) {
  const known = text !== null && text !== undefined;
  if (known) setText(element, text);
  else if (!element.classList.contains("unknown")) {
    element.replaceChildren(h("span", { "aria-hidden": "true" }, "?"), h("span", { class: "hidden" }, "unknown"));
  }
  element.classList.toggle("unknown", !known);
  if (!known) element.title = "not known";
  else element.removeAttribute("title");
}

export function figure(text, tag = "span", attributes = {}) {
  const made = h(tag, attributes);
  setFigure(made, text);
  return made;
}

const MARKS = {
  OK: "✓", IDLE: "○", SLOW: "▲", PAUSED: "❙❙", HELD: "◼", STALLED: "✖", UNKNOWN: "?", REWOUND: "↺", ERROR: "✖",
  WAITING: "○", ASKED: "…", RUNNING: "▶", FAILED: "✖", MISSED: "▲", DISABLED: "⊘",
  NOTHING: "○", FINDING: "≠", INCOMPLETE: "…", REPAIRED: "✓",
  equal: "✓", repaired: "✓", drift: "≠", incomplete: "…", error: "✖",
};
const TONES = {
  OK: "good", IDLE: "good", SLOW: "warn", PAUSED: "warn", HELD: "hold", RUNNING: "busy", ASKED: "busy", WAITING: "calm",
  MISSED: "warn", DISABLED: "calm", NOTHING: "calm", FINDING: "warn", INCOMPLETE: "warn", REPAIRED: "good", equal: "good", repaired: "good", incomplete: "warn",
};

export function setState(element, state, more = "") {
  const text = `${MARKS[state] ?? "?"} ${state}${more}`;
  if (element.dataset.state === text) return;
  element.dataset.state = text;
  element.className = `state ${TONES[state] ?? "bad"}`;
  element.replaceChildren(h("span", { "aria-hidden": "true" }, `${MARKS[state] ?? "?"} `), state + more);
}

export function stateOf(state, more) {
  const made = h("span");
  setState(made, state, more);
  return made;
}

export const number = (value) => (value === null || value === undefined ? null : value.toLocaleString("en-US"));

export function seconds(value) {
  if (value === null || value === undefined) return null;
  return value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en-US");
}

export const rate = (value) =>
  value === null || value === undefined ? null : value < 10 ? String(Math.round(value * 10) / 10) : number(Math.round(value));

export function bytes(value) {
  if (value === null || value === undefined) return null;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return unit === "B" ? `${Math.round(value)} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

export function span(value) {
  if (value === null || value === undefined) return null;
  let left = Math.max(0, Math.floor(value));
  const words = [];
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
    const count = Math.floor(left / length);
    left -= count * length;
    if (count || (unit === "s" && !words.length)) words.push(`${count}${unit}`);
  }
  return words.slice(0, 2).join(" ");
}

// The server's clock, as of the last frame: this machine's may be wrong.
let skewUs = 0;
export const keepClock = (atUs) => { skewUs = atUs - Date.now() * 1000; };
export const nowUs = () => Date.now() * 1000 + skewUs;
export const ago = (atUs) => (atUs === null || atUs === undefined ? null : `${span((nowUs() - atUs) / 1e6)} ago`);
export function when(atUs) {
  if (atUs === null || atUs === undefined) return null;
  const left = (atUs - nowUs()) / 1e6;
  return left > 0 ? `in ${span(left)}` : "now";
}
export const clock = (atUs) => new Date(atUs / 1000).toLocaleString("sv-SE");

// Rows of a table by key: kept, changed in place and put in order, so that focus stays where it is.
export class Rows {
  constructor(body, make) {
    this.body = body;
    this.make = make;
    this.known = new Map();
  }

  update(items, keyOf) {
    const focused = document.activeElement;
    const wanted = new Set();
    let before = this.body.firstElementChild;
    for (const item of items) {
      const key = keyOf(item);
      wanted.add(key);
      let entry = this.known.get(key);
      if (!entry) this.known.set(key, (entry = this.make(item)));
      entry.update(item);
      if (entry.row === before) before = before.nextElementSibling;
      else this.body.insertBefore(entry.row, before);
    }
    for (const [key, entry] of this.known) {
      if (wanted.has(key)) continue;
      entry.row.remove();
      this.known.delete(key);
    }
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  }
}

export function table(caption, heads, className = "") {
  const body = h("tbody");
  const row = h("tr", {}, ...heads.map(([text, kind]) => h("th", { scope: "col", class: kind ?? null }, text)));
  const made = h("table", { class: className }, h("caption", {}, caption), h("thead", {}, row), body);
  return { element: h("div", { class: "scroll" }, made), body, table: made };
}

const SVG = "http://www.w3.org/2000/svg";

// A line of the last seconds; a gap where a value is not known, or none is there for `gapS`.
export class Spark {
  constructor(spanS, gapS, width = 120, height = 20) {
    Object.assign(this, { spanS, gapS, width, height });
    this.element = document.createElementNS(SVG, "svg");
    this.path = document.createElementNS(SVG, "path");
    this.element.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.element.setAttribute("class", "spark");
    this.element.setAttribute("role", "img");
    this.element.append(this.path);
  }

  // `points`: [seconds, value], the oldest first, up to now.
  draw(points) {
    const known = points.filter(([, value]) => value !== null);
    const values = known.map(([, value]) => value);
    const top = Math.max(1, ...values);
    const nowS = points.at(-1)?.[0] ?? 0;
    let path = "";
    let lastS = -Infinity;
    for (const [atS, value] of points) {
      if (value === null) {
        lastS = -Infinity;
        continue;
      }
      const x = this.width * (1 - (nowS - atS) / this.spanS);
      const y = this.height - 1 - ((this.height - 2) * value) / top;
      path += `${atS - lastS > this.gapS ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
      lastS = atS;
    }
    this.path.setAttribute("d", path);
    const most = values.length ? `at most ${Math.max(...values).toFixed(1)} s` : "unknown";
    const sinceS = known.length ? Math.round(nowS - known[0][0]) : 0;
    this.element.setAttribute("aria-label", `lag of the last ${sinceS} s: ${most}`);
  }
}
