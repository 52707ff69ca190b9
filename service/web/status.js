// How the service is: first what visitors want to know, then the index, model, caches and queues for operators.
import * as api from "./api.js";
import { write } from "./address.js";
import { change } from "./captions.js";
import { make } from "./dom.js";
import { count, limit, moment, plural } from "./format.js";
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
  const { counts, overlay } = index;
  const fresh = plural(overlay.rows, "recent change");
  const open = panel.querySelector("details")?.open ?? false; // as the visitor left it
  panel.replaceChildren(
    make("p", { className: "health", role: "status" }, health(index)),
    make("div", { className: "tiles" },
      facts("Library", [["Videos", count(counts.videos)], ["Segments", `${count(counts.segments)}, ${index.segment_seconds ? `of at most ${index.segment_seconds} s` : "one for each video"}`], ["Captions", count(counts.captions)],
        ["Watched folders", index.watched_folders ? count(index.watched_folders) : "none"], ["Could not be read", counts.failed ? plural(counts.failed, "video") : "none"]],
      make("a", { className: "button small", href: write({ view: "library" }) }, "See the videos")),
      facts("Search", [["Model", index.model], ["EMCL", index.correction.text], ["A query looks at", `the best ${count(index.query_limits.default_candidates)} segments, at most ${count(index.query_limits.max_candidates)}`]]),
      facts("Uploads", [["Largest file", limit(index.upload_limits.max_bytes)], ["Longest video", `${count(index.upload_limits.max_seconds / 60)} minutes`],
        ["Being added", overlay.waiting ? plural(overlay.waiting, "video") : "none"]])),
    make("details", { className: "technical", open }, make("summary", {}, "Technical details"),
      make("div", { className: "tiles" },
        facts("Index", [["Generation", index.generation], ["Published", moment(index.created)], ["Type", `${index.factory}, ${index.dim} dimensions`],
          ["Since then", overlay.publishing ? `${fresh}, being published` : `${fresh}; searchable, published later`]],
        may("admin") && make("button", { type: "button", className: "small", title: "Serve what another process has published", onclick: async () => { if (await change(() => api.ask("/v1/index/reload", { method: "POST" }), "The newest generation is served.")) again(); } }, "Reload the index")),
        facts("Model", [["Name", index.model], ["Fingerprint", index.fingerprint.slice(0, 16)],
          ...Object.entries(index.emcl).filter(([, value]) => typeof value !== "object").map(([name, value]) => /** @type {[string, string]} */ ([`EMCL ${name.replaceAll("_", " ")}`, String(value)]))]),
        make("section", { className: "tile" }, make("h2", {}, "Caches"), table(["Cache", "Entries", "Hit rate", "Lookups"], caches),
          make("h2", {}, "Queues"), table(["Queue", "Waiting"], queues)))));
}

/** How the service is, in a sentence. @param {api.Index} index */
function health({ counts, overlay }) {
  const ready = counts.videos ? `${plural(counts.videos, "video")} can be searched.` : "The service works; the library is empty.";
  return overlay.waiting ? `${ready} ${count(overlay.waiting)} more on the way.` : counts.videos ? `${ready} Everything is up to date.` : ready;
}

/** @param {string[]} heads @param {HTMLElement[]} rows */
const table = (heads, rows) => make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...rows));
