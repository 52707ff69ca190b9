// A segment's frames in their order of time, and under them how much the query weighs each.
import { pictureUrl, spriteUrl } from "./api.js";
import { draw, make } from "./dom.js";
import { clock, percent } from "./format.js";
import { t } from "./language.js";
import { tile } from "./pictures.js";

/** @typedef {import("./api.js").Frame} Frame */

export const OVERVIEW_TILES = 24; // of the sprite of a whole video
export const MOST_SHOWN = 6; // frames of a strip

/** Bars of the weights; the heaviest frame is marked. Heights follow the cube root of the weight: one frame often
 * takes nearly all of it, and the others would vanish. @param {Frame[]} frames */
export function weightBars(frames) {
  const largest = Math.max(...frames.map((frame) => frame.weight), 1e-9);
  const width = 100 / frames.length;
  const bars = frames.map((frame, number) => {
    const height = Math.max(1.5, 20 * Math.cbrt(frame.weight / largest));
    return draw("rect", { x: number * width + width * 0.08, y: 20 - height, width: width * 0.84, height, class: frame.weight === largest ? "best" : "" });
  });
  return draw("svg", { class: "weights", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars);
}

/** At most `most` of some things, evenly spread. @template T @param {T[]} all @param {number} most @returns {T[]} */
export function spread(all, most) {
  if (all.length <= most) return all;
  return Array.from({ length: most }, (_, number) => all[Math.round((number * (all.length - 1)) / (most - 1))]);
}

/** At most `most` frames: each stretch of time is represented by its heaviest one. @param {Frame[]} frames @param {number} most */
export function heaviest(frames, most) {
  if (frames.length <= most) return frames;
  return Array.from({ length: most }, (_, number) => frames.slice(Math.floor((number * frames.length) / most), Math.floor(((number + 1) * frames.length) / most))
    .reduce((best, frame) => (frame.weight > best.weight ? frame : best)));
}

/** The picture of a frame, out of the sprite of its segment. @param {string} id @param {number} segment @param {Frame[]} frames @param {Frame} frame */
const frameTile = (id, segment, frames, frame) => tile(spriteUrl(id, segment), frames.length, frames.indexOf(frame), pictureUrl(id, frame.time));

/** Pictures over weights, to look at: one picture for each bar. @param {string} id @param {number} segment @param {Frame[]} frames @param {number} [most] */
export function strip(id, segment, frames, most = MOST_SHOWN) {
  const shown = heaviest(frames, most);
  return make("div", { className: "strip" }, make("div", { className: "frames" }, ...shown.map((frame) => frameTile(id, segment, frames, frame))), weightBars(shown));
}

/** Pictures over weights, to choose a moment by. @param {string} id @param {number} segment @param {Frame[]} frames @param {(seconds: number) => void} choose */
export function chooser(id, segment, frames, choose) {
  const largest = Math.max(...frames.map((frame) => frame.weight), 1e-9);
  const buttons = frames.map((frame) => make("button",
    { type: "button", className: frame.weight === largest ? "frame best" : "frame", title: t("strip.at", { time: clock(frame.time), share: percent(frame.weight) }),
      "aria-label": t("strip.play", { time: clock(frame.time), share: percent(frame.weight) }), onclick: () => choose(frame.time) },
    frameTile(id, segment, frames, frame)));
  return make("div", { className: "strip chooser" }, make("div", { className: "frames" }, ...buttons), weightBars(frames));
}

/** When tile `number` of the sprite of a whole video is shown. @param {number} number @param {number} duration */
export const overviewTime = (number, duration) => ((number + 0.5) / OVERVIEW_TILES) * duration;

/** Every second tile of a whole video in a row; a click plays from there. For the pointer alone: the player's own controls
 * serve the keyboard. @param {string} id @param {number} duration @param {(seconds: number) => void} choose */
export function timeline(id, duration, choose) {
  const numbers = Array.from({ length: OVERVIEW_TILES / 2 }, (_, place) => 2 * place + 1);
  return make("div", { className: "timeline", "aria-hidden": "true" }, ...numbers.map((number) => {
    const at = overviewTime(number, duration), canvas = tile(spriteUrl(id), OVERVIEW_TILES, number, pictureUrl(id, at));
    return make("span", { title: clock(at), onclick: () => choose(at) }, canvas);
  }));
}
