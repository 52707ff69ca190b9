// A segment's frames in their order of time, and under them how much the query weighs each.
import { pictureUrl } from "./api.js";
import { draw, make } from "./dom.js";
import { clock } from "./format.js";
import { picture } from "./pictures.js";

/** @typedef {import("./api.js").Frame} Frame */

/** Bars of the weights; the heaviest frame is marked. @param {Frame[]} frames */
export function weightBars(frames) {
  const largest = Math.max(...frames.map((frame) => frame.weight), 1e-9);
  const width = 100 / frames.length;
  const bars = frames.map((frame, number) => {
    const height = Math.max(1, (20 * frame.weight) / largest);
    return draw("rect", { x: number * width + width * 0.08, y: 20 - height, width: width * 0.84, height, class: frame.weight === largest ? "best" : "" });
  });
  return draw("svg", { class: "weights", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars);
}

/** At most `most` of some things, evenly spread. @template T @param {T[]} all @param {number} most @returns {T[]} */
export function spread(all, most) {
  if (all.length <= most) return all;
  return Array.from({ length: most }, (_, number) => all[Math.round((number * (all.length - 1)) / (most - 1))]);
}

/** Pictures over weights, to look at. @param {string} id @param {Frame[]} frames @param {number} [most] */
export function strip(id, frames, most = 6) {
  const pictures = spread(frames, most).map((frame) => picture(pictureUrl(id, frame.time)));
  return make("div", { className: "strip" }, make("div", { className: "frames" }, ...pictures), weightBars(frames));
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
