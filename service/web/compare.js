// With and without EMCL: the same query ranked in several ways, lists side by side, lines that join the same video.
import * as api from "./api.js";
import { open } from "./cards.js";
import { draw, find, make } from "./dom.js";
import { clock, score } from "./format.js";
import { t } from "./language.js";
import { problemPanel } from "./notice.js";
import { picture } from "./pictures.js";

/** @typedef {import("./api.js").Hit} Hit @typedef {import("./api.js").Answer} Answer */

const HITS = 12;
const WAYS = [
  { rerank: "frozen", name: t("ranking.frozen"), what: t("compare.frozen-what") },
  { rerank: "none", name: t("ranking.none"), what: t("compare.none-what") },
  { rerank: "emcl", name: t("ranking.emcl"), what: t("compare.emcl-what") },
];

/** @param {{body: HTMLElement, status: HTMLElement}} part @param {Record<string, any>} query @param {AbortSignal} signal @param {() => void} again */
export async function compare(part, query, signal, again) {
  part.status.replaceChildren(make("span", {}, t("compare.running")));
  const lines = draw("svg", { class: "joins", "aria-hidden": "true" });
  const columns = WAYS.map((way) => column(way));
  const board = make("div", { className: "compare" }, lines, ...columns);
  part.body.replaceChildren(board);
  try {
    /** @type {Answer[]} */
    const answers = [];
    for (const { rerank } of WAYS) answers.push(await api.search({ ...query, rerank, k: HITS, fusion: "visual" }, signal));
    fill(columns, answers);
    part.status.replaceChildren(make("span", {}, changes(answers)));
    joinUp(board, lines, columns, signal);
  } catch (error) {
    if (signal.aborted) return;
    part.status.replaceChildren();
    part.body.replaceChildren(problemPanel(error, again));
  }
}

/** @param {{rerank: string, name: string, what: string}} way */
const column = (way) => make("section", { className: "way", "data-way": way.rerank, "aria-label": t("compare.column", { name: way.name, what: way.what }) },
  make("header", {}, make("h2", {}, way.name), make("p", { className: "quiet" }, way.what)),
  make("ol", {}, ...Array.from({ length: HITS }, () => make("li", { className: "row-hit skeleton", "aria-hidden": "true" }))));

/** @param {HTMLElement[]} columns @param {Answer[]} answers */
function fill(columns, answers) {
  columns.forEach((one, number) => {
    const { hits, source } = answers[number];
    const before = number ? new Map(answers[number - 1].hits.map((hit, place) => [hit.video_id, place])) : null;
    if (one.dataset.way === "emcl") find("header p", one).textContent = source.emcl === "off" ? t("compare.off") : t("compare.strength", { mode: source.emcl, strength: source.strength });
    find("ol", one).replaceChildren(...hits.map((hit, place) => row(hit, place, before, number ? WAYS[number - 1].name : "")));
  });
}

/** @param {Hit} hit @param {number} place @param {Map<string, number> | null} before places in the list beside it @param {string} beside that list's name */
function row(hit, place, before, beside) {
  const old = before?.get(hit.video_id);
  const up = old === undefined ? null : old - place;
  const text = before === null || up === 0 ? "" : up === null ? t("compare.new") : up > 0 ? `▲ ${up}` : `▼ ${-up}`;
  const said = before === null || up === 0 ? "" : up === null ? t("compare.new-said", { list: beside }) : t(up > 0 ? "compare.up" : "compare.down", { places: Math.abs(up), list: beside });
  return make("li", { className: "row-hit", "data-video": hit.video_id },
    make("button", { type: "button", onclick: () => open(hit) },
      make("span", { className: "place" }, place + 1), picture(hit.thumbnail_url),
      make("span", { className: "row-words" }, make("span", { className: "title" }, hit.title), make("span", { className: "quiet" }, `${score(hit.score)} · ${clock(hit.moment)}`)),
      make("span", { className: `change ${up === null ? "new" : up > 0 ? "up" : "down"}`, "aria-hidden": "true" }, text), said && make("span", { className: "hidden" }, said)));
}

/** What each step changes in the list beside it: pooling against stage 1, EMCL against pooling. @param {Answer[]} answers */
function changes([first, pooled, corrected]) {
  const moved = (/** @type {Hit[]} */ before, /** @type {Hit[]} */ after) => after.filter((hit, place) => before[place]?.video_id !== hit.video_id).length;
  const count = pooled.hits.length;
  const moves = { pooled: moved(first.hits, pooled.hits), count };
  if (corrected.source.emcl === "off") return t("compare.changes-off", moves);
  return t("compare.changes", { ...moves, corrected: moved(pooled.hits, corrected.hits) }) +
    (pooled.hits[0] && corrected.hits[0] && pooled.hits[0].video_id !== corrected.hits[0].video_id ? t("compare.first") : "");
}

/** Draw the lines, and again whenever the lists have another shape. @param {HTMLElement} board @param {SVGElement} lines @param {HTMLElement[]} columns @param {AbortSignal} signal */
function joinUp(board, lines, columns, signal) {
  const redraw = () => {
    const visible = columns.filter((one) => one.offsetParent !== null);
    const box = board.getBoundingClientRect();
    lines.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    lines.replaceChildren(...visible.slice(1).flatMap((right, number) => between(visible[number], right, box)));
  };
  const watch = new ResizeObserver(redraw);
  watch.observe(board);
  signal.addEventListener("abort", () => watch.disconnect());
  const light = (/** @type {Event} */ event) => {
    const video = /** @type {Element} */ (event.target).closest?.("[data-video]")?.getAttribute("data-video");
    board.querySelectorAll("[data-video]").forEach((one) => one.classList.toggle("lit", one.getAttribute("data-video") === video));
    board.classList.toggle("lighting", Boolean(video));
  };
  board.addEventListener("pointerover", light);
  board.addEventListener("focusin", light);
  board.addEventListener("pointerleave", light);
}

/** @param {HTMLElement} left @param {HTMLElement} right @param {DOMRect} box */
function between(left, right, box) {
  const rows = new Map([...right.querySelectorAll("[data-video]")].map((one) => [one.getAttribute("data-video"), one.getBoundingClientRect()]));
  return [...left.querySelectorAll("[data-video]")].flatMap((one) => {
    const from = one.getBoundingClientRect(), to = rows.get(one.getAttribute("data-video"));
    if (!to) return [];
    const [x1, x2] = [from.right - box.left, to.left - box.left];
    const [y1, y2] = [from.top + from.height / 2 - box.top, to.top + to.height / 2 - box.top];
    const middle = (x1 + x2) / 2;
    const way = Math.abs(y1 - y2) < 1 ? "same" : y2 < y1 ? "up" : "down";
    return [draw("path", { d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`, class: way, "data-video": String(one.getAttribute("data-video")) })];
  });
}
