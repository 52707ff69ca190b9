// Pictures of moments: a few at a time, those in view first, so that a page of them does not flood the server.
import { make } from "./dom.js";

const MOST = 4;
const TRIES = 3;
const PATIENCE_MS = 1500;

/** @typedef {{image: HTMLImageElement, url: string, tries: number}} Wanted */

/** @type {Wanted[]} */
const waiting = [];
let running = 0;

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    const image = /** @type {HTMLImageElement} */ (entry.target);
    waiting.push({ image, url: image.dataset.url ?? "", tries: 0 });
    next();
  }
}, { rootMargin: "200px" });

function next() {
  while (running < MOST && waiting.length) {
    const open = waiting.findIndex((one) => one.image.closest("dialog[open]")); // what covers the page comes first
    const [wanted] = waiting.splice(Math.max(0, open), 1);
    if (wanted.image.isConnected) load(wanted);
  }
}

/** @param {Wanted} wanted */
function load(wanted) {
  const { image, url } = wanted;
  running += 1;
  const done = (/** @type {boolean} */ good) => {
    running -= 1;
    image.onload = image.onerror = null;
    image.classList.toggle("loaded", good);
    if (!good && wanted.tries + 1 >= TRIES) image.classList.add("missing");
    if (!good && ++wanted.tries < TRIES && image.isConnected) setTimeout(() => { waiting.push(wanted); next(); }, PATIENCE_MS * wanted.tries);
    next();
  };
  image.onload = () => done(true);
  image.onerror = () => done(false);
  image.src = wanted.tries ? `${url}${url.includes("?") ? "&" : "?"}try=${wanted.tries}` : url;
}

/** A picture that loads when it comes into view. @param {string} url @param {string} [alt] @param {string} [className] */
export function picture(url, alt = "", className = "") {
  const image = make("img", { alt, className, decoding: "async" });
  image.dataset.url = url;
  seen.observe(image);
  return image;
}
