// The search view: results while you type, filters, sorting, more as you scroll. The address says what is asked.
import * as api from "./api.js";
import { go, read } from "./address.js";
import { card, skeletons } from "./cards.js";
import { compare } from "./compare.js";
import { debounced, find, make } from "./dom.js";
import { amount, ms } from "./format.js";
import { filtersSet, NO_FILTERS } from "./filters.js";
import { home } from "./home.js";
import { locale, t } from "./language.js";
import { emptyPanel, problemPanel } from "./notice.js";
import * as saving from "./saving.js";

/** @typedef {import("./address.js").Place} Place @typedef {import("./api.js").Hit} Hit */

const PAGE = 24;
const FIRST = 8;
const TYPING_MS = 160;
const SLOW_MS = 4000;
const KEPT = 20;

const view = find("#search-view");
const part = { form: find("#search"), text: find("#text"), status: find("#status"), list: find("#results"), more: find("#more"), body: find("#search-body"), stages: find("#stages") };
/** What the stages of `stage_ms` do, for people. */
const STAGES = { cache: "stages.cache", encode: "stages.encode", candidates: "stages.candidates", rerank: "stages.rerank", answer: "stages.answer" };

/** The answer to a query, grown by each further page; `done`: nothing more can be loaded.
 * @typedef {{hits: Hit[], like: string, took: number, stages: Record<string, number>, done: boolean, truncated: boolean, script: string | null, misfit: boolean}} Found */

/** Answers by query, so that going back is immediate. @type {Map<string, Found>} */
const kept = new Map();
/** @type {AbortController | null} */
let current = null;
/** @type {string} */
let shown = "";
let candidates = 100;
/** How many videos the library holds: a query looks at the best `candidates` of them. */
let videos = Infinity;
/** Hits below it count as weak. */
let line = 0;

/** Forget answers: the library has changed. */
export function forget() {
  kept.clear();
  shown = "";
}

/** How many candidates a query has, which is how many results there can be, out of how many videos. @param {api.Index} index */
export function knowIndex(index) {
  candidates = index.query_limits.default_candidates;
  videos = index.counts.videos ?? Infinity;
  line = index.confidence_line ?? 0;
}

/** Every segment of one video among the candidates of a place's query, scored as in its results. @param {Place} place @param {string} id @param {AbortSignal} signal */
export async function scoresWithin(place, id, signal) {
  const { hits } = await api.search({ ...queryOf(place), group: "segment", k: candidates, fusion: "visual" }, signal);
  return hits.filter((hit) => hit.video_id === id);
}

/** What the server is asked for a place. @param {Place} place */
export function queryOf(place) {
  const what = place.like ? { video_id: place.like, ...(place.segment === null ? {} : { segment: place.segment }) } : { text: place.q.trim() };
  const filter = { tags: place.tags, ...(place.min === null ? {} : { min_seconds: place.min }), ...(place.max === null ? {} : { max_seconds: place.max }),
    ...(place.after && { recorded_after: place.after }), ...(place.before && { recorded_before: place.before }),
    ...(place.height === null ? {} : { min_height: place.height }), ...(place.camera.trim() && { camera: place.camera.trim() }) };
  return { ...what, rerank: place.rerank, filter };
}

/** @param {Place} place */
export function show(place) {
  if (document.activeElement !== part.text || place.q !== part.text.value.trim()) part.text.value = place.q;
  const key = JSON.stringify([queryOf(place), place.sort, place.compare]);
  if (key === shown) return;
  shown = key;
  current?.abort();
  current = new AbortController();
  const what = !place.q.trim() && !place.like ? "home" : place.compare ? "compare" : "results";
  if (what !== view.dataset.what) part.list.replaceChildren();
  view.dataset.what = what;
  part.stages.hidden = true;
  saving.offer(null);
  if (what === "home") home(part, place, current.signal);
  else if (place.compare) compare(part, queryOf(place), current.signal, again);
  else results(place, key, current);
}

const again = () => { shown = ""; show(read()); };

/** @param {Place} place @param {string} key @param {AbortController} mine */
async function results(place, key, mine) {
  part.body.replaceChildren(make("h2", { className: "hidden" }, t("results.title")), part.list, part.more);
  const old = kept.get(key);
  if (old) return draw(old, place, key, mine);
  busy(true);
  const slow = setTimeout(() => say(t("results.slow")), SLOW_MS);
  try {
    const found = await firstPage(place, mine.signal);
    keep(key, found);
    draw(found, place, key, mine);
  } catch (error) {
    if (mine.signal.aborted) return;
    say("");
    part.list.replaceChildren();
    part.more.replaceChildren(place.like && error instanceof api.Problem && error.status === 404
      ? emptyPanel(t("results.gone"), t("results.gone-what"), make("button", { type: "button", onclick: () => go({ like: "", segment: null }) }, t("results.new-search")))
      : problemPanel(error, again));
  } finally {
    clearTimeout(slow);
    if (!mine.signal.aborted) busy(false);
  }
}

/** @param {Place} place @param {AbortSignal} signal */
async function firstPage(place, signal) {
  const began = performance.now();
  const k = place.sort === "score" ? Math.min(PAGE, candidates) : candidates; // another order needs all that there are
  const answer = await api.search({ ...queryOf(place), k }, signal);
  const took = performance.now() - began;
  const like = place.like ? await api.video(place.like).then((video) => t("results.like", { title: video.title }), () => t("results.like-this")) : "";
  return { hits: ordered(answer.hits, place.sort), like, took, stages: answer.source.stage_ms, done: answer.hits.length < k || k >= candidates, truncated: answer.truncated, script: answer.unknown_script, misfit: answer.nothing_fits };
}

