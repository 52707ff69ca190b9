// The address bar holds what is being looked at, so that back, forward, reload and a sent link work.

/**
 * @typedef {{view: string, q: string, like: string, segment: number | null, tags: string[], min: number | null,
 *   max: number | null, after: string, before: string, height: number | null, camera: string, sort: string, rerank: string, compare: boolean, play: string, part: number | null,
 *   t: number | null, tab: string, job: string}} Place
 */

export const SORTS = ["score", "title", "longest", "shortest"];
export const HEIGHTS = [720, 1080, 2160];
export const RANKINGS = ["emcl", "none", "frozen"];
export const TABS = ["videos", "captions", "jobs", "status"];
const DATE = /^\d{4}-\d{2}-\d{2}$/;
const VIDEO_ID = /^[0-9a-f]{64}$/;

/** @param {string | null} text */
const number = (text) => (text !== null && text.trim() !== "" && Number.isFinite(+text) && +text >= 0 ? +text : null);
/** @param {string | null} text @param {string[]} values */
const oneOf = (text, values) => (text !== null && values.includes(text) ? text : values[0]);
/** @param {string | null} text */
const date = (text) => (text !== null && DATE.test(text) && !Number.isNaN(Date.parse(text)) ? text : "");
/** @param {string | null} text */
const id = (text) => (text !== null && VIDEO_ID.test(text) ? text : "");

/** What an address asks for; what it says wrongly counts as unsaid. @returns {Place} */
export function read(text = location.search) {
  const asked = new URLSearchParams(text);
  return {
    view: oneOf(asked.get("view"), ["", "library", "video"]),
    q: asked.get("q") ?? "",
    like: id(asked.get("like")),
    segment: number(asked.get("segment")),
    tags: asked.getAll("tag").filter(Boolean),
    min: number(asked.get("min")),
    max: number(asked.get("max")),
    after: date(asked.get("after")),
    before: date(asked.get("before")),
    height: HEIGHTS.find((height) => String(height) === asked.get("height")) ?? null,
    camera: (asked.get("camera") ?? "").slice(0, 100),
    sort: oneOf(asked.get("sort"), SORTS),
    rerank: oneOf(asked.get("rerank"), RANKINGS),
    compare: asked.get("compare") === "1",
    play: id(asked.get("play")),
    part: number(asked.get("part")),
    t: number(asked.get("t")),
    tab: oneOf(asked.get("tab"), TABS),
    job: /^[0-9a-f]{16}$/.test(asked.get("job") ?? "") ? /** @type {string} */ (asked.get("job")) : "",
  };
}

/** The parts of an address that say nothing that `read` understands, as when a link was cut off. @returns {string[]} */
export function misread(text = location.search) {
  const place = read(text);
  return [...new URLSearchParams(text)].filter(([key, value]) => {
    if (!(key === "tag" || key in place) || value === "") return false;
    if (key === "tag" || key === "q") return false;
    const got = place[/** @type {keyof Place} */ (key)];
    return key === "compare" ? !["0", "1"].includes(value) : typeof got === "number" ? false : got !== value;
  }).map(([key]) => key);
}

/** The address of a place; what is as usual is left out. @param {Partial<Place>} place */
export function write(place) {
  const asked = new URLSearchParams();
  const usual = read("");
  for (const [key, value] of Object.entries({ ...usual, ...place })) {
    if (key === "tags") /** @type {string[]} */ (value).forEach((tag) => asked.append("tag", tag));
    else if (key === "compare") { if (value) asked.set("compare", "1"); }
    else if (value !== null && value !== /** @type {any} */ (usual)[key]) asked.set(key, String(value));
  }
  const text = asked.toString();
  return text ? `/?${text}` : "/";
}

/**
 * Go elsewhere. `draft` is for a query that is still being typed: the next draft takes its place in the history.
 * @param {Partial<Place>} change @param {{draft?: boolean, replace?: boolean, fresh?: boolean, opened?: boolean}} [how]
 */
export function go(change, { draft = false, replace = false, fresh = false, opened = false } = {}) {
  const url = write(fresh ? change : { ...read(), ...change });
  const now = location.pathname + location.search;
  const state = { draft, opened };
  if (!draft && history.state?.draft) history.replaceState({ ...history.state, draft: false }, "", now);
  if (url === now) return;
  if (replace || (draft && history.state?.draft)) history.replaceState(state, "", url);
  else history.pushState(state, "", url);
  document.dispatchEvent(new Event("navigated"));
}
