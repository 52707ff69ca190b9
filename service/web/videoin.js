// A video in, words out: the file is sent, its captions come back ranked, each with the frame that it points to.
import * as api from "./api.js";
import { go } from "./address.js";
import { addDialog } from "./adding.js";
import { card } from "./cards.js";
import * as asking from "./asking.js";
import { find, icon, make } from "./dom.js";
import { amount, clock, limit, ms, percent, score } from "./format.js";
import { t } from "./language.js";
import { emptyPanel, problemPanel, sentence } from "./notice.js";
import { weightBars } from "./strip.js";

/** @typedef {import("./api.js").CaptionHit} CaptionHit */

const HITS = 12;
const PICTURE = { width: 192, height: 108 };
const SEEK_MS = 3000;
const view = find("#video-view");
/** @type {AbortController | null} */
let current = null;
/** @type {File | null} */
let file = null;
let url = "";
/** @type {api.Index | null} */
let limits = null;

/** The limits of uploads, so that a file that is too large is not sent at all. @param {api.Index} index */
export function knowLimits(index) {
  limits = index;
}

/** Look for a file's words. @param {File} given */
export function look(given) {
  file = given;
  current?.abort();
  go({ view: "video" }, { fresh: true });
  send(given);
}

/** The view, when the address leads here. */
export function show() {
  if (file) return;
  view.replaceChildren(emptyPanel(t("look.none"), t("look.none-what"),
    make("label", { className: "button primary", for: "file", tabindex: "0", onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && find("#file").click() }, t("look.choose"))));
}

/** @param {File} given */
async function send(given) {
  const mine = (current = new AbortController());
  if (url) URL.revokeObjectURL(url);
  url = URL.createObjectURL(given);
  const bar = make("progress", { max: 1, value: 0, "aria-label": t("look.progress") });
  const said = make("p", { role: "status" }, t("add.sending"));
  const cancel = make("button", { type: "button", className: "small", onclick: () => { mine.abort(); file = null; go({ view: "" }, { fresh: true }); } }, t("action.cancel"));
  view.replaceChildren(make("h1", { className: "view-title" }, given.name), make("div", { className: "progress-panel" }, make("div", {}, said, bar), cancel));
  const fail = (/** @type {unknown} */ error) => view.replaceChildren(make("h1", { className: "view-title" }, given.name), problemPanel(error, () => send(given)));
  const most = limits?.upload_limits.max_bytes ?? Infinity;
  if (given.size > most) {
    fail(new api.Problem({ title: t("look.too-large"), detail: t("look.size", { name: given.name, size: limit(given.size) }), expected: t("look.at-most", { size: limit(most) }), next_step: t("look.smaller") }));
    return;
  }
  const form = new FormData();
  form.append("file", given);
  const began = performance.now();
  /** @type {Record<string, number>} */
  let stages = {};
  try {
    const answer = await api.send(`/v1/search/${isPicture(given) ? "image" : "video"}?k=${HITS}`, form, { signal: mine.signal, ontimings: (took) => { stages = took; }, onprogress: (share) => {
      if (share < 1) { bar.value = share; said.textContent = t("look.sending-share", { size: limit(given.size), share: percent(share) }); return; }
      bar.removeAttribute("value");
      said.textContent = t("look.sent");
    } });
    (isPicture(given) ? drawPicture : draw)(given, answer, performance.now() - began, stages);
    if (!isPicture(given) && asking.writes()) await write(form, mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) fail(error);
  }
}

/** Let the model write a caption, and put it above those that were found. @param {FormData} form @param {AbortSignal} signal */
async function write(form, signal) {
  const place = find("#written", view);
  place.textContent = t("asking.writing");
  try {
    place.replaceChildren(await asking.written(api.send("/v1/caption/video", form, { signal })));
  } catch (error) {
    if (!signal.aborted) place.replaceChildren(make("p", { className: "quiet" }, sentence(error)));
  }
}

/** @param {File} given */
const isPicture = (given) => given.type.startsWith("image/");

/** What a picture finds: videos that look like it, and words for it. @param {File} given @param {api.UploadAnswer} answer @param {number} took */
function drawPicture(given, answer, took) {
  const words = answer.captions.map((caption) => make("li", {}, make("button", { type: "button", className: "chip", onclick: () => go({ view: "", q: caption.text }, { fresh: true }) }, caption.text)));
  view.replaceChildren(
    make("h1", { className: "view-title" }, given.name),
    make("p", { className: "status", role: "status" }, t("look.picture-done", { found: amount("count.similar", answer.hits.length), time: ms(took) })),
    make("img", { className: "own-picture", src: url, alt: given.name }),
    make("section", { "aria-labelledby": "similar-title" }, make("h2", { id: "similar-title" }, t("look.similar")),
      make("ol", { className: "cards" }, ...answer.hits.map((hit, place) => card(hit, place + 1)))),
    ...(words.length ? [make("section", { "aria-labelledby": "captions-title" }, make("h2", { id: "captions-title" }, t("look.fitting")), make("ul", { className: "examples" }, ...words))] : []));
}

