// All on one screen: where the time goes, the slots, the flows, the jobs, what has happened.

import { button, change, get } from "./api.js";
import {
  Rows, Spark, ago, bytes, clock, h, number, rate, rich, seconds, setFigure, setRich, setState, setText, span, table, when,
} from "./dom.js";

const SPARK_S = 120;
const GAP_S = 25; // what is stored has a value each ten seconds, and of the last of them not yet
const HOUR_S = 3600;
const NODES = ["source", "capture", "kafka", "process", "apply", "target"];
const TITLES = { source: "Source", capture: "Capture", kafka: "Kafka", process: "Process, Kafka", apply: "Apply", target: "Target" };
// A hop's figure is of the way into its node; the last one is told at apply, which commits.
const HOPS = { capture: "capture", kafka: null, process: "process", apply: "kafka", target: "apply" };

export class Overview {
  constructor(root) {
    this.root = root;
    this.lags = new Map(); // by flow, [seconds, lag]
    this.seenS = 0;
    this.findings = h("ul", { class: "findings" });
    this.strip = h("ol", { class: "strip", "aria-label": "The way of a change, with the median time of each hop" });
    this.nodes = Object.fromEntries(NODES.map((name) => [name, this.node(name)]));
    this.slots = h("div", { class: "slots" });
    this.filter = h("input", { type: "search", placeholder: "Filter ( / )", "aria-label": "Filter flows by name or state" });
    this.filter.addEventListener("input", () => this.frame && this.flows(this.frame));
    this.count = h("span", { class: "muted" });
    const flows = table("Flows, the worst first", [
      ["Flow"], ["State"], ["Lag s", "num"], ["2 minutes"], ["Rows/s", "num"], ["Waiting", "num"], ["p50 ms", "num"], ["Parked", "num"], ["Last proof"],
    ], "flows");
    const jobs = table("Jobs", [["Job"], ["State"], ["Next"], ["Last"], ["Age"], ["30 runs", "num"], [""]], "jobs");
    this.flowRows = new Rows(flows.body, (row) => this.flowRow(row));
    this.jobRows = new Rows(jobs.body, (job) => this.jobRow(job));
    this.noFlows = h("p", { class: "muted", hidden: true }, "No flow fits.");
    this.jobsNote = h("p", { class: "muted" });
    this.jobsTable = jobs.element;
    this.events = h("ol", { class: "events" });
    this.eventsNote = h("p", { class: "muted" });
    this.processes = h("ul", { class: "parts" });
    this.slotRows = new Rows(this.slots, (source) => this.slotRow(source));
    this.eventRows = new Rows(this.events, (event) => this.eventRow(event));
    this.partRows = new Rows(this.processes, (part) => this.partRow(part));
    root.append(
      this.findings,
      this.strip,
      this.slots,
      h("section", { "aria-label": "Flows" }, h("div", { class: "bar" }, h("h2", {}, "Flows"), this.count, this.filter), flows.element, this.noFlows),
      h("div", { class: "columns" },
        h("section", { "aria-label": "Jobs" }, h("h2", {}, "Jobs"), this.jobsNote, jobs.element),
        h("section", { "aria-label": "Events" }, h("h2", {}, "Events"), this.eventsNote, this.events)),
      h("section", { "aria-label": "Processes" }, h("h2", {}, "Processes"), this.processes),
    );
  }

  // The lags of each second, also while another part of the page is shown.
  take(frame) {
    const lag = frame.flow_columns.indexOf("lag_s");
    const nowS = frame.at_us / 1e6;
    if (nowS - this.seenS > GAP_S) this.fill(this.seenS, nowS);
    this.seenS = nowS;
    const found = new Map();
    for (const row of frame.flows) {
      const kept = this.lags.get(row[0]) ?? [];
      kept.push([nowS, row[lag]]);
      while (nowS - kept[0][0] > SPARK_S) kept.shift();
      found.set(row[0], kept);
    }
    this.lags = found;
  }

