// The keyboard: / goes to the box, arrows move among results, Enter opens (they are links), Escape closes or goes back.
import { find } from "./dom.js";

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];
const box = find("#text");
const help = find("#help");

/** What arrows can reach: results, or the rows of a comparison. */
const stops = () => /** @type {HTMLElement[]} */ ([...document.querySelectorAll("main section:not([hidden]) .cover-link, .row-hit button, .captions button")].filter((one) => /** @type {HTMLElement} */ (one).offsetParent !== null));

/** The nearest stop in a direction: the same row for left and right, the next row and nearest column for up and down.
 * @param {HTMLElement[]} all @param {HTMLElement} from @param {string} key */
function next(all, from, key) {
  const at = all.indexOf(from);
  if (key === "Home") return all[0];
  if (key === "End") return all[all.length - 1];
  if (!from.closest(".compare") && (key === "ArrowLeft" || key === "ArrowRight")) return all[at + (key === "ArrowLeft" ? -1 : 1)];
  const cell = (/** @type {HTMLElement} */ one) => (one.closest("li") ?? one).getBoundingClientRect();
  const here = cell(from);
  const across = key === "ArrowLeft" || key === "ArrowRight";
  const sign = key === "ArrowDown" || key === "ArrowRight" ? 1 : -1;
  let best, least = Infinity;
  for (const one of all) {
    const there = cell(one);
    const [along, beside] = across ? [there.left - here.left, there.top - here.top] : [there.top - here.top, there.left - here.left];
    if (along * sign < 8) continue;
    const distance = Math.abs(along) + 2 * Math.abs(beside);
    if (distance < least) [best, least] = [one, distance];
  }
  return best;
}

/** @param {KeyboardEvent} event */
function pressed(event) {
  const on = /** @type {HTMLElement} */ (event.target);
  const typing = on.matches("input:not([type=file], [type=radio]), textarea, select");
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (!typing && (event.key === "/" || event.key === "?")) {
    event.preventDefault();
    if (event.key === "?") help.showModal();
    else if (box.offsetParent) { box.focus(); box.select(); }
    else find("nav a[data-view=search]").click();
  } else if (event.key === "Escape" && on !== box) box.focus();
  else if (MOVES.includes(event.key)) move(event, on, typing);
}

/** @param {KeyboardEvent} event @param {HTMLElement} on @param {boolean} typing */
function move(event, on, typing) {
  const all = stops();
  if (!all.length || (typing && !(on === box && event.key === "ArrowDown"))) return;
  if (!all.includes(on)) {
    if (on !== box && on !== document.body) return;
    event.preventDefault();
    all[0].focus();
    return;
  }
  const to = next(all, on, event.key);
  if (to) to.focus();
  else if (event.key === "ArrowUp") box.focus();
  else return;
  event.preventDefault();
}

/** Listen. */
export function start() {
  addEventListener("keydown", pressed);
  find("#help-open").onclick = () => help.showModal();
  find("#help-close").onclick = () => help.close();
}
