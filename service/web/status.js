// How the service is: the index that it serves, its model, its caches and queues.
import * as api from "./api.js";
import { change } from "./captions.js";
import { make } from "./dom.js";
import { count, limit, moment } from "./format.js";
import { problemPanel } from "./notice.js";
import { may } from "./session.js";

const LOOK_MS = 5000;

/** @param {HTMLElement} panel @param {import("./address.js").Place} _place @param {AbortSignal} signal @param {() => void} again */
export async function statusTab(panel, _place, signal, again) {
  panel.replaceChildren(make("p", { className: "quiet" }, "Loading…"));
  while (!signal.aborted) {
    try {
      const [index, metrics] = await Promise.all([api.ask("/v1/index", { signal }), api.ask("/metrics", { signal })]);
      if (!panel.contains(document.activeElement) || panel === document.activeElement) draw(panel, index, samples(metrics), again);
    } catch (error) {
      if (!signal.aborted) panel.replaceChildren(problemPanel(error, again));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
}

/** Prometheus' text: values by name, then by the value of the first label. @param {string} text @returns {Map<string, Map<string, number>>} */
export function samples(text) {
  const found = new Map();
  for (const [, name, label, value] of text.matchAll(/^(\w+)(?:\{[^"}]*"([^"]*)"[^}]*\})? ([-+.\deInfNa]+)$/gm)) {
    if (!found.has(name)) found.set(name, new Map());
    found.get(name).set(label ?? "", Number(value));
  }
  return found;
}

/** @param {string} title @param {[string, string | Node][]} rows @param {...(Node | string | false)} more */
const facts = (title, rows, ...more) => make("section", { className: "tile" }, make("h2", {}, title),
  make("dl", { className: "facts-list" }, ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))), ...more);

/** @param {HTMLElement} panel @param {api.Index} index @param {Map<string, Map<string, number>>} metrics @param {() => void} again */
function draw(panel, index, metrics, again) {
  const of = (/** @type {string} */ name) => metrics.get(name) ?? new Map();
  const caches = [...of("emcl_cache_entries").keys()].map((cache) => {
    const [hits, misses] = [of("emcl_cache_hits_total").get(cache) ?? 0, of("emcl_cache_misses_total").get(cache) ?? 0];
    const asked = hits + misses;
    return make("tr", {}, make("th", { scope: "row" }, cache), make("td", {}, count(of("emcl_cache_entries").get(cache) ?? 0)),
      make("td", {}, asked ? `${((100 * hits) / asked).toFixed(0)} %` : "–"), make("td", {}, count(asked)));
  });
  const queues = [...of("emcl_queue_depth")].map(([queue, depth]) => make("tr", {}, make("th", { scope: "row" }, queue), make("td", {}, count(depth))));
  const overlay = index.overlay;
  panel.replaceChildren(make("div", { className: "tiles" },
    facts("Index", [
      ...Object.entries(index.counts).map(([name, number]) => /** @type {[string, string]} */ ([name, count(number)])),
      ["generation", index.generation], ["made", moment(index.created)], ["type", `${index.factory}, ${index.dim} dimensions`],
      ["segments of", index.segment_seconds ? `${index.segment_seconds} s` : "whole videos"],
      ["not published yet", `${count(overlay.rows)} rows${overlay.publishing ? ", publishing" : ""}${overlay.waiting ? `, ${overlay.waiting} videos wait` : ""}`],
    ], may("admin") && make("button", { type: "button", className: "small", onclick: async () => { if (await change(() => api.ask("/v1/index/reload", { method: "POST" }), "The newest generation is served.")) again(); } }, "Reload")),
    facts("Model", [["name", index.model], ["fingerprint", index.fingerprint.slice(0, 16)], ["EMCL", index.correction.text],
      ...Object.entries(index.emcl).filter(([, value]) => typeof value !== "object").map(([name, value]) => /** @type {[string, string]} */ ([`EMCL ${name.replaceAll("_", " ")}`, String(value)])),
      ["candidates", `${index.query_limits.default_candidates}, at most ${index.query_limits.max_candidates}`],
      ["uploads", `at most ${limit(index.upload_limits.max_bytes)}, ${count(index.upload_limits.max_seconds)} s`]]),
    make("section", { className: "tile" }, make("h2", {}, "Caches"), table(["Cache", "Entries", "Found", "Asked"], caches),
      make("h2", {}, "Queues"), table(["Queue", "Waiting"], queues))));
}

/** @param {string[]} heads @param {HTMLElement[]} rows */
const table = (heads, rows) => make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...rows));