/** What the stages of an upload do, in their order. */
const STAGES = { receive: "look.receive", decode: "look.decode", queue: "look.queue", encode: "look.encode", candidates: "look.candidates", rerank: "look.rerank", answer: "look.answer" };

/** @param {File} given @param {api.UploadAnswer} answer @param {number} took @param {Record<string, number>} timed receiving and decoding are in the header only */
function draw(given, answer, took, timed) {
  const player = make("video", { controls: true, playsInline: true, muted: true, src: `${url}#t=${answer.captions[0]?.moment ?? 0}`, "aria-label": t("look.player", { name: given.name }) });
  const note = make("p", { className: "quiet", hidden: true }, t("look.unplayable"));
  player.addEventListener("error", () => { note.hidden = false; });
  const rows = answer.captions.map((caption, place) => captionRow(caption, place, player));
  const all = { ...timed, ...answer.source.stage_ms };
  const stages = Object.entries(STAGES).filter(([stage]) => stage in all).map(([stage, name]) => t("look.stage", { stage: t(name), time: ms(all[stage]) })).join(" · ");
  view.replaceChildren(
    make("h1", { className: "view-title" }, given.name),
    make("p", { className: "status", role: "status" }, make("span", {}, t("look.found", { captions: amount("count.captions", answer.captions.length), videos: amount("count.similar", answer.hits.length) })),
      make("span", { className: "quiet" }, t("look.done", { count: answer.upload.frames, length: clock(answer.upload.duration_seconds), time: ms(took), stages }))),
    make("div", { className: "video-in" },
      make("div", { className: "own" }, player, note,
        make("div", { className: "row" },
          make("button", { type: "button", onclick: () => addDialog([given]) }, icon("plus"), t("look.add")),
          make("label", { className: "button", for: "file", tabindex: "0", onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && find("#file").click() }, t("look.another")))),
      make("section", { "aria-labelledby": "captions-title" }, make("h2", { id: "captions-title" }, t("look.fitting")), make("div", { id: "written", role: "status" }),
        rows.length ? make("ol", { className: "captions" }, ...rows) : make("p", { className: "quiet" }, t("look.no-captions")))),
    make("section", { "aria-labelledby": "similar-title" }, make("h2", { id: "similar-title" }, t("look.similar")),
      make("ol", { className: "cards" }, ...answer.hits.map((hit, place) => card(hit, place + 1)))));
  picturesOf(url, answer.captions, rows).catch(() => {}); // a format that this browser does not play has none
}

/** @param {CaptionHit} caption @param {number} place @param {HTMLVideoElement} player */
function captionRow(caption, place, player) {
  return make("li", {}, make("button", { type: "button", title: t("look.play"), onclick: () => { player.currentTime = caption.moment; player.play().catch(() => {}); } },
  make("span", { className: "place" }, place + 1),
  make("canvas", { className: "still", width: PICTURE.width, height: PICTURE.height, "aria-hidden": "true" }),
  make("span", { className: "row-words" }, make("span", { className: "title" }, caption.text), weightBars(caption.frame_weights)),
  make("span", { className: "row-facts" }, make("span", { className: "score" }, score(caption.score)), make("span", { className: "quiet" }, t("look.at", { time: clock(caption.moment) })))));
}

/** Draw the frame that each caption points to, from the visitor's own file. @param {string} source @param {CaptionHit[]} captions @param {HTMLElement[]} rows */
async function picturesOf(source, captions, rows) {
  const hidden = make("video", { muted: true, preload: "auto", src: source });
  await happens(hidden, "loadeddata");
  const drawn = new Map();
  for (const [number, caption] of captions.entries()) {
    const canvas = find("canvas", rows[number]), key = caption.moment.toFixed(3);
    if (!drawn.has(key)) {
      hidden.currentTime = caption.moment;
      await happens(hidden, "seeked");
      const scale = Math.max(PICTURE.width / hidden.videoWidth, PICTURE.height / hidden.videoHeight);
      const [width, height] = [hidden.videoWidth * scale, hidden.videoHeight * scale];
      canvas.getContext("2d").drawImage(hidden, (PICTURE.width - width) / 2, (PICTURE.height - height) / 2, width, height);
      drawn.set(key, canvas);
    } else canvas.getContext("2d").drawImage(drawn.get(key), 0, 0);
  }
  hidden.removeAttribute("src");
  hidden.load();
}

/** @param {HTMLVideoElement} video @param {string} event @returns {Promise<void>} */
const happens = (video, event) => new Promise((resolve, reject) => {
  video.addEventListener(event, () => resolve(), { once: true });
  video.addEventListener("error", () => reject(new Error("not playable")), { once: true });
  setTimeout(() => reject(new Error("too slow")), SEEK_MS * 3);
});
