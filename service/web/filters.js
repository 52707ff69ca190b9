// Filters, order and ranking of a search. They live in the address; this draws them and writes them there.
import { go, HEIGHTS, RANKINGS, read } from "./address.js";
import { debounced, find } from "./dom.js";
import { tagInput } from "./editing.js";

const TYPING_MS = 350;
const part = { toggle: find("#filters-toggle"), number: find("#filters-set"), advanced: find("#advanced"), panel: find("#filters"), min: find("#min"), max: find("#max"), after: find("#after"), before: find("#before"), height: find("#height"), camera: find("#camera"), sort: find("#sort"), compare: find("#compare"), like: find("#like") };
/** @type {ReturnType<typeof tagInput>} */
let tags;

/** @param {import("./address.js").Place} place */
export function show(place) {
  tags.set(place.tags);
  if (document.activeElement !== part.min) part.min.value = place.min ?? "";
  if (document.activeElement !== part.max) part.max.value = place.max ?? "";
  for (const name of /** @type {const} */ (["after", "before", "camera"])) if (document.activeElement !== part[name]) part[name].value = place[name];
  part.height.value = place.height ?? "";
  part.sort.value = place.sort;
  part.compare.setAttribute("aria-checked", String(place.compare));
  for (const choice of document.querySelectorAll("input[name=rerank]")) {
    const input = /** @type {HTMLInputElement} */ (choice);
    input.checked = input.value === place.rerank;
    input.disabled = place.compare;
  }
  part.sort.disabled = place.compare;
  part.like.hidden = !place.like;
  const set = filtersSet(place);
  part.number.textContent = String(set);
  part.number.hidden = set === 0;
  if (place.rerank !== RANKINGS[0]) part.advanced.open = true; // what differs from the usual is not hidden
}

/** A place without filters. */
export const NO_FILTERS = { tags: [], min: null, max: null, after: "", before: "", height: null, camera: "" };

/** How many filters a place has. @param {import("./address.js").Place} place */
export const filtersSet = (place) => place.tags.length + [place.min, place.max, place.height].filter((one) => one !== null).length
  + [place.after, place.before, place.camera].filter((one) => one.trim()).length;

/** Listen to the controls. */
export function start() {
  tags = tagInput([], "tags", (now) => go({ tags: now }));
  find("#tags-place").replaceChildren(tags.element);
  const number = (/** @type {HTMLInputElement} */ input) => (input.value !== "" && +input.value >= 0 ? +input.value : null);
  const length = debounced(TYPING_MS, () => go({ min: number(part.min), max: number(part.max) }));
  part.min.addEventListener("input", length);
  part.max.addEventListener("input", length);
  const recorded = debounced(TYPING_MS, () => go({ after: part.after.value, before: part.before.value, camera: part.camera.value }));
  for (const input of [part.after, part.before, part.camera]) input.addEventListener("input", recorded);
  part.height.addEventListener("change", () => go({ height: HEIGHTS.find((height) => String(height) === part.height.value) ?? null }));
  part.sort.addEventListener("change", () => go({ sort: part.sort.value }));
  find("#rankings").addEventListener("change", (/** @type {Event} */ event) => go({ rerank: /** @type {HTMLInputElement} */ (event.target).value }));
  part.compare.addEventListener("click", () => go({ compare: !read().compare }));
  find("#like-off").addEventListener("click", () => go({ like: "", segment: null }));
  part.toggle.addEventListener("click", () => {
    const open = part.panel.classList.toggle("open");
    part.toggle.setAttribute("aria-expanded", String(open));
  });
}
