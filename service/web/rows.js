// A long list of which only what is on the screen exists: rows of one height, fetched by the page when they come near.
import { make } from "./dom.js";

const PAGE = 100;
const MARGIN = 8;
const KEPT_PAGES = 30;
const SETTLE_MS = 60;

/**
 * @template T
 * @param {{fetchPage: (offset: number, limit: number) => Promise<{items: T[], total: number}>, makeRow: (item: T) => HTMLElement,
 *   name: string, onfail: (error: unknown) => void, onempty: () => void, ontotal: (total: number) => void, signal: AbortSignal}} how
 */
export function longList({ fetchPage, makeRow, name, onfail, onempty, ontotal, signal }) {
  const list = make("div", { className: "rows", role: "list", "aria-label": name, "aria-busy": "true" });
  /** @type {Map<number, T[] | null>} pages by number; null while one is on its way */
  const pages = new Map();
  /** @type {Map<number, HTMLElement>} rows by place */
  const rows = new Map();
  let total = -1, timer = 0;

  const height = () => parseFloat(getComputedStyle(list).getPropertyValue("--row")) || 80;

  /** @param {number} number */
  const load = async (number) => {
    if (pages.has(number)) return;
    pages.set(number, null);
    try {
      const page = await fetchPage(number * PAGE, PAGE);
      if (signal.aborted) return;
      pages.set(number, page.items);
      if (pages.size > KEPT_PAGES) pages.delete(/** @type {number} */ (pages.keys().next().value));
      if (page.total !== total) { total = page.total; ontotal(total); }
      list.setAttribute("aria-busy", "false");
      if (total === 0) onempty();
      draw();
    } catch (error) {
      pages.delete(number);
      if (!signal.aborted) onfail(error);
    }
  };

  /** @param {number} place */
  const fill = (place) => {
    const item = pages.get(Math.floor(place / PAGE))?.[place % PAGE];
    const old = rows.get(place);
    if (old && (old.dataset.filled || !item)) return;
    const row = item ? makeRow(item) : make("div", { className: "skeleton" });
    row.classList.add("long-row");
    row.setAttribute("role", "listitem");
    row.setAttribute("aria-posinset", String(place + 1));
    row.setAttribute("aria-setsize", String(total));
    row.style.top = `${place * height()}px`;
    if (item) row.dataset.filled = "yes";
    if (old) old.replaceWith(row);
    else {
      const next = [...rows.keys()].filter((other) => other > place).sort((a, b) => a - b)[0];
      list.insertBefore(row, next === undefined ? null : /** @type {HTMLElement} */ (rows.get(next)));
    }
    rows.set(place, row);
  };

  const draw = () => {
    if (total < 0 || !list.isConnected) return;
    const tall = height(), top = -list.getBoundingClientRect().top;
    list.style.height = `${total * tall}px`;
    const first = Math.max(0, Math.floor(top / tall) - MARGIN), last = Math.min(total - 1, Math.ceil((top + innerHeight) / tall) + MARGIN);
    for (const [place, row] of rows) {
      if ((place < first || place > last) && !row.contains(document.activeElement)) { row.remove(); rows.delete(place); }
    }
    for (let place = first; place <= last; place += 1) fill(place);
    clearTimeout(timer); // who scrolls past a thousand rows does not ask for them
    timer = setTimeout(() => { for (let number = Math.floor(first / PAGE); number <= Math.floor(last / PAGE); number += 1) if (number * PAGE < total) load(number); }, SETTLE_MS);
  };

  addEventListener("scroll", draw, { signal, passive: true });
  addEventListener("resize", () => { for (const row of rows.values()) row.remove(); rows.clear(); draw(); }, { signal });
  load(0);
  return list;
}
