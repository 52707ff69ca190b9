// What went wrong, with what to do now; and what is there while nothing is.
import { Problem } from "./api.js";
import { icon, make } from "./dom.js";

/** A problem as a sentence. @param {unknown} error */
export function sentence(error) {
  if (!(error instanceof Problem)) return String(error instanceof Error ? error.message : error);
  return [error.detail || error.title, error.expected && `expected ${error.expected}`, error.nextStep].filter(Boolean).map(upper).join(". ") + ".";
}

/** @param {string} text */
const upper = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A panel that says what a problem is, and offers to try again. @param {unknown} error @param {() => void} [retry] */
export function problemPanel(error, retry) {
  const said = error instanceof Problem ? error : new Problem({ title: "Something went wrong on this page", detail: String(error) });
  const row = (/** @type {string} */ name, /** @type {string} */ text) => text && make("div", {}, make("dt", {}, name), make("dd", {}, upper(text)));
  return make("div", { className: "problem", role: "alert" },
    icon("alert"),
    make("div", {},
      make("p", { className: "problem-title" }, said.title),
      make("dl", {}, row("What", said.detail), row("Expected", said.expected), row("Next step", said.nextStep), row("Request", said.requestId)),
      retry && make("button", { type: "button", className: "small", onclick: retry }, "Try again")));
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