/** @param {Hit[]} hits @param {string} sort */
function ordered(hits, sort) {
  /** @type {Record<string, (a: Hit, b: Hit) => number>} */
  const orders = {
    title: (a, b) => a.title.localeCompare(b.title, locale, { numeric: true }),
    longest: (a, b) => b.duration_seconds - a.duration_seconds,
    shortest: (a, b) => a.duration_seconds - b.duration_seconds,
  };
  return sort in orders ? [...hits].sort(orders[sort]) : hits;
}

/** @param {Found} found */
function cutNote(found) {
  return (found.misfit ? t("results.misfit") : "") + (found.truncated ? t("results.truncated") : "")
    + (found.script ? t("results.script", { script: found.script }) : "");
}

/** @param {Found} found @param {Place} place @param {string} key @param {AbortController} mine */
function draw(found, place, key, mine) {
  const began = performance.now();
  part.list.replaceChildren(...found.hits.slice(0, FIRST).map((hit, number) => card(hit, number + 1, line)));
  part.more.replaceChildren();
  requestAnimationFrame(() => setTimeout(() => { // painted: now what may be below the screen
    if (mine.signal.aborted) return;
    performance.measure("answer to paint", { start: began });
    part.list.append(...found.hits.slice(FIRST).map((hit, number) => card(hit, FIRST + number + 1, line)));
    ending(found, place, key, mine);
  }));
  say(counted(found) + cutNote(found), ms(found.took));
  drawStages(found.stages);
  offerSaving(found, place);
}

/** @param {Found} found @param {Place} place */
function offerSaving(found, place) {
  saving.offer(found.hits.length === 0 ? null : { query: queryOf(place), name: place.like ? t("save.name-like", { like: found.like }) : place.q.trim(), k: found.hits.length });
}

/** What stands under the results. @param {Found} found @param {Place} place @param {string} key @param {AbortController} mine */
function ending(found, place, key, mine) {
  if (found.hits.length === 0) {
    part.more.replaceChildren(isFiltered(place)
      ? emptyPanel(t("results.none"), t("results.none-what"), make("button", { type: "button", onclick: () => go(NO_FILTERS) }, t("results.unfilter")))
      : emptyPanel(t("library.empty"), t("results.empty-what"), make("button", { type: "button", className: "primary", onclick: () => go({ view: "library" }, { fresh: true }) }, t("library.add"))));
  } else if (!found.done) offerMore(found, place, key, mine);
  else if (found.hits.length >= candidates && videos > candidates) part.more.replaceChildren(make("p", { className: "quiet" }, amount("results.all", found.hits.length)));
}

/** @param {Place} place */
const isFiltered = (place) => filtersSet(place) > 0;

/** A button that is pressed for you when you reach it. @param {Found} found @param {Place} place @param {string} key @param {AbortController} mine */
function offerMore(found, place, key, mine) {
  const button = make("button", { type: "button", id: "show-more" }, t("results.more"));
  const load = async () => {
    watch.disconnect();
    button.disabled = true;
    button.textContent = t("action.loading");
    const offset = found.hits.length, k = Math.min(PAGE, candidates - offset);
    try {
      const answer = await api.search({ ...queryOf(place), k, offset }, mine.signal);
      found.hits.push(...answer.hits);
      found.done = answer.hits.length < k || found.hits.length >= candidates;
      part.list.append(...answer.hits.map((hit, number) => card(hit, offset + number + 1, line)));
      say(counted(found) + cutNote(found), ms(found.took));
      offerSaving(found, place);
      part.more.replaceChildren();
      if (found.done) ending(found, place, key, mine);
      else offerMore(found, place, key, mine);
    } catch (error) {
      if (!mine.signal.aborted) part.more.replaceChildren(problemPanel(error, () => offerMore(found, place, key, mine)));
    }
  };
  const watch = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && load(), { rootMargin: "300px" });
  button.addEventListener("click", load);
  part.more.replaceChildren(button);
  watch.observe(button);
  mine.signal.addEventListener("abort", () => watch.disconnect());
}

/** @param {Found} found */
const counted = ({ hits, like, done }) => amount(done ? "count.videos" : "results.best", hits.length) + like;

/** Where the time of a query went, for the drawer. @param {Record<string, number>} stages */
function drawStages(stages) {
  const rows = Object.entries(stages).map(([name, took]) => make("div", {}, make("dt", {}, name in STAGES ? t(STAGES[/** @type {keyof STAGES} */ (name)]) : name), make("dd", {}, ms(took))));
  part.stages.hidden = rows.length === 0;
  part.stages.replaceChildren(make("h2", {}, t("stages.title")), make("dl", { className: "facts-list" }, ...rows));
}

/** @param {string} key @param {Found} found */
function keep(key, found) {
  kept.set(key, found);
  if (kept.size > KEPT) kept.delete(/** @type {string} */ (kept.keys().next().value));
}

/** @param {boolean} is */
function busy(is) {
  part.list.setAttribute("aria-busy", String(is));
  if (is) part.more.replaceChildren();
  if (is && !part.list.querySelector(".card:not(.skeleton)")) part.list.replaceChildren(...skeletons(8));
  if (is) say(t("results.searching"));
}

/** @param {string} text @param {string} [more] */
function say(text, more = "") {
  part.status.textContent = more ? t("results.timed", { text, time: more }) : text;
}

const typed = debounced(TYPING_MS, () => go({ view: "", q: part.text.value.trim(), like: "", segment: null, play: "", part: null, t: null }, { draft: true }));

/** Listen to the form. */
export function start() {
  saving.start();
  part.text.addEventListener("input", typed);
  part.form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    typed.now();
    go({}); // what was a draft stays in the history
  });
}
