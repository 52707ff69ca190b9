// The words of the page in the language that language-choice.js chose, out of languages/, one file for each language.

/** A sentence with {placeholders}, or its plural forms, chosen by the placeholder {count}.
 * @typedef {string | Partial<Record<Intl.LDMLPluralRule, string>>} Message */

const root = document.documentElement;
const language = root.lang;
/** The visitor's own kind of the language, such as en-GB, for numbers and dates. */
export const locale = navigator.languages.find((tag) => tag.toLowerCase().split("-")[0] === language) ?? language;

/** @param {string} tag @returns {Promise<Record<string, Message>>} */
async function load(tag) {
  const response = await fetch(`/web/languages/${tag}.json`);
  if (!response.ok) throw new Error(`the messages of the language ${tag} cannot be loaded: status ${response.status}`);
  return response.json();
}

const [english, chosen] = await Promise.all([load("en"), language === "en" ? null : load(language).catch(() => null)]);
const rules = { en: new Intl.PluralRules("en"), chosen: new Intl.PluralRules(language) };

/** The message of a key with its placeholders filled in; numbers are written as the language writes them. A message that
 * the language lacks is English. @param {string} key @param {Record<string, string | number>} [values] @returns {string} */
export function t(key, values = {}) {
  const isTranslated = chosen !== null && key in chosen;
  const message = isTranslated ? chosen[key] : english[key];
  if (message === undefined) throw new Error(`no message has the key ${key}`);
  const form = typeof message === "string" ? message : message[(isTranslated ? rules.chosen : rules.en).select(Number(values.count))] ?? message.other ?? "";
  return form.replace(/\{(\w+)\}/g, (_, name) => typeof values[name] === "number" ? values[name].toLocaleString(locale) : String(values[name]));
}

/** A sentence of the server in the language of the page where it is the English of a message; else as the server says it.
 * @param {string} text @param {string} key */
export const translated = (text, key) => (text === english[key] ? t(key) : text);

/** Attributes of elements that hold words, by the data attribute that names the key. */
const ATTRIBUTES = { "data-label": "aria-label", "data-hint": "title", "data-placeholder": "placeholder", "data-content": "content" };

/** Put the language into the page's own HTML, which is English. */
function translate() {
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.getAttribute("data-text") ?? "");
  for (const [from, to] of Object.entries(ATTRIBUTES)) {
    for (const element of document.querySelectorAll(`[${from}]`)) element.setAttribute(to, t(element.getAttribute(from) ?? ""));
  }
  if (root.dataset.title) document.title = t(root.dataset.title);
}

/** Fill the list of languages, each under its own name. Another choice is kept, and loads the page again in it. */
function offerLanguages() {
  const control = /** @type {HTMLSelectElement | null} */ (document.querySelector("#language"));
  if (control === null) return;
  for (const tag of (root.dataset.languages ?? "").split(" ")) {
    const option = new Option(new Intl.DisplayNames([tag], { type: "language" }).of(tag), tag, false, tag === language);
    option.lang = tag;
    control.append(option);
  }
  control.addEventListener("change", () => {
    localStorage.setItem("language", control.value);
    location.reload();
  });
}

try {
  if (chosen !== null) translate();
  root.style.setProperty("--no-picture", JSON.stringify(t("card.no-picture")));
  offerLanguages();
} finally {
  root.classList.remove("translating");
}