  // From the stored history what this page has not seen: it was not open then, or had no connection.
  async fill(fromS, untilS) {
    let past;
    try {
      past = await get(`/api/lag/history?seconds=${SPARK_S}`);
    } catch {
      return; // the lines begin here, then; that the control database is away, the events say
    }
    const middles = past.at_us.map((atUs) => atUs / 1e6 + past.step_s / 2);
    for (const [flow, kept] of this.lags) {
      const stored = past.flows[flow] ?? [];
      const missed = stored.map((value, at) => [middles[at], value]).filter(([atS, value]) => value !== null && atS > fromS && atS < untilS);
      this.lags.set(flow, [...kept, ...missed].sort(([one], [other]) => one - other));
    }
  }

  update(frame) {
    this.frame = frame;
    this.showFindings(frame);
    this.showStrip(frame);
    this.slotRows.update(frame.sources, (source) => source.name);
    this.flows(frame);
    this.jobs(frame);
    this.showEvents(frame);
    this.partRows.update(frame.parts, (part) => `${part.part} ${part.instance}`);
  }

  showFindings(frame) {
    const rest = frame.findings.slice(1);
    const key = JSON.stringify([rest, frame.findings[0]?.text, frame.more_findings]);
    if (key === this.findingsKey) return;
    this.findingsKey = key;
    const advice = (frame.findings[0]?.text ?? "").split("\n").slice(1);
    const items = advice.map((line) => rich("li", { class: "advice" }, line.trim()));
    for (const finding of rest) {
      const [first, ...more] = finding.text.split("\n");
      items.push(h("li", { class: finding.finding ? "bad" : "warn" },
        h("span", { "aria-hidden": "true" }, finding.finding ? "✖ " : "! "), rich("span", {}, first),
        ...more.map((line) => rich("span", { class: "advice" }, ` ${line.trim()}`))));
    }
    if (frame.more_findings) items.push(h("li", { class: "muted" }, `and ${frame.more_findings} more: tailrace status`));
    this.findings.replaceChildren(...items);
  }

  node(name) {
    const hop = h("span", { class: "hop" });
    const state = h("span", { class: "where" });
    const item = h("li", { class: "node" },
      name === "source" ? null : h("span", { class: "arrow" }, h("span", { "aria-hidden": "true" }, "→"), hop),
      h("span", { class: "box" }, h("strong", {}, TITLES[name]), state));
    this.strip.append(item);
    return { item, hop, state };
  }

  showStrip(frame) {
    const { stages, states, slowest, broken, kafka_away: away } = frame.strip;
    const p50 = Object.fromEntries(stages.map((stage) => [stage.stage, stage]));
    for (const name of NODES) {
      const { item, hop, state } = this.nodes[name];
      if (name === "process") {
        item.hidden = !("process" in states);
        if (item.hidden) continue;
      }
      const stage = HOPS[name];
      const worst = stage && stage === slowest;
      const stuck = broken.includes(name) || (name === "kafka" && away);
      item.classList.toggle("slowest", Boolean(worst));
      item.classList.toggle("broken", Boolean(stuck));
      if (stage) {
        const figureMs = p50[stage].p50_ms;
        setFigure(hop, figureMs === null ? null : `${seconds(figureMs)} ms${worst ? " slowest" : ""}`);
        hop.title = p50[stage].flow ? `median of ${p50[stage].flow}` : "not known";
      }
      if (name === "kafka") setText(state, away ? "does not answer" : "answers");
      else if (name in states) setFigure(state, states[name]);
      else if (name === "source") setText(state, `${frame.sources.length} ${frame.sources.length === 1 ? "source" : "sources"}`);
      else setText(state, `${frame.flows.length} ${frame.flows.length === 1 ? "flow" : "flows"}`);
    }
  }

