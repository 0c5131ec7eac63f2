// A flow: its partitions, its past, what it holds and what the target refused, its comparisons; and what
// can be done about it. What cannot be taken back is foretold first, by the command itself.

import { ask, button, change, get } from "./api.js";
import { drawPast } from "./chart.js";
import { ago, figure, h, number, rate, replaceChildren, seconds, setRich, setState, setText, stateOf, table } from "./dom.js";

const AGAIN_MS = 2000;
const SLOWLY_MS = 15000;
const PAST_MS = 10000; // a step of the finest
const POINTS = 360;
const FOLLOW_MS = 700;
const KEYS_SHOWN = 100;
const CELLS_SHOWN = 12;
const WHY_LIMIT = 200; // as the command has it
const ENDED = { 0: "OK", 1: "FINDING", 3: "INCOMPLETE", 4: "REPAIRED" }; // by exit code

export class FlowPage {
  constructor(root, name) {
    this.name = name;
    this.path = `/api/flows/${encodeURIComponent(name)}`;
    this.admin = false;
    this.state = h("span");
    this.about = h("p", { class: "muted" });
    this.problem = h("p", { class: "bad", role: "alert" });
    this.reason = h("p", { class: "reason" });
    this.cards = h("dl", { class: "cards" });
    this.held = h("section", { hidden: true, "aria-label": "Held" });
    this.chart = h("div", { class: "chart" });
    this.hours = h("select", { "aria-label": "How far back the chart reaches" },
      ...[[1, "1 hour"], [24, "24 hours"], [168, "7 days"]].map(([hours, text]) => h("option", { value: hours }, text)));
    this.hours.addEventListener("change", () => this.loadPast());
    const partitions = table("Partitions", [["Topic"], ["Partition", "num"], ["Next offset", "num"], ["End", "num"], ["Waiting", "num"], ["Lag s", "num"]]);
    this.partitions = partitions.body;
    this.letters = h("div");
    this.runs = h("div");
    this.acts = h("div", { class: "acts-box" });
    this.pausing = h("div", { class: "do" });
    this.output = h("section", { class: "output", hidden: true, "aria-label": "What the command says" });
    this.title = h("h2", { tabindex: "-1" }, name);
    root.replaceChildren(
      h("p", {}, h("a", { href: "#/" }, "← all flows")),
      h("div", { class: "bar" }, this.title, this.state),
      this.about, this.problem, this.reason, this.cards, this.held,
      h("section", { "aria-label": "Latency and lag" }, h("div", { class: "bar" }, h("h3", {}, "Latency and lag"), this.hours), this.chart),
      h("section", { "aria-label": "Actions" }, h("h3", {}, "Do"), this.acts, this.output),
      h("section", { "aria-label": "Dead letters" }, h("h3", {}, "Dead letters"), this.letters),
      h("section", { "aria-label": "Comparisons" }, h("h3", {}, "Comparisons"), this.runs),
      h("section", { "aria-label": "Partitions" }, h("h3", {}, "Partitions"), partitions.element));
    this.timers = [setInterval(() => this.load(), AGAIN_MS), setInterval(() => this.loadSlowly(), SLOWLY_MS), setInterval(() => this.loadPast(), PAST_MS)];
    this.load().then(() => this.loadSlowly());
    this.loadPast();
  }

  close() {
    this.timers.forEach(clearInterval);
    this.drawn?.destroy();
    this.closed = true;
  }

  update(frame) {
    if (this.made && this.admin === frame.admin) return;
    this.made = true;
    this.admin = frame.admin;
    this.offer();
  }

