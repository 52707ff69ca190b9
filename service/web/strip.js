// A segment's frames in their order of time, and under them how much the query weighs each.
import { pictureUrl } from "./api.js";
import { draw, make } from "./dom.js";
import { clock } from "./format.js";
import { picture } from "./pictures.js";

/** @typedef {import("./api.js").Frame} Frame */

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

/** Pictures over weights, to look at: one picture for each bar. @param {string} id @param {Frame[]} frames @param {number} [most] */
export function strip(id, frames, most = 6) {
  const shown = heaviest(frames, most);
  return make("div", { className: "strip" }, make("div", { className: "frames" }, ...shown.map((frame) => picture(pictureUrl(id, frame.time)))), weightBars(shown));
}

/** Pictures over weights, to choose a moment by. @param {string} id @param {Frame[]} frames @param {(seconds: number) => void} choose */
export function chooser(id, frames, choose) {
  const largest = Math.max(...frames.map((frame) => frame.weight), 1e-9);
  const buttons = frames.map((frame) => make("button",
    { type: "button", className: frame.weight === largest ? "frame best" : "frame", title: `${clock(frame.time)}, weight ${(frame.weight * 100).toFixed(0)} %`,
      "aria-label": `Play from ${clock(frame.time)}, weight ${(frame.weight * 100).toFixed(0)} %`, onclick: () => choose(frame.time) },
    picture(pictureUrl(id, frame.time))));
  return make("div", { className: "strip chooser" }, make("div", { className: "frames" }, ...buttons), weightBars(frames));
}
