// The player: the moment, the frames around it, the other moments of the same video, and what is like it.
import * as api from "./api.js";
import { go, read } from "./address.js";
import { find, icon, make } from "./dom.js";
import { clock, day, range, score } from "./format.js";
import { locale, t } from "./language.js";
import { emptyPanel, sentence, toast } from "./notice.js";
import * as asking from "./asking.js";
import { picture } from "./pictures.js";
import { playable } from "./playable.js";
import { scoresWithin } from "./search.js";
import { chooser, timeline, weightBars } from "./strip.js";

/** @typedef {import("./address.js").Place} Place @typedef {import("./api.js").Hit} Hit @typedef {import("./api.js").Video} Video */

const MOST_SEGMENTS = 100;
const dialog = find("#player");
const part = { title: find("#player-title"), video: find("#player video"), note: find("#player-note"), strip: find("#player-strip"), timeline: find("#player-timeline"), moments: find("#player-moments"), captions: find("#player-captions"), asking: find("#player-asking"), facts: find("#player-facts"), grid: find("#player .player-grid"), stale: find("#player-stale") };
/** @type {AbortController | null} */
let current = null;
let shown = "";
/** @type {Video | null} */
let video = null;
let segment = 0;

/** Show what the address asks to play, or close. @param {Place} place */
export function show(place) {
  if (!place.play) {
    if (dialog.open) dialog.close();
    return;
  }
  const key = `${place.play} ${place.part}`;
  if (!dialog.open) dialog.showModal();
  if (key === shown) { seek(place.t ?? 0); return; }
  shown = key;
  current?.abort();
  current = new AbortController();
  segment = place.part ?? 0;
  part.title.textContent = "\u00a0";
  part.grid.hidden = false;
  part.stale.replaceChildren();
  part.note.textContent = "";
  for (const old of [part.strip, part.timeline, part.moments, part.captions, part.facts, part.asking]) old.replaceChildren();
  find("#player-file").href = api.streamUrl(place.play);
  find("#player-clip").hidden = true;
  part.video.poster = api.pictureUrl(place.play, place.t ?? 0);
  part.video.replaceChildren();
  playable(part.video, api.streamUrl(place.play), place.play, place.t ?? 0);
  part.video.play().catch(() => {}); // a browser that does not start by itself shows its controls
  describe(place, current.signal);
}

/** @param {Place} place @param {AbortSignal} signal */
async function describe(place, signal) {
  try {
    video = /** @type {Video} */ (await api.ask(`/v1/videos/${place.play}`, { signal }));
    part.title.textContent = video.title;
    const shape = video.width ? `${video.width} × ${video.height}` : "";
    part.facts.replaceChildren(make("span", {}, [clock(video.duration_seconds ?? 0), shape, video.recorded && day(video.recorded), video.camera].filter(Boolean).join(" · ")),
      ...video.tags.map((tag) => make("button", { type: "button", className: "tag", onclick: () => go({ tags: [tag], play: "", part: null, t: null }) }, tag)));
    if (video.duration_seconds) part.timeline.replaceChildren(timeline(video.video_id, video.duration_seconds, seek));
    part.video.replaceChildren(...video.transcripts.map(({ language, url }, number) => make("track",
      { kind: "captions", src: url, srclang: language, label: languageName(language), default: number === 0 })));
    drawCaptions(video, signal);
    asking.show(video.video_id, signal);
    const moments = await momentsOf(video, place, signal);
    drawMoments(moments);
    drawStrip(moments);
  } catch (error) {
    if (signal.aborted) return;
    if (error instanceof api.Problem && error.status === 404) stale();
    else part.note.textContent = sentence(error);
  }
}

/** The video's own captions, beside the one that the model writes. @param {Video} of @param {AbortSignal} signal */
async function drawCaptions(of, signal) {
  const own = of.captions.length > 0 && make("ul", { className: "quotes" }, ...of.captions.map((text) => make("li", {}, text)));
  const place = make("div", { role: "status" });
  if (!own && !asking.writes()) return;
  part.captions.replaceChildren(make("h3", {}, t("player.about")), place, own || "");
  if (!asking.writes()) return;
  try {
    place.replaceChildren(await asking.written(api.ask("/v1/caption", { json: { video_id: of.video_id }, signal })));
  } catch (error) {
    if (!signal.aborted) place.replaceChildren(make("p", { className: "quiet" }, sentence(error)));
  }
}

/** The name of a language in the language of the page; `und` is not known. @param {string} tag */
function languageName(tag) {
  if (tag === "und") return t("player.captions");
  try {
    return new Intl.DisplayNames([locale], { type: "language" }).of(tag) ?? tag;
  } catch {
    return tag;
  }
}

