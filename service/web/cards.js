// One card for each hit: a moving preview that starts at the best moment, and what is known about it.
import { spriteUrl, streamUrl } from "./api.js";
import { go, read, write } from "./address.js";
import { isCalm, make } from "./dom.js";
import { amount, clock, percent, range, score } from "./format.js";
import { t } from "./language.js";
import { drawTile, picture } from "./pictures.js";
import { playable } from "./playable.js";
import { heaviest, MOST_SHOWN, OVERVIEW_TILES, overviewTime, strip } from "./strip.js";

/** @typedef {import("./api.js").Hit} Hit @typedef {import("./api.js").Video} Video */

const HOVER_MS = 120;
const SHORTEST_LOOP = 1.5;
const TAGS = 3;
const SCREEN_ONLY = 2 / 3; // the part of a picture above which the pointer chooses a moment

/** Where a word of the query was found. */
const MATCHED = { title: "matched.title", name: "matched.name", tag: "matched.tag", caption: "matched.caption", transcript: "matched.transcript" };

/** A video of the library as a card shows it: without score and weights. @param {Video} video @returns {Hit} */
export const asHit = (video) => ({
  ...video, segment: 0, start: 0, end: video.duration_seconds ?? 0, score: NaN, stage1_score: NaN,
  moment: (video.duration_seconds ?? 0) / 2, frame_weights: [], duration_seconds: video.duration_seconds ?? 0, matched: [], snippet: [], passage: null, moments: [],
});

/** What is said of a video that nothing was asked about: a caption of it, if it has one. @param {Hit & {captions?: string[]}} hit */
const about = (hit) => hit.captions?.[0] ?? (hit.tags.length ? "" : t("card.no-caption"));

/** The address of a hit in the player. @param {Hit} hit */
export const placeOf = (hit) => ({ play: hit.video_id, part: hit.segment, t: Math.round(hit.moment * 1000) / 1000 });

/** Open a hit in the player. @param {Hit} hit */
export const open = (hit) => go(placeOf(hit), { opened: true });

/** A card in a list. @param {Hit} hit @param {number} place how good it is, from 1 @param {number} [line] confidence below which it is faded */
export function card(hit, place, line = 0) {
  const weak = !hit.snippet.length && hit.confidence != null && hit.confidence < line;
  const scored = !Number.isNaN(hit.score);
  const link = make("a", { className: "cover-link", href: write({ ...read(), ...placeOf(hit) }), onclick: (/** @type {MouseEvent} */ event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser opens it elsewhere
    event.preventDefault();
    open({ ...hit, moment: scrubbed() ?? hit.moment });
  } }, hit.title);
  const front = picture(hit.thumbnail_url, "", "front");
  const back = make("img", { alt: "", className: "back" }); // the same, blurred, fills what another shape leaves
  front.addEventListener("load", () => { back.src = front.src; });
  const screen = make("div", { className: "screen" }, back, front,
    make("span", { className: "badge at" }, scored ? `▶ ${clock(hit.moment)}` : clock(hit.duration_seconds)));
  const tags = hit.tags.slice(0, TAGS).map((tag) => make("button", { type: "button", className: "tag", title: t("card.only-tag", { tag }),
    onclick: () => go({ tags: [...new Set([...read().tags, tag])] }) }, tag));
  const article = make("article", { className: weak ? "card weak" : "card" }, screen,
    hit.moments.length > 1 && marks(hit),
    scored && strip(hit.video_id, hit.segment, hit.frame_weights),
    make("div", { className: "words" },
      make("h3", { className: "title", title: hit.title }, link),
      make("p", { className: "facts" },
        make("span", { className: "one-line" }, scored ? range(hit.start, hit.end) + more(hit) : about(hit)),
        scored && make("span", { className: "score", title: t("card.place", { place, score: score(hit.stage1_score) }) + (hit.confidence == null ? "" : t("card.confidence", { share: percent(hit.confidence) }) + (weak ? t("card.weak") : "")) }, score(hit.score))),
      hit.snippet.length > 0 && make("p", { className: "why", title: t("card.words", { kinds: hit.matched.filter((kind) => kind !== "visual").map((kind) => t(MATCHED[/** @type {keyof typeof MATCHED} */ (kind)])).join(", ") }) },
        ...hit.snippet.map(({ text, match }) => match ? make("mark", {}, text) : text)),
      make("div", { className: "tags" }, ...tags, hit.tags.length > TAGS && make("span", { className: "quiet" }, `+${hit.tags.length - TAGS}`))));
  const stop = movable(article, screen, hit);
  const scrubbed = scrubbable(article, screen, hit, stop);
  return make("li", {}, article);
}

/** How many more moments of its video a hit stands for. @param {Hit} hit */
const more = (hit) => (hit.moments.length > 1 ? amount("card.more", hit.moments.length - 1) : "");

