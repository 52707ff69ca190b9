// What the model says of a video itself: which of some labels fits, an answer to a question, a caption that it writes.
import * as api from "./api.js";
import { find, make } from "./dom.js";
import { percent, score } from "./format.js";
import { t } from "./language.js";
import { sentence } from "./notice.js";

/** @typedef {{words: string, probability: number}} Guess */

const SHOWN = 5;
/** @type {readonly string[]} */
let heads = [];
/** The labels that were asked for last: people compare videos by the same ones. */
let labels = "";

/** Which heads the model has. @param {api.Index} index */
export function knowHeads(index) {
  heads = index.heads;
}

/** Whether the model can write captions. */
export const writes = () => heads.includes("caption");

/** Fill the part of the player. @param {string} videoId @param {AbortSignal} signal */
export function show(videoId, signal) {
  const panels = [
    panel(t("asking.what"), "ask-labels", t("asking.labels"), t("asking.labels-example"), 2000, async (text) => {
      labels = text;
      const wanted = [...new Set(text.split(",").map((one) => one.trim()).filter(Boolean))];
      const answer = await api.ask("/v1/classify", { json: { video_id: videoId, labels: wanted }, signal });
      return answer.labels.slice(0, SHOWN).map((/** @type {{label: string, probability: number}} */ one) => ({ words: one.label, probability: one.probability }));
    }, labels),
  ];
  if (heads.includes("answer")) {
    panels.push(panel(t("asking.question-title"), "ask-question", t("asking.question"), t("asking.question-example"), 500, async (question) => {
      const answer = await api.ask("/v1/answer", { json: { video_id: videoId, question, top: SHOWN }, signal });
      return answer.answers.map((/** @type {{answer: string, probability: number}} */ one) => ({ words: one.answer, probability: one.probability }));
    }));
  }
  find("#player-asking").replaceChildren(...panels);
}

/** @param {string} title @param {string} id @param {string} label @param {string} example @param {number} most @param {(text: string) => Promise<Guess[]>} ask @param {string} [value] */
function panel(title, id, label, example, most, ask, value = "") {
  const input = make("input", { type: "text", id, maxLength: most, placeholder: example, required: true, "aria-label": label, value });
  const found = make("div", { role: "status" });
  const button = make("button", { type: "submit" }, t("asking.ask"));
  return make("form", { className: "asking", onsubmit: async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    if (!input.value.trim()) return;
    button.disabled = true;
    try {
      found.replaceChildren(guesses(await ask(input.value.trim())));
    } catch (error) {
      if (!api.isAbort(error)) found.replaceChildren(make("p", { className: "quiet" }, sentence(error)));
    }
    button.disabled = false;
  } }, make("h3", {}, title), make("div", { className: "row" }, input, button), found);
}

/** @param {Guess[]} found */
const guesses = (found) => make("ol", { className: "guesses" }, ...found.map(({ words, probability }) => make("li", {},
  make("span", {}, words), make("meter", { min: 0, max: 1, value: probability, "aria-label": words }), make("span", { className: "score" }, `${percent(probability)} %`))));

/** The caption that the model wrote, to stand beside those that were found. @param {Promise<{caption: string, score: number}>} asked */
export async function written(asked) {
  const answer = await asked;
  return make("p", { className: "written" }, make("span", { className: "tag" }, t("asking.written")), make("span", {}, answer.caption || t("asking.no-words")),
    make("span", { className: "score", title: t("asking.score") }, score(answer.score)));
}