  slotRow(first) {
    const guarded = first.wal_warn_bytes !== null;
    const state = h("span", { class: "where" });
    const kept = h("span");
    const meter = h("meter", { min: 0, max: 1, low: 0.5, high: 0.8, optimum: 0, "aria-label": `WAL that the slot of ${first.name} keeps, as a share of its limit` });
    const growth = h("span", { class: "muted" });
    const left = h("span");
    const lag = h("span");
    const speed = h("span");
    const more = h("span", { class: "busy" });
    const gaps = h("span", { class: "bad" });
    const slot = guarded ? [h("span", {}, "slot keeps ", kept, ` of ${bytes(first.wal_warn_bytes)}`), meter, growth, left] : [];
    const row = h("div", { class: "slot" }, h("strong", {}, first.name), state, ...slot,
      h("span", { class: "muted" }, "capture lag ", lag, " s, ", speed, " rows/s"), more, gaps);
    return {
      row,
      update: (source) => {
        setText(state, source.state);
        state.className = `where ${source.state}`;
        state.title = source.reason;
        setFigure(kept, bytes(source.slot_wal_bytes));
        meter.hidden = source.slot_wal_bytes === null;
        meter.value = guarded ? Math.min(1, (source.slot_wal_bytes ?? 0) / source.wal_warn_bytes) : 0;
        const grows = source.wal_bytes_s;
        setText(growth, grows === null ? "" : `${grows < 0 ? "−" : "+"}${bytes(Math.abs(grows))}/s`);
        const soon = source.to_limit_s !== null && source.to_limit_s < HOUR_S;
        setText(left, source.to_limit_s === null ? "" : `${soon ? "! " : ""}limit in ${span(source.to_limit_s)}`);
        left.className = soon ? "bad" : "muted";
        setFigure(lag, seconds(source.lag_s));
        setFigure(speed, rate(source.rate));
        const copy = source.snapshot;
        const words = [copy ? `first copy: ${copy.tables_done} of ${copy.tables} tables` : "", source.backfills ? `${source.backfills} backfills` : ""];
        setText(more, words.filter(Boolean).join(", "));
        setText(gaps, source.gaps ? `${source.gaps} gaps` : "");
      },
    };
  }

  flows(frame) {
    const columns = Object.fromEntries(frame.flow_columns.map((name, at) => [name, at]));
    const wanted = this.filter.value.trim().toLowerCase();
    const rows = frame.flows.filter((row) => !wanted || row[0].toLowerCase().includes(wanted) || row[1].toLowerCase().startsWith(wanted));
    setText(this.count, wanted ? `${rows.length} of ${frame.flows.length}` : `${frame.flows.length}`);
    this.noFlows.hidden = rows.length > 0;
    this.flowRows.update(rows.map((row) => Object.fromEntries(Object.entries(columns).map(([name, at]) => [name, row[at]]))), (flow) => flow.name);
  }

  flowRow(first) {
    const cells = Array.from({ length: 9 }, () => h("td"));
    const [, state, lag, , perSecond, waiting, p50, parked, proof] = cells;
    for (const cell of [lag, perSecond, waiting, p50, parked]) cell.className = "num";
    const spark = new Spark(SPARK_S, GAP_S);
    const name = h("th", { scope: "row" }, h("a", { href: `#/flow/${encodeURIComponent(first.name)}` }, first.name));
    const badge = h("span");
    const why = h("span", { class: "why" });
    state.append(badge, why);
    cells[3].append(spark.element);
    const row = h("tr", {}, name, ...cells.slice(1));
    return {
      row,
      update: (flow) => {
        setState(badge, flow.state, flow.held ? ` ${flow.held}` : "");
        const reason = flow.reason === null ? "" : this.frame.reasons[flow.reason];
        setText(why, reason);
        why.title = reason;
        setFigure(lag, seconds(flow.lag_s));
        spark.draw(this.lags.get(flow.name) ?? []);
        setFigure(perSecond, rate(flow.rate));
        setFigure(waiting, number(flow.lag_records));
        setFigure(p50, seconds(flow.p50_ms));
        setFigure(parked, number(flow.parked));
        parked.classList.toggle("bad", flow.parked > 0);
        if (flow.proof === null) setText(proof, "never proven");
        else setText(proof, `${flow.proof === "equal" || flow.proof === "repaired" ? "✓" : "≠"} ${flow.proof}, ${ago(flow.proved_us)}`);
        proof.className = flow.proof === null ? "muted" : flow.proof === "equal" || flow.proof === "repaired" ? "good" : "bad";
      },
    };
  }