  async load() {
    let flow = null;
    try {
      flow = await get(this.path);
      setText(this.problem, "");
    } catch (error) {
      setText(this.problem, error.message);
      return;
    }
    if (this.closed) return;
    this.flow = flow;
    setState(this.state, flow.state);
    if (this.parked !== flow.parked && this.parked !== undefined) this.loadSlowly();
    this.parked = flow.parked;
    setText(this.about, `${flow.from} → ${flow.to}`);
    setRich(this.reason, flow.reason);
    const latency = flow.latency_ms ?? {};
    const proof = flow.proof;
    const cards = [
      ["Lag", seconds(flow.lag_s), " s"], ["Waiting", number(flow.lag_records), " records"], ["Rate", rate(flow.rate), "/s"],
      ["p50", seconds(latency.p50), " ms"], ["p99", seconds(latency.p99), " ms"], ["Captured", number(flow.captured), ""],
      ["Applied", number(flow.applied), ""], ["Parked", number(flow.parked), " keys"],
    ];
    this.cards.replaceChildren(...cards.flatMap(([title, text, unit]) => [h("div", {}, h("dt", {}, title), h("dd", {}, figure(text), text === null ? "" : unit))]),
      h("div", {}, h("dt", {}, "Last proof"), h("dd", {}, proof ? stateOf(proof.verdict, `, ${ago(proof.ended_us)}`) : "never proven")));
    this.partitions.replaceChildren(...flow.partitions.map((each) => h("tr", {},
      h("th", { scope: "row" }, each.topic), h("td", { class: "num" }, String(each.partition)),
      ...[number(each.offset), number(each.end), number(each.lag_records), seconds(each.lag_s)].map((text) => figure(text, "td", { class: "num" })))));
    this.showHeld(flow.held);
    this.showPause(flow.paused);
  }

  async loadPast() {
    try {
      const past = await get(`${this.path}/history?hours=${this.hours.value}&points=${POINTS}`);
      if (!this.closed) this.drawn = await drawPast(this.chart, past, this.drawn, () => this.closed);
    } catch (error) {
      this.drawn?.destroy();
      this.drawn = null;
      this.chart.replaceChildren(h("p", { class: "unknown" }, `Not known: ${error.message}`));
    }
  }

  showHeld(held) {
    const key = JSON.stringify(held) + this.admin;
    if (key === this.heldKey) return;
    this.heldKey = key;
    replaceChildren(this.held, held.length === 0 ? [] : [h("h3", {}, "Held: it waits for you"),
      h("ul", {}, ...held.map((gate) => h("li", {}, `${gate.kind} of ${gate.topic}: ${number(gate.rows) ?? "an unknown number of"} rows${gate.table_rows ? ` of ${number(gate.table_rows)}` : ""}, since ${ago(gate.since_us)}`))),
      h("p", { class: "buttons" },
        this.confirmed("Approve", "approve", "Let it pass? The rows go from the target, too.", true), " ",
        this.confirmed("Refuse", "refuse", "Drop it? The target keeps rows that the source has no more; the dead-letter topic keeps a record."))], this.title);
    this.held.hidden = held.length === 0;
  }

  showPause(paused) {
    const key = JSON.stringify(paused) + this.admin;
    if (key === this.pauseKey) return;
    this.pauseKey = key;
    const { admin } = this;
    if (paused) {
      const resume = button("Resume", () => this.run("resume", {}), { admin, primary: true });
      replaceChildren(this.pausing, [resume,
        h("span", { class: "muted" }, `it goes on from where it is; paused by ${paused.by}, ${ago(paused.since_us)}${paused.why ? `: ${paused.why}` : ""}`)], resume);
      return;
    }
    const why = h("input", { type: "text", size: 24, maxlength: WHY_LIMIT, "aria-label": "Why it is paused" });
    const pause = button("Pause", () => this.run("pause", why.value.trim() ? { why: why.value.trim() } : {}), { admin });
    replaceChildren(this.pausing, [pause,
      h("label", {}, "why ", why), h("span", { class: "muted" }, "nothing more of it is written, and its place is kept; the others go on")], pause);
  }

  confirmed(text, verb, question, primary = false) {
    return button(text, async () => {
      if (await ask(`${text}: ${this.name}`, question, { yes: text })) await this.run(verb, {});
    }, { admin: this.admin, primary });
  }

  // -- what can be done

