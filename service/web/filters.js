// Filters, order and ranking of a search. They live in the address; this draws them and writes them there.
import { go, RANKINGS, read } from "./address.js";
import { debounced, find } from "./dom.js";
import { tagInput } from "./editing.js";

const TYPING_MS = 350;
const part = { toggle: find("#filters-toggle"), number: find("#filters-set"), advanced: find("#advanced"), panel: find("#filters"), min: find("#min"), max: find("#max"), sort: find("#sort"), compare: find("#compare"), like: find("#like") };
/** @type {ReturnType<typeof tagInput>} */
let tags;

/** @param {import("./address.js").Place} place */
export function show(place) {
  tags.set(place.tags);
  if (document.activeElement !== part.min) part.min.value = place.min ?? "";
  if (document.activeElement !== part.max) part.max.value = place.max ?? "";
  part.sort.value = place.sort;
  part.compare.setAttribute("aria-checked", String(place.compare));
  for (const choice of document.querySelectorAll("input[name=rerank]")) {
    const input = /** @type {HTMLInputElement} */ (choice);
    input.checked = input.value === place.rerank;
    input.disabled = place.compare;
  }
  part.sort.disabled = place.compare;
  part.like.hidden = !place.like;
  const set = place.tags.length + Number(place.min !== null) + Number(place.max !== null);
  part.number.textContent = String(set);
  part.number.hidden = set === 0;
  if (place.rerank !== RANKINGS[0]) part.advanced.open = true; // what differs from the usual is not hidden
}

/** Listen to the controls. */
export function start() {
  tags = tagInput([], "tags", (now) => go({ tags: now }));
  find("#tags-place").replaceChildren(tags.element);
  const number = (/** @type {HTMLInputElement} */ input) => (input.value !== "" && +input.value >= 0 ? +input.value : null);
  const length = debounced(TYPING_MS, () => go({ min: number(part.min), max: number(part.max) }));
  part.min.addEventListener("input", length);
  part.max.addEventListener("input", length);
  part.sort.addEventListener("change", () => go({ sort: part.sort.value }));
  find("#rankings").addEventListener("change", (/** @type {Event} */ event) => go({ rerank: /** @type {HTMLInputElement} */ (event.target).value }));
  part.compare.addEventListener("click", () => go({ compare: !read().compare }));
  find("#like-off").addEventListener("click", () => go({ like: "", segment: null }));
  part.toggle.addEventListener("click", () => {
    const open = part.panel.classList.toggle("open");
    part.toggle.setAttribute("aria-expanded", String(open));
  });
}
