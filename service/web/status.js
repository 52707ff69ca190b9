// How the service is: first what visitors want to know, then the index, model, caches and queues for operators.
import * as api from "./api.js";
import { write } from "./address.js";
import { change } from "./captions.js";
import { make } from "./dom.js";
import { amount, count, limit, moment, percent } from "./format.js";
import { t } from "./language.js";
import { correction, problemPanel } from "./notice.js";
import { may } from "./session.js";

const LOOK_MS = 5000;

/** @param {HTMLElement} panel @param {import("./address.js").Place} _place @param {AbortSignal} signal @param {() => void} again */
export async function statusTab(panel, _place, signal, again) {
  panel.replaceChildren(make("p", { className: "quiet" }, t("action.loading")));
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
      make("td", {}, asked ? `${percent(hits / asked)} %` : "–"), make("td", {}, count(asked)));
  });
  const queues = [...of("emcl_queue_depth")].map(([queue, depth]) => make("tr", {}, make("th", { scope: "row" }, queue), make("td", {}, count(depth))));
  const { counts, overlay } = index;
  const fresh = amount("count.changes", overlay.rows);
  const open = panel.querySelector("details")?.open ?? false; // as the visitor left it
  panel.replaceChildren(
    make("p", { className: "health", role: "status" }, health(index)),
    make("div", { className: "tiles" },
      facts(t("status.library"), [[t("status.videos"), count(counts.videos)], [t("status.segments"), t(index.segment_seconds ? "status.segments-of" : "status.segments-whole", { number: counts.segments, seconds: index.segment_seconds })], [t("status.captions"), count(counts.captions)],
        [t("status.watched"), index.watched_folders ? count(index.watched_folders) : t("status.none")], [t("status.unreadable"), counts.failed ? amount("count.videos", counts.failed) : t("status.none")]],
      make("a", { className: "button small", href: write({ view: "library" }) }, t("status.see"))),
      facts(t("status.search"), [[t("status.model"), index.model], [t("status.emcl"), correction(index)],
        [t("status.looks-at"), t("status.best", { best: index.query_limits.default_candidates, most: index.query_limits.max_candidates })]]),
      facts(t("status.uploads"), [[t("status.largest"), limit(index.upload_limits.max_bytes)], [t("status.longest"), t("status.minutes", { number: index.upload_limits.max_seconds / 60 })],
        [t("status.adding"), overlay.waiting ? amount("count.videos", overlay.waiting) : t("status.none")]])),
    make("details", { className: "technical", open }, make("summary", {}, t("status.technical")),
      make("div", { className: "tiles" },
        facts(t("status.index"), [[t("status.generation"), index.generation], [t("status.published"), moment(index.created)], [t("status.type"), t("status.dimensions", { factory: index.factory, dim: index.dim })],
          [t("status.since"), t(overlay.publishing ? "status.publishing" : "status.later", { changes: fresh })]],
        may("admin") && make("button", { type: "button", className: "small", title: t("status.reload-hint"), onclick: async () => { if (await change(() => api.ask("/v1/index/reload", { method: "POST" }), t("status.reloaded"))) again(); } }, t("status.reload"))),
        facts(t("status.model"), [[t("status.name"), index.model], [t("status.fingerprint"), index.fingerprint.slice(0, 16)],
          ...Object.entries(index.emcl).filter(([, value]) => typeof value !== "object").map(([name, value]) => /** @type {[string, string]} */ ([t("status.emcl-setting", { name: name.replaceAll("_", " ") }), String(value)]))]),
        make("section", { className: "tile" }, make("h2", {}, t("status.caches")), table([t("status.cache"), t("status.entries"), t("status.hit-rate"), t("status.lookups")], caches),
          make("h2", {}, t("status.queues")), table([t("status.queue"), t("status.queued")], queues)))));
}

/** How the service is, in a sentence. @param {api.Index} index */
function health({ counts, overlay }) {
  const ready = counts.videos ? amount("status.searchable", counts.videos) : t("status.empty");
  return overlay.waiting ? t("status.waiting", { ready, count: overlay.waiting }) : counts.videos ? t("status.current", { ready }) : ready;
}

/** @param {string[]} heads @param {HTMLElement[]} rows */
const table = (heads, rows) => make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...rows));
