// With and without EMCL: the same query ranked in several ways, lists side by side, lines that join the same video.
import * as api from "./api.js";
import { open } from "./cards.js";
import { draw, find, make } from "./dom.js";
import { clock, ms, score } from "./format.js";
import { problemPanel } from "./notice.js";
import { picture } from "./pictures.js";

/** @typedef {import("./api.js").Hit} Hit @typedef {import("./api.js").Answer} Answer */

const HITS = 12;
const WAYS = [
  { rerank: "frozen", name: "Stage 1", what: "the index alone" },
  { rerank: "none", name: "Pooled", what: "frames weighed by the query, no EMCL" },
  { rerank: "emcl", name: "EMCL", what: "the same, with EMCL" },
];
const STAGES = ["cache", "encode", "candidates", "rerank", "answer"];

/** @param {{body: HTMLElement, status: HTMLElement}} part @param {Record<string, any>} query @param {AbortSignal} signal @param {() => void} again */
export async function compare(part, query, signal, again) {
  part.status.replaceChildren(make("span", {}, "Ranking in three ways…"));
  const lines = draw("svg", { class: "joins", "aria-hidden": "true" });
  const columns = WAYS.map((way) => column(way));
  const board = make("div", { className: "compare" }, lines, ...columns);
  part.body.replaceChildren(board);
  try {
    /** @type {Answer[]} */
    const answers = []; // one after the other: asked together, they would be computed in one batch and share its times
    for (const { rerank } of WAYS) answers.push(await api.search({ ...query, rerank, k: HITS }, signal));
    fill(columns, answers);
    const moved = changes(answers[0].hits, answers[2].hits);
    part.status.replaceChildren(make("span", {}, moved));
    joinUp(board, lines, columns, signal);
  } catch (error) {
    if (signal.aborted) return;
    part.status.replaceChildren();
    part.body.replaceChildren(problemPanel(error, again));
  }
}

/** @param {{rerank: string, name: string, what: string}} way */
const column = (way) => make("section", { className: "way", "data-way": way.rerank, "aria-label": `${way.name}: ${way.what}` },
  make("header", {}, make("h2", {}, way.name), make("p", { className: "quiet" }, way.what), make("div", { className: "stages" })),
  make("ol", {}, ...Array.from({ length: HITS }, () => make("li", { className: "row-hit skeleton", "aria-hidden": "true" }))));

/** @param {HTMLElement[]} columns @param {Answer[]} answers */
function fill(columns, answers) {
  const longest = Math.max(...answers.map((answer) => Object.values(answer.source.stage_ms).reduce((a, b) => a + b, 0)), 0.001);
  const before = new Map(answers[0].hits.map((hit, place) => [hit.video_id, place]));
  columns.forEach((one, number) => {
    const { hits, source } = answers[number];
    if (columns[number].dataset.way === "emcl" && source.emcl === "off") find("header p", one).textContent = "off, not calibrated for this model: the pooled ranking";
    find("ol", one).replaceChildren(...hits.map((hit, place) => row(hit, place, number ? before : null)));
    find(".stages", one).replaceChildren(...stages(source.stage_ms, longest));
  });
}

/** @param {Hit} hit @param {number} place @param {Map<string, number> | null} before places in stage 1, to tell how far it moved */
function row(hit, place, before) {
  const old = before?.get(hit.video_id);
  const up = old === undefined ? null : old - place;
  const text = before === null || up === 0 ? "" : up === null ? "new" : up > 0 ? `▲ ${up}` : `▼ ${-up}`;
  const said = before === null || up === 0 ? "" : up === null ? ", not among these in stage 1" : `, ${Math.abs(up)} ${up > 0 ? "up" : "down"} from stage 1`;
  return make("li", { className: "row-hit", "data-video": hit.video_id },
    make("button", { type: "button", onclick: () => open(hit) },
      make("span", { className: "place" }, place + 1), picture(hit.thumbnail_url),
      make("span", { className: "row-words" }, make("span", { className: "title" }, hit.title), make("span", { className: "quiet" }, `${score(hit.score)} · ${clock(hit.moment)}`)),
      make("span", { className: `change ${up === null ? "new" : up > 0 ? "up" : "down"}`, "aria-hidden": "true" }, text), said && make("span", { className: "hidden" }, said)));
}

/** A bar for what each stage took, as long as it took. @param {Record<string, number>} took @param {number} longest */
function stages(took, longest) {
  const names = [...STAGES.filter((name) => name in took), ...Object.keys(took).filter((name) => !STAGES.includes(name))];
  const total = Object.values(took).reduce((a, b) => a + b, 0);
  let x = 0;
  const bars = names.map((name) => {
    const width = (100 * took[name]) / longest;
    const bar = draw("rect", { x, y: 0, width, height: 4, class: `stage-${STAGES.indexOf(name)}` }, draw("title", {}, `${name} ${ms(took[name])}`));
    x += width;
    return bar;
  });
  return [draw("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars),
    make("p", { className: "quiet" }, make("b", {}, ms(total)), " ", names.map((name) => `${name} ${ms(took[name])}`).join(" · "))];
}

/** @param {Hit[]} before @param {Hit[]} after */
function changes(before, after) {
  const places = new Map(before.map((hit, place) => [hit.video_id, place]));
  const moved = after.filter((hit, place) => places.has(hit.video_id) && places.get(hit.video_id) !== place).length;
  const fresh = after.filter((hit) => !places.has(hit.video_id)).length;
  return `EMCL moves ${moved} of the first ${after.length}` + (fresh ? ` and brings in ${fresh} new` : "") + (before[0] && after[0] && before[0].video_id !== after[0].video_id ? "; another video comes first" : "");
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
