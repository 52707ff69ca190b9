// The results of a search as a file for other programs: a page with pictures, a playlist, an edit list.
import * as api from "./api.js";
import { find, make } from "./dom.js";
import { t } from "./language.js";
import { sentence, toast } from "./notice.js";

/** Hits of one file; with pictures the server makes no more. */
const MOST = 200;
const ENDINGS = { html: ".html", m3u: ".m3u8", edl: ".edl" };
const part = { menu: find("#save") };
/** @type {{query: object, name: string, k: number} | null} */
let shown = null;

/** What can be saved now; null: nothing. @param {{query: object, name: string, k: number} | null} results */
export function offer(results) {
  shown = results;
  part.menu.hidden = results === null;
  if (results === null) part.menu.open = false;
}

/** @param {keyof typeof ENDINGS} format */
async function save(format) {
  if (shown === null) return;
  const { query, name, k } = shown;
  part.menu.open = false;
  if (format === "html") toast(t("save.pictures"));
  try {
    const text = await api.ask("/v1/search/export", { json: { ...query, format, k: Math.min(k, MOST) } });
    const url = URL.createObjectURL(new Blob([text]));
    make("a", { href: url, download: name.slice(0, 100).replace(/[\\/:*?"<>|\p{C}]/gu, "_") + ENDINGS[format] }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    toast(sentence(error), true);
  }
}

/** Listen to the menu. */
export function start() {
  part.menu.addEventListener("click", (/** @type {Event} */ event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest("button");
    if (button) save(/** @type {keyof typeof ENDINGS} */ (button.dataset.format));
  });
  document.addEventListener("click", (event) => { if (!part.menu.contains(event.target)) part.menu.open = false; });
  part.menu.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape" || !part.menu.open) return;
    event.stopPropagation();
    part.menu.open = false;
    find("#save summary").focus();
  });
}
