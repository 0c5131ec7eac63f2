// The past of a flow, drawn by uPlot, which is fetched from this server when a flow is first looked at.

import { h } from "./dom.js";

let library = null;

function load() {
  library ??= new Promise((resolve, reject) => {
    document.head.append(h("link", { rel: "stylesheet", href: "/page/vendor/uPlot.min.css" }));
    const script = h("script", { src: "/page/vendor/uPlot.iife.min.js" });
    script.addEventListener("load", () => resolve(window.uPlot));
    script.addEventListener("error", () => reject(new Error("uPlot was not sent")));
    document.head.append(script);
  });
  return library;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// In one unit, which has room beside the axis.
function milliseconds(ticks) {
  const whole = Math.max(...ticks) >= 10_000;
  return ticks.map((tick) => (whole ? `${tick / 1000} s` : `${tick} ms`));
}

export async function drawPast(root, past, drawn, closed) {
  const data = [past.at_us.map((at) => at / 1e6), past.p50_ms, past.p99_ms, past.lag_worst_s];
  const last = (values) => [...values].reverse().find((value) => value !== null) ?? "unknown";
  root.setAttribute("role", "img");
  root.setAttribute("aria-label", `Latency and lag by time; last p50 ${last(past.p50_ms)} ms, p99 ${last(past.p99_ms)} ms, lag ${last(past.lag_worst_s)} s`);
  if (past.lag_worst_s.every((value) => value === null) && past.p50_ms.every((value) => value === null)) {
    drawn?.destroy();
    root.replaceChildren(h("p", { class: "muted" }, "Nothing is known of that time. Samples are taken each 10 s while `tailrace serve` runs."));
    return null;
  }
  const UPlot = await load();
  if (closed()) return null;
  if (drawn) {
    drawn.setData(data);
    return drawn;
  }
  root.replaceChildren();
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  const made = new UPlot({
    width: Math.max(300, root.clientWidth - 18),
    height: 220,
    legend: { live: false },
    scales: { x: { time: true }, ms: { range: (_, low, high) => [0, Math.max(1, high ?? 1)] }, s: { range: (_, low, high) => [0, Math.max(1, high ?? 1)] } },
    axes: [axis, { ...axis, scale: "ms", values: (_, ticks) => milliseconds(ticks), size: 70 }, { ...axis, scale: "s", side: 1, grid: { show: false }, values: (_, ticks) => ticks.map((tick) => `${tick} s`), size: 60 }],
    series: [{},
      { label: "p50 ms", scale: "ms", stroke: colour("--chart-1"), width: 2 },
      { label: "p99 ms", scale: "ms", stroke: colour("--chart-2"), width: 2, dash: [6, 4] },
      { label: "worst lag s", scale: "s", stroke: colour("--chart-3"), width: 2, dash: [2, 3] }],
  }, data, root);
  new ResizeObserver(() => root.isConnected && made.setSize({ width: Math.max(300, root.clientWidth - 18), height: 220 })).observe(root);
  return made;
}