  jobs(frame) {
    const jobs = frame.jobs;
    const none = jobs !== null && jobs.length === 0;
    this.jobsTable.hidden = jobs === null || none;
    const who = frame.scheduler ? `run by ${frame.scheduler}` : "no scheduler runs: tailrace serve";
    setText(this.jobsNote, jobs === null ? "The control database does not answer." : none ? "The file has no jobs." : who + (frame.more_jobs ? `; ${frame.more_jobs} more: tailrace jobs` : ""));
    this.jobRows.update(jobs ?? [], (job) => job.name);
  }

  jobRow(first) {
    const badge = h("span");
    const waits = h("span", { class: "why" });
    const [next, last, age, share] = Array.from({ length: 4 }, () => h("td"));
    share.className = "num";
    for (const cell of [next, last, age]) cell.className = "time";
    const path = `/api/jobs/${encodeURIComponent(first.name)}`;
    const admin = this.frame.admin;
    let paused = false;
    const run = button("Run now", () => change(`${path}/run`), { admin, label: `Run ${first.name} now` });
    const pause = button("Pause", () => change(`${path}/${paused ? "resume" : "pause"}`), { admin });
    const row = h("tr", {},
      h("th", { scope: "row" }, h("a", { href: `#/job/${encodeURIComponent(first.name)}` }, first.name), h("span", { class: "why" }, `${first.kind} ${first.what}`)),
      h("td", {}, badge, waits), next, last, age, share, h("td", { class: "acts" }, run, " ", pause));
    return {
      row,
      update: (job) => {
        setState(badge, job.state, job.stale ? ", STALE" : "");
        setText(waits, [job.overridden?.length ? `changed: ${job.overridden.join(", ")}` : "", job.waits].filter(Boolean).join("; "));
        paused = job.state === "PAUSED";
        setText(pause, paused ? "Resume" : "Pause");
        pause.setAttribute("aria-label", `${paused ? "Resume" : "Pause"} ${job.name}`);
        if (job.next_us === null) setText(next, paused ? "when asked" : "–");
        else setText(next, when(job.next_us));
        if (job.last) setText(last, `${job.last.outcome ?? "runs"}, ${ago(job.last.began_us)}`);
        else setText(last, "never");
        setFigure(age, span(job.age_s));
        age.classList.toggle("bad", Boolean(job.stale));
        setFigure(share, job.success_rate === null ? null : `${Math.round(job.success_rate * 100)}%`);
      },
    };
  }

  showEvents(frame) {
    const none = frame.events === null ? "Not known: the control database does not answer." : "Nothing has happened.";
    setText(this.eventsNote, frame.events?.length ? "" : none);
    this.eventRows.update(frame.events ?? [], (event) => event.event);
  }

  eventRow(first) {
    const time = h("time", { datetime: new Date(first.since_us / 1000).toISOString(), title: clock(first.since_us) });
    const state = h("span");
    const text = h("span");
    return {
      row: h("li", {}, time, state, text),
      update: (event) => {
        const open = event.resolved_us === null;
        setText(time, ago(event.since_us));
        state.className = `state ${open ? "bad" : "calm"}`;
        setText(state, open ? `✖ ${event.rule}` : `✓ ${event.rule}, over`);
        setRich(text, event.text.split("\n")[0]);
      },
    };
  }

  partRow(first) {
    const state = h("span");
    const about = h("span", { class: "muted" });
    const row = h("li", {}, h("strong", {}, first.part), state, about);
    return {
      row,
      update: (part) => {
        row.title = part.reason;
        state.className = `where ${part.state}`;
        setText(state, part.state);
        const restarts = part.restarts ? `, ${part.restarts} restarts` : "";
        setText(about, `${part.instance}, up ${span((this.frame.at_us - part.started_us) / 1e6)}${restarts}`);
      },
    };
  }
}
