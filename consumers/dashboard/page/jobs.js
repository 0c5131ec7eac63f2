// A job: its last runs and what they said, and when it runs, which can be changed beside the file.

import { ask, button, change, get } from "./api.js";
import { ago, clock, h, replaceChildren, seconds, setState, setText, stateOf, table, when } from "./dom.js";

const AGAIN_MS = 2000;
const KEYS = ["every", "at", "cron", "after", "stale_after", "max_runtime", "grace", "retries", "priority", "overlap", "enabled"];
const EXAMPLES = { every: "10m", at: '["02:00"]', cron: "30 6 * * mon-fri", after: '["other"]', overlap: "queue", enabled: "false", retries: "2", priority: "1" };

export class JobPage {
  constructor(root, name) {
    this.path = `/api/jobs/${encodeURIComponent(name)}`;
    this.name = name;
    this.state = h("span");
    this.about = h("p", { class: "muted" });
    this.problem = h("p", { class: "bad", role: "alert" });
    const runs = table("The last 30 runs, the newest first", [["Run"], ["Began"], ["Took s", "num"], ["Outcome"], ["By"], ["What it said"]]);
    this.body = runs.body;
    this.acts = h("p", { class: "buttons" });
    this.changes = h("ul", { class: "findings" });
    this.changing = h("div", { class: "do" });
    this.title = h("h2", { tabindex: "-1" }, `Job ${name}`);
    root.replaceChildren(
      h("p", {}, h("a", { href: "#/" }, "← all flows")),
      h("div", { class: "bar" }, this.title, this.state),
      this.about, this.problem, this.acts,
      h("section", { "aria-label": "Schedule" }, h("h3", {}, "Changed beside the file"), this.changes, this.changing),
      h("section", { "aria-label": "Runs" }, h("h3", {}, "Runs"), runs.element));
    this.timer = setInterval(() => this.load(), AGAIN_MS);
    this.load();
  }

  close() {
    clearInterval(this.timer);
  }

  update(frame) {
    if (this.admin === frame.admin) return;
    this.admin = frame.admin;
    const act = (text, verb) => button(text, async () => {
      await change(`${this.path}/${verb}`);
      await this.load();
    }, { admin: frame.admin });
    this.offer();
    this.changesKey = null;
    this.pause = act("Pause", "pause");
    this.resume = act("Resume", "resume");
    this.acts.replaceChildren(act("Run now", "run"), " ", this.pause, this.resume);
    this.showPaused();
  }

  showPaused() {
    if (this.pause === undefined) return;
    const [shown, other] = this.paused ? [this.resume, this.pause] : [this.pause, this.resume];
    const had = document.activeElement === other;
    shown.hidden = false;
    other.hidden = true;
    if (had) shown.focus();
  }

  // A value is JSON, or else the text as it stands; none is as if the file did not have the key.
  offer() {
    const name = h("select", { "aria-label": "What to change" }, ...KEYS.map((each) => h("option", { value: each }, each)));
    const value = h("input", { type: "text", size: 24, placeholder: EXAMPLES.every, "aria-label": "Its new value", spellcheck: "false" });
    name.addEventListener("change", () => { value.placeholder = EXAMPLES[name.value] ?? "1h"; });
    const set = button("Change", async () => {
      await change(`${this.path}/change`, { key: name.value, value: parsed(value.value.trim()) });
      value.value = "";
      await this.load();
    }, { admin: this.admin });
    this.changing.replaceChildren(name, value, set, h("span", { class: "muted" }, "in force at once; tailrace config export prints it for the file"));
  }

  showChanges(found) {
    const own = found.filter((each) => each.job === this.name);
    const key = JSON.stringify(own) + this.admin;
    if (key === this.changesKey) return;
    this.changesKey = key;
    if (!own.length) {
      replaceChildren(this.changes, [h("li", { class: "muted" }, "Nothing: the file counts.")], this.title);
      return;
    }
    replaceChildren(this.changes, own.map((each) => h("li", {},
      h("code", {}, `${each.key}: ${JSON.stringify(each.value)}`),
      ` in place of ${JSON.stringify(each.before)}, by ${each.by}, ${clock(each.at_us)}`,
      each.problem ? h("strong", { class: "bad" }, ` ✖ not in force: ${each.problem}`) : "", " ",
      button("Take back", async () => {
        if (!(await ask("Take back", "Let the file count again?", { yes: "Take back" }))) return;
        await change(`/api/overrides/${each.override}/rollback`);
        await this.load();
      }, { admin: this.admin, label: `Take back ${each.key}` }))), this.title);
  }

  async load() {
    let job = null;
    try {
      job = await get(this.path);
      this.showChanges((await get("/api/overrides")).overrides);
      setText(this.problem, "");
    } catch (error) {
      setText(this.problem, error.message);
      return;
    }
    setState(this.state, job.state, job.stale ? ", STALE" : "");
    this.paused = job.paused;
    this.showPaused();
    setText(this.about, `${job.kind} ${job.what}${job.when ? `, ${job.when}` : ""}; next ${job.next_us === null ? "–" : `${when(job.next_us)} (${clock(job.next_us)})`}${job.waits ? `; ${job.waits}` : ""}`);
    const key = JSON.stringify(job.history.map((run) => [run.run, run.outcome]));
    if (key === this.key) return;
    this.key = key;
    this.body.replaceChildren(...job.history.map((run) => h("tr", {},
      h("th", { scope: "row" }, String(run.run)),
      h("td", { title: clock(run.began_us) }, ago(run.began_us)),
      h("td", { class: "num" }, seconds(run.seconds) ?? "–"),
      h("td", {}, run.outcome === null ? stateOf("RUNNING") : h("span", { class: `state ${{ ok: "good", finding: "warn", skipped: "calm" }[run.outcome] ?? "bad"}` }, `${run.outcome === "ok" ? "✓" : run.outcome === "finding" ? "≠" : "✖"} ${run.outcome}`)),
      h("td", {}, run.by),
      h("td", {}, run.text ? h("details", {}, h("summary", {}, summary(run)), h("pre", {}, run.text)) : ""))));
    if (!job.history.length) this.body.replaceChildren(h("tr", {}, h("td", { colspan: 6, class: "muted" }, "It has never run.")));
  }
}

// Its first line, or of what went wrong the last; never one that a table is drawn with.
function summary(run) {
  const lines = run.text.split("\n").filter((line) => /^\s*[\p{L}\p{N}!→-]/u.test(line));
  const line = (run.outcome === "ok" ? lines[0] : lines[lines.length - 1]) ?? run.text.split("\n")[0];
  return line.trim().slice(0, 80);
}

function parsed(text) {
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
