// The page: one snapshot a second, shown as the overview, a flow or a job, by the address's #.

import { ask, askKey, follow, key } from "./api.js";
import { keepClock, setRich, setText } from "./dom.js";
import { FlowPage } from "./flow.js";
import { JobPage } from "./jobs.js";
import { Overview } from "./overview.js";

const STALE_MS = 4000;

const by = (id) => document.getElementById(id);
const overview = new Overview(by("overview"));
let detail = null;
let frame = null;
let frameAt = 0;
let spoken = "";

// [kind, name] of what is shown alone; [] is the overview, as it is for what is no address of ours.
function place() {
  const [, kind, name] = location.hash.match(/^#\/(flow|job)\/(.+)$/) ?? [];
  try {
    return kind ? [kind, decodeURIComponent(name)] : [];
  } catch {
    return [];
  }
}

function route() {
  const [kind, name] = place();
  detail?.close();
  detail = kind ? new (kind === "flow" ? FlowPage : JobPage)(by("detail"), name) : null;
  by("overview").hidden = detail !== null;
  by("detail").hidden = detail === null;
  if (frame) (detail ?? overview).update(frame);
  window.scrollTo(0, 0);
  if (detail) by("detail").querySelector("h2")?.focus();
}

function show(next) {
  frame = next;
  frameAt = Date.now();
  keepClock(next.at_us);
  const tone = next.ok ? (next.findings.length ? "warn" : "good") : "bad";
  by("verdict").className = `verdict ${tone}`;
  setText(by("mark"), { good: "✓", warn: "!", bad: "✖" }[tone]);
  setRich(by("sentence"), next.sentence);
  setText(by("name"), next.name);
  document.title = `${next.ok ? "" : "✖ "}${next.name} · Tailrace`;
  if (spoken !== tone) setText(by("said"), next.sentence); // each second's figures are not read out
  spoken = tone;
  by("banner").hidden = next.enabled;
  if (!next.enabled) setText(by("banner"), "DISABLED: control.enabled is false, and no job runs");
  overview.take(next);
  (detail ?? overview).update(next);
  link("live");
}

function link(text) {
  const live = text === "live";
  by("link").className = `link ${live ? "live" : "dead"}`;
  setText(by("link"), live ? "● live" : `○ ${text}`);
  document.body.classList.toggle("stale", !live);
}

setInterval(() => {
  if (frame && Date.now() - frameAt > STALE_MS) {
    link(`no news for ${Math.round((Date.now() - frameAt) / 1000)} s: what is shown is old`);
  }
}, 1000);

by("key").addEventListener("click", async () => {
  if (!key.get()) await askKey("With the admin key things can be changed here.");
  else if (await ask("Key", "Forget the key that this tab has?", { yes: "Forget it" })) key.set("");
});

by("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says what is shown
  by("main").focus();
});
addEventListener("hashchange", route);
addEventListener("keydown", (event) => {
  if (by("ask").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "/" && !typing && !detail) {
    event.preventDefault();
    overview.filter.focus();
  } else if (event.key === "Escape" && detail) {
    location.hash = "#/";
  } else if (event.key === "Escape" && typing) {
    event.target.blur();
  }
});
route();
follow(show, link);