  offer() {
    const { admin } = this;
    const from = h("input", { type: "text", value: "10m", size: 18, "aria-label": "Replay from: how long ago, or a time", spellcheck: "false" });
    const all = h("input", { type: "checkbox" });
    all.addEventListener("change", () => { from.disabled = all.checked; });
    const extra = h("input", { type: "checkbox" });
    const replay = () => (all.checked ? { from_start: true } : { from_time: from.value.trim() });
    this.acts.replaceChildren(
      h("div", { class: "do" }, button("Compare", () => this.run("reconcile", {}), { admin, primary: true }),
        h("span", { class: "muted" }, "row by row with the source; changes nothing")),
      h("div", { class: "do" }, button("Repair…", () => this.foretold("reconcile", { repair: true, delete_extra: extra.checked }), { admin }),
        h("label", {}, extra, " delete rows that only the target has"), h("span", { class: "muted" }, "publishes what differs again; foretold first")),
      h("div", { class: "do" }, button("Replay…", () => this.foretold("replay", replay()), { admin }),
        h("label", {}, "from ", from), h("label", {}, all, " all of the log"), h("span", { class: "muted" }, "rows that are newer stay; foretold first")),
      this.pausing);
    this.heldKey = this.lettersKey = this.pauseKey = null;
    if (this.flow) {
      this.showHeld(this.flow.held);
      this.showPause(this.flow.paused);
    }
    if (this.known) this.showLetters(this.known);
  }

  // Runs a command and shows what it says; its action when it is over, or null when it was not begun.
  async run(verb, body) {
    let action = await change(`${this.path}/${verb}`, body);
    if (action === null) return null;
    const said = h("pre", { tabindex: "0" });
    const state = h("span");
    const cancel = button("Cancel", () => change(`/api/actions/${action.action}/cancel`), { admin: this.admin });
    this.output.hidden = false;
    this.output.replaceChildren(h("div", { class: "bar" }, h("code", {}, action.command), state, cancel), said);
    for (;;) {
      setText(said, action.text || "…");
      const over = action.ended_us !== null;
      const ended = body.dry_run && verb !== "reconcile" && action.exit_code === 1 ? "NOTHING" : ENDED[action.exit_code] ?? "FAILED";
      setState(state, over ? ended : "RUNNING", over ? `, exit ${action.exit_code ?? "unknown"}` : "");
      if (over || this.closed) break;
      await new Promise((resolve) => setTimeout(resolve, FOLLOW_MS));
      action = await get(`/api/actions/${action.action}`);
    }
    if (document.activeElement === cancel) said.focus();
    cancel.remove();
    this.loadSlowly();
    return action;
  }

  // As a dry run; then, with what it said in view, for good.
  async foretold(verb, body) {
    const asked = document.activeElement; // the button
    const dry = await this.run(verb, { ...body, dry_run: true });
    if (dry === null || this.closed) return;
    const fine = dry.exit_code === 0 || (verb === "reconcile" && dry.exit_code === 1);
    if (!fine) {
      this.output.append(h("p", { class: "muted" }, "There is nothing to do, or it cannot be done: nothing was changed."));
      return;
    }
    if (verb === "reconcile" && dry.exit_code === 0) {
      this.output.append(h("p", { class: "muted" }, "Nothing differs beyond the threshold: there is nothing to repair."));
      return;
    }
    const go = button("Do it", async () => {
      (asked.isConnected ? asked : this.title).focus({ preventScroll: true }); // this one goes
      await this.run(verb, { ...body, dry_run: false, after: dry.action });
    }, { admin: this.admin, primary: true });
    this.output.append(h("p", { class: "buttons" }, go, h("span", { class: "muted" }, " That was a dry run: nothing has been changed yet.")));
    go.focus();
  }

  // -- dead letters and comparisons

  async loadSlowly() {
    const none = this.flow?.parked === 0 && !this.flow.waiting; // a list takes a process of its own
    const letters = (none ? Promise.resolve({ count: 0, keys: [] }) : get(`${this.path}/dead-letters`)).then((found) => this.showLetters(found), (error) => this.letters.replaceChildren(h("p", { class: "unknown" }, `Not known: ${error.message}`)));
    const runs = get(`/api/reconciles?flow=${encodeURIComponent(this.name)}&limit=10`).then((found) => this.showRuns(found), (error) => this.runs.replaceChildren(h("p", { class: "unknown" }, `Not known: ${error.message}`)));
    await Promise.all([letters, runs]);
  }