/** An old link: say so instead of an empty player. */
function stale() {
  part.title.textContent = t("player.stale");
  part.grid.hidden = true;
  part.video.onerror = null;
  part.video.removeAttribute("poster");
  part.video.removeAttribute("src");
  part.stale.replaceChildren(emptyPanel(t("results.gone"), t("player.stale-what"),
    make("button", { type: "button", className: "primary", onclick: close }, t("action.close"))));
}

/** Every segment of the video: those that the results ranked come first, with the score that they have there; then the
 * others in order of time, without one. With a text, each has the moment and the weights that the text gives it. @param {Video} of @param {Place} place @param {AbortSignal} signal @returns {Promise<Hit[]>} */
async function momentsOf(of, place, signal) {
  const segments = of.segments.slice(0, MOST_SEGMENTS);
  if (segments.length === 0) return [];
  const text = place.like ? "" : place.q.trim(), asks = text || (place.like && place.like !== of.video_id);
  const refs = segments.map((one) => ({ video_id: of.video_id, segment: one.segment }));
  const [ranked, weighed] = await Promise.all([
    asks ? scoresWithin(place, of.video_id, signal) : [],
    text ? api.ask("/v1/rerank", { json: { text, segments: refs, rerank: "none" }, signal }).then((answer) => /** @type {Hit[]} */ (answer.hits)) : [],
  ]);
  const known = new Map(weighed.map((hit) => [hit.segment, hit])), done = new Set(ranked.map((hit) => hit.segment));
  const others = segments.filter((one) => !done.has(one.segment)).map((one) => /** @type {Hit} */ (/** @type {unknown} */ ({
    ...of, ...one, moment: one.start, frame_weights: [], thumbnail_url: api.pictureUrl(of.video_id, (one.start + one.end) / 2), ...known.get(one.segment), score: NaN })));
  return [...ranked, ...others];
}

/** @param {Hit[]} moments */
function drawMoments(moments) {
  if (moments.length < 2) return;
  const items = moments.map((hit) => make("li", {}, make("button",
    { type: "button", className: "moment", "aria-current": hit.segment === segment ? "true" : null, onclick: () => choose(hit, moments) },
    picture(hit.thumbnail_url), make("span", { className: "moment-words" }, make("span", {}, range(hit.start, hit.end)),
      hit.frame_weights.length > 0 && weightBars(hit.frame_weights)),
    !Number.isNaN(hit.score) && make("span", { className: "score" }, score(hit.score)))));
  part.moments.replaceChildren(make("h3", {}, t("player.moments")), make("ol", { className: "moments" }, ...items));
}

/** @param {Hit} hit @param {Hit[]} moments */
function choose(hit, moments) {
  segment = hit.segment;
  shown = `${hit.video_id} ${segment}`;
  go({ part: segment, t: Math.round(hit.moment * 1000) / 1000 }, { replace: true });
  drawMoments(moments);
  drawStrip(moments);
  part.moments.querySelector("[aria-current]")?.focus();
}

/** @param {Hit[]} moments */
function drawStrip(moments) {
  const at = moments.find((hit) => hit.segment === segment), link = find("#player-clip");
  link.hidden = at === undefined;
  if (at) link.href = api.clipUrl(at.video_id, at.start, at.end);
  const frames = moments.find((hit) => hit.segment === segment)?.frame_weights ?? [];
  part.strip.replaceChildren(...(frames.length ? [make("h3", {}, t("player.where")), chooser(moments[0].video_id, segment, frames, seek)] : []));
}

/** @param {number} seconds */
function seek(seconds) {
  part.video.currentTime = seconds;
  part.video.play().catch(() => {});
}

/** Close, and be where one was before. */
function close() {
  if (history.state?.opened) history.back();
  else go({ play: "", part: null, t: null }, { replace: true });
}

/** Listen to the player's buttons. */
export function start() {
  dialog.addEventListener("cancel", (/** @type {Event} */ event) => { event.preventDefault(); close(); });
  dialog.addEventListener("click", (/** @type {Event} */ event) => event.target === dialog && close());
  dialog.addEventListener("close", () => {
    shown = "";
    current?.abort();
    part.video.onerror = null;
    part.video.removeAttribute("src");
    part.video.replaceChildren();
    part.video.load();
  });
  part.video.addEventListener("converting", () => { part.note.textContent = t("player.converting"); });
  part.video.addEventListener("playing", () => { part.note.textContent = ""; });
  part.video.addEventListener("gone", () => { part.note.textContent = t("player.gone"); });
  find("#player-close").onclick = close;
  find("#player-alike").onclick = () => go({ view: "", q: "", like: read().play, segment: segment || null, play: "", part: null, t: null });
  find("#player-link").onclick = async () => {
    const url = new URL(location.href);
    url.searchParams.set("t", part.video.currentTime.toFixed(2));
    await navigator.clipboard?.writeText(url.href).then(() => toast(t("player.copied")), () => toast(t("player.blocked"), true));
  };
  find("#player-close").replaceChildren(icon("close"));
}
