// Making elements. Nothing here knows what they are for.

/** @typedef {Node | string | number | null | undefined | false} Child */

/** The element that a selector names; it is in the page's own HTML, so it is there. @param {string} selector @param {ParentNode} [inside] @returns {any} */
export const find = (selector, inside = document) => inside.querySelector(selector);

/** @param {Child[]} children */
const present = (children) => children.filter((one) => one !== null && one !== undefined && one !== false).map((one) => (one instanceof Node ? one : String(one)));

/**
 * An element with properties, attributes (whatever is no property) and listeners (functions named on…).
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {Record<string, any>} [properties]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "width" && key !== "height") /** @type {any} */ (element)[key] = value;
    else if (value !== false) element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...present(children));
  return element;
}

/** An SVG element. @param {string} name @param {Record<string, string | number>} [attributes] @param {...Child} children @returns {SVGElement} */
export function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  element.append(...present(children));
  return element;
}

/** A drawing of the icon set in index.html. @param {string} name */
export const icon = (name) => draw("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, draw("use", { href: `#i-${name}` }));

/** Whether the visitor asked for less motion. */
export const isCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Call `work` once, `milliseconds` after the last request to. @param {number} milliseconds @param {() => void} work */
export function debounced(milliseconds, work) {
  let timer = 0;
  return Object.assign(
    () => { clearTimeout(timer); timer = setTimeout(work, milliseconds); },
    { cancel: () => clearTimeout(timer), now: () => { clearTimeout(timer); work(); } },
  );
}