  showLetters(found) {
    this.known = found;
    const key = JSON.stringify(found) + this.admin;
    if (key === this.lettersKey) return;
    this.lettersKey = key;
    if (!found.count) {
      replaceChildren(this.letters, [h("p", { class: "muted" }, "The target has refused nothing that still waits.")], this.title);
      return;
    }
    const made = table(`${number(found.count)} ${found.count === 1 ? "key waits" : "keys wait"}`, [["Key"], ["Why"], ["Since"], ["Changes", "num"], [""]]);
    made.body.replaceChildren(...found.keys.slice(0, KEYS_SHOWN).map((each) => {
      const one = { table: each.table, key: each.key };
      return h("tr", {}, h("th", { scope: "row" }, each.key, h("span", { class: "why" }, each.table)),
        h("td", { title: each.reason.message }, `${each.reason.code}: ${each.reason.message.split("\n")[0].slice(0, 120)}`),
        h("td", { class: "time" }, ago(each.since_us)), h("td", { class: "num" }, number(each.changes)),
        h("td", { class: "acts" }, button("Retry", () => this.run("dead-letters/retry", one), { admin: this.admin, label: `Retry ${each.key}` }), " ",
          button("Discard…", () => this.foretold("dead-letters/discard", one), { admin: this.admin, label: `Discard ${each.key}` })));
    }));
    replaceChildren(this.letters, [made.element, h("p", { class: "buttons" },
      button("Retry all", () => this.run("dead-letters/retry", {}), { admin: this.admin }), " ",
      button("Discard all…", () => this.foretold("dead-letters/discard", {}), { admin: this.admin }))], this.title);
  }

  showRuns(found) {
    if (!found.length) {
      this.runs.replaceChildren(h("p", { class: "muted" }, "It was never compared."));
      return;
    }
    const key = JSON.stringify(found.map((run) => [run.run, run.ended]));
    if (key === this.runsKey) return;
    this.runsKey = key;
    const made = table("The newest first; drift is a share of the rows", [["Began"], ["Table"], ["Verdict"], ["Drift", "num"], ["Missing", "num"], ["Extra", "num"], ["Different", "num"]]);
    for (const run of found) {
      const began = h("td", { class: "time", title: run.run }, `${run.began.replace("T", " ").replace("Z", "")} UTC`);
      if (run.report === null) {
        made.body.append(h("tr", {}, began, h("td", { colspan: 6, class: "muted" }, run.ended ? "no report" : "runs, or was broken off")));
        continue;
      }
      for (const each of run.report.tables) {
        made.body.append(h("tr", {}, began.cloneNode(true), h("th", { scope: "row" }, each.source, ...cells(each.groups)),
          h("td", { title: each.reason || null }, stateOf(each.verdict)),
          figure(share(each.drift), "td", { class: "num" }),
          ...["missing", "extra", "different"].map((name) => h("td", { class: each[name] ? "num bad" : "num" }, number(each[name])))));
      }
    }
    this.runs.replaceChildren(made.element);
  }
}

const share = (drift) => (drift === null || drift === undefined ? null : drift === 0 ? "0" : `${(drift * 100).toPrecision(2)}%`);

// Drift by group and window, where it was counted: the worst of them.
function cells(groups) {
  const rows = (groups?.cells ?? []).slice(0, CELLS_SHOWN);
  if (!rows.length) return [];
  const made = table("The worst groups and windows", [["Group"], ["Window"], ["Source", "num"], ["Target", "num"], ["Missing", "num"], ["Extra", "num"], ["Different", "num"], ["Drift", "num"]]);
  made.body.replaceChildren(...rows.map((row) => h("tr", {},
    h("th", { scope: "row" }, row.group.map((each) => each ?? "null").join(", ") || "all"), h("td", {}, row.window ?? "all"),
    ...["source_rows", "target_rows", "missing", "extra", "different"].map((name) => figure(number(row[name]), "td", { class: "num" })),
    figure(share(row.drift), "td", { class: "num" }))));
  return [h("details", {}, h("summary", {}, `${number(groups.total)} groups and windows, ${number(groups.above_threshold)} above the threshold`), made.element)];
}
