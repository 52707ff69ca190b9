// What went wrong, with what to do now; and what is there while nothing is.
import { Problem } from "./api.js";
import { icon, make } from "./dom.js";
import { t, translated } from "./language.js";

/** What EMCL does to searches of an index, in a sentence or two. @param {import("./api.js").Index} index */
export function correction({ correction: { text } }) {
  const [what, stale] = text.split("; ");
  return translated(what, "ranking.off") + (stale ? `; ${translated(stale, "ranking.stale")}` : "");
}

/** The state of a job in words. @param {string} state */
export const stateName = (state) => (state in STATES ? t(STATES[/** @type {keyof typeof STATES} */ (state)]) : state);
const STATES = { queued: "jobs.queued", running: "jobs.running", succeeded: "jobs.succeeded", failed: "jobs.failed", cancelled: "jobs.cancelled", lost: "jobs.lost" };

/** A problem as a sentence. @param {unknown} error */
export function sentence(error) {
  if (!(error instanceof Problem)) return String(error instanceof Error ? error.message : error);
  return [error.detail || error.title, error.expected && t("problem.expected-one", { text: error.expected }), error.nextStep].filter(Boolean).map(upper).join(". ") + ".";
}

/** @param {string} text */
const upper = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A panel that says what a problem is, and offers to try again. @param {unknown} error @param {() => void} [retry] */
export function problemPanel(error, retry) {
  const said = error instanceof Problem ? error : new Problem({ title: t("problem.page"), detail: String(error) });
  const row = (/** @type {string} */ name, /** @type {string} */ text) => text && make("div", {}, make("dt", {}, name), make("dd", {}, upper(text)));
  return make("div", { className: "problem", role: "alert" },
    icon("alert"),
    make("div", {},
      make("p", { className: "problem-title" }, said.title),
      make("dl", {}, row(t("problem.what"), said.detail), row(t("problem.expected"), said.expected), row(t("problem.next"), said.nextStep), row(t("problem.request"), said.requestId)),
      retry && make("button", { type: "button", className: "small", onclick: retry }, t("action.again"))));
}

/** A quiet page where there is nothing yet. @param {string} title @param {string} text @param {...(Node | null)} actions */
export const emptyPanel = (title, text, ...actions) =>
  make("div", { className: "empty" }, icon("film"), make("h2", {}, title), make("p", { className: "quiet" }, text), make("div", { className: "row" }, ...actions));

/** A short message at the foot of the page, for a few seconds. @param {string} text @param {boolean} [bad] */
export function toast(text, bad = false) {
  const place = document.querySelector("#toasts");
  const note = make("p", { className: bad ? "toast bad" : "toast" }, text);
  place?.append(note);
  setTimeout(() => note.remove(), bad ? 12000 : 5000);
}
