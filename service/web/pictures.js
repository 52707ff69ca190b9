// Pictures of moments, and sprites, files of many pictures: a few at a time, those in view first, so that a page of them
// does not flood the server.
import { make } from "./dom.js";

const MOST = 4;
const TRIES = 3;
const PATIENCE_MS = 1500;

const COLUMNS = 6; // of a sprite
const KEPT_SPRITES = 60;

/** `hosts` show the image: itself, or canvases.
 * @typedef {{image: HTMLImageElement, hosts: () => HTMLElement[], url: string, tries: number, ended: (good: boolean) => void}} Wanted
 * @typedef {{image: HTMLImageElement, isLoaded: boolean, waiting: Map<HTMLCanvasElement, (image: HTMLImageElement | null) => void>}} Sprite */

/** @type {Wanted[]} */
const waiting = [];
let running = 0;

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    const host = /** @type {HTMLElement} */ (entry.target);
    if (host instanceof HTMLImageElement) want(host, () => [host], host.dataset.url ?? "", (good) => host.classList.toggle("loaded", good) || host.classList.add("missing"));
    else host.dispatchEvent(new Event("seen"));
  }
}, { rootMargin: "200px" });

/** Whether what shows the image is still on the page. @param {Wanted} wanted */
const isWanted = (wanted) => wanted.hosts().some((host) => host.isConnected);

/** @param {HTMLImageElement} image @param {() => HTMLElement[]} hosts @param {string} url @param {(good: boolean) => void} ended */
function want(image, hosts, url, ended) {
  waiting.push({ image, hosts, url, tries: 0, ended });
  next();
}

function next() {
  while (running < MOST && waiting.length) {
    const open = waiting.findIndex((one) => one.hosts().some((host) => host.closest("dialog[open]"))); // what covers the page comes first
    const [wanted] = waiting.splice(Math.max(0, open), 1);
    if (isWanted(wanted)) load(wanted);
    else wanted.ended(false);
  }
}

/** @param {Wanted} wanted */
function load(wanted) {
  const { image, url } = wanted;
  running += 1;
  const done = (/** @type {boolean} */ good) => {
    running -= 1;
    image.onload = image.onerror = null;
    if (good || ++wanted.tries >= TRIES || !isWanted(wanted)) wanted.ended(good);
    else setTimeout(() => { waiting.push(wanted); next(); }, PATIENCE_MS * wanted.tries);
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

/** Sprites by their address, the last used at the end. @type {Map<string, Sprite>} */
const sprites = new Map();

/** Call back with a sprite, or with null where it cannot be had. @param {string} url @param {HTMLCanvasElement} canvas @param {(image: HTMLImageElement | null) => void} done */
function withSprite(url, canvas, done) {
  const known = sprites.get(url), sprite = known ?? { image: new Image(), isLoaded: false, waiting: new Map() };
  sprites.delete(url);
  sprites.set(url, sprite);
  if (sprite.isLoaded) { done(sprite.image); return; }
  sprite.waiting.set(canvas, done);
  if (known) return;
  want(sprite.image, () => [...sprite.waiting.keys()], url, (good) => {
    sprite.isLoaded = good;
    if (!good) sprites.delete(url);
    for (const call of sprite.waiting.values()) call(good ? sprite.image : null);
    sprite.waiting.clear();
    for (const [old, { isLoaded }] of sprites) {
      if (sprites.size <= KEPT_SPRITES) break;
      if (isLoaded) sprites.delete(old);
    }
  });
}

/** Draw tile `number` of a sprite of `count` as soon as it is there, unless the canvas is to show another by then.
 * `failed` is called where the sprite cannot be had.
 * @param {HTMLCanvasElement} canvas @param {string} url @param {number} count @param {number} number @param {() => void} [failed] */
export function drawTile(canvas, url, count, number, failed = () => {}) {
  canvas.dataset.sprite = url;
  canvas.dataset.tile = String(number);
  withSprite(url, canvas, (image) => {
    if (canvas.dataset.sprite !== url || canvas.dataset.tile !== String(number)) return;
    if (!image) { failed(); return; }
    const width = image.naturalWidth / COLUMNS, height = image.naturalHeight / Math.ceil(count / COLUMNS);
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d")?.drawImage(image, (number % COLUMNS) * width, Math.floor(number / COLUMNS) * height, width, height, 0, 0, width, height);
    canvas.classList.add("loaded");
  });
}

/** A tile of a sprite, drawn when it comes into view; a picture of its own where the sprite cannot be had.
 * @param {string} url @param {number} count @param {number} number @param {string} alone the address of the single picture */
export function tile(url, count, number, alone) {
  const canvas = make("canvas", { className: "of-sprite" });
  canvas.addEventListener("seen", () => drawTile(canvas, url, count, number, () => canvas.replaceWith(picture(alone))));
  seen.observe(canvas);
  return canvas;
}