/** Where in its video the moments of a hit are. @param {Hit} hit */
function marks(hit) {
  const whole = hit.duration_seconds || 1;
  const line = make("div", { className: "marks", role: "img" }, ...hit.moments.map(({ start, end }) => {
    const mark = make("span", { title: range(start, end) });
    mark.style.left = `${100 * start / whole}%`;
    mark.style.width = `${100 * (end - start) / whole}%`;
    return mark;
  }));
  line.setAttribute("aria-label", t("card.moments", { times: hit.moments.map(({ start }) => clock(start)).join(", ") }));
  return line;
}

/** Cards without content, in the shape of those that come. @param {number} count */
export const skeletons = (count) => Array.from({ length: count }, () => make("li", { "aria-hidden": "true" },
  make("div", { className: "card skeleton" }, make("div", { className: "screen" }), make("div", { className: "strip" }),
    make("div", { className: "words" }, make("p", { className: "title" }, "\u00a0"), make("p", { className: "facts" }, "\u00a0"), make("div", { className: "tags" })))));

/** Play the moment while a card is pointed at or has the focus; returns what ends that until it is pointed at again.
 * @param {HTMLElement} article @param {HTMLElement} screen @param {Hit} hit */
function movable(article, screen, hit) {
  let timer = 0;
  /** @type {HTMLVideoElement | null} */
  let moving = null;
  const start = () => {
    if (isCalm() || moving) return;
    clearTimeout(timer);
    timer = setTimeout(() => { moving = preview(screen, hit); }, HOVER_MS);
  };
  const end = () => {
    clearTimeout(timer);
    quit(moving);
    moving = null;
  };
  const stop = () => {
    if (!article.matches(":hover") && !article.contains(document.activeElement)) end();
  };
  article.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && start());
  article.addEventListener("pointerleave", stop);
  article.addEventListener("focusin", start);
  article.addEventListener("focusout", () => setTimeout(stop));
  return end;
}

/** Show the moment that the pointer is at: over the strip of a hit a frame of the segment, and without a strip, over the
 * lower part of the picture, a moment of the whole video. All come out of one sprite. Returns what gives that moment.
 * @param {HTMLElement} article @param {HTMLElement} screen @param {Hit} hit @param {() => void} endPreview */
function scrubbable(article, screen, hit, endPreview) {
  const canvas = make("canvas", { className: "scrub", hidden: true }), mark = make("i", { className: "mark", hidden: true });
  const frames = hit.frame_weights, shown = heaviest(frames, MOST_SHOWN), badge = screen.querySelector(".at");
  const label = badge?.textContent ?? "";
  screen.append(canvas, mark);
  /** @type {number | null} */
  let moment = null;
  const place = (/** @type {PointerEvent} */ event) => {
    const over = (article.querySelector(".strip") ?? screen).getBoundingClientRect(), top = shown.length ? over.top : over.top + over.height * SCREEN_ONLY;
    const share = (event.clientX - over.left) / over.width;
    return event.clientY >= top && event.clientY < over.bottom && share >= 0 && share < 1 ? share : null;
  };
  const leave = () => {
    if (moment === null) return;
    moment = null;
    canvas.hidden = mark.hidden = true;
    if (badge) badge.textContent = label;
  };
  article.addEventListener("pointermove", (event) => {
    const share = event.pointerType === "touch" || !(shown.length || hit.duration_seconds) ? null : place(event);
    if (share === null) { leave(); return; }
    endPreview();
    const frame = shown[Math.floor(share * shown.length)], number = frame ? frames.indexOf(frame) : Math.floor(share * OVERVIEW_TILES);
    moment = frame?.time ?? overviewTime(number, hit.duration_seconds);
    drawTile(canvas, spriteUrl(hit.video_id, frame && hit.segment), frame ? frames.length : OVERVIEW_TILES, number);
    canvas.hidden = mark.hidden = false;
    mark.style.left = `${100 * share}%`;
    if (badge) badge.textContent = `▶ ${clock(moment)}`;
  });
  article.addEventListener("pointerleave", leave);
  return () => moment;
}

/** @param {HTMLElement} screen @param {Hit} hit */
function preview(screen, hit) {
  const video = make("video", { muted: true, playsInline: true, preload: "auto", tabindex: "-1", "aria-hidden": "true", disablePictureInPicture: true });
  const end = hit.end - hit.moment > SHORTEST_LOOP ? hit.end : Infinity;
  const again = () => { video.currentTime = end === Infinity ? hit.start : hit.moment; video.play().catch(() => {}); };
  video.addEventListener("timeupdate", () => video.currentTime >= end && again());
  video.addEventListener("ended", again);
  video.addEventListener("playing", () => video.classList.add("playing"));
  video.addEventListener("gone", () => video.remove());
  playable(video, streamUrl(hit.video_id), hit.video_id, hit.moment);
  screen.append(video);
  video.play().catch(() => {}); // stopped before it began
  return video;
}

/** @param {HTMLVideoElement | null} video */
function quit(video) {
  if (!video) return;
  video.pause();
  video.removeAttribute("src");
  video.load();
  video.remove();
}
