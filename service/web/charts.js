// Small line charts of a run: values over steps, drawn as SVG, with what the pointer is at.
import { draw, make } from "./dom.js";
import { count } from "./format.js";
import { locale, t } from "./language.js";

/** @typedef {{name: string, points: [number, number][]}} Series */

const BOX = { width: 520, height: 220, left: 44, right: 12, top: 12, bottom: 26 };
const TICKS = 4;

/** @param {number} low @param {number} high */
function ticks(low, high) {
  const raw = (high - low || 1) / TICKS;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((one) => one * power >= raw) ?? 10);
  const from = Math.ceil(low / step), to = Math.floor(high / step + 1e-9);
  return Array.from({ length: to - from + 1 }, (_, number) => (from + number) * step);
}

/** @param {string} title @param {Series[]} series @param {{unit?: string, most?: number}} [how] */
export function lineChart(title, series, { unit = "", most } = {}) {
  const points = series.flatMap((one) => one.points);
  const [x0, x1] = [Math.min(...points.map(([x]) => x)), Math.max(...points.map(([x]) => x))];
  const [low, high] = [Math.min(0, ...points.map(([, y]) => y)), most ?? Math.max(...points.map(([, y]) => y))];
  const x = (/** @type {number} */ value) => BOX.left + ((value - x0) / (x1 - x0 || 1)) * (BOX.width - BOX.left - BOX.right);
  const y = (/** @type {number} */ value) => BOX.height - BOX.bottom - ((value - low) / (high - low || 1)) * (BOX.height - BOX.top - BOX.bottom);
  const last = series.map((one) => `${one.name} ${shown(one.points.at(-1)?.[1] ?? NaN)}${unit}`).join(", ");
  const svg = draw("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": t("chart.described", { title, values: last }) },
    ...ticks(low, high).flatMap((value) => [draw("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: y(value), y2: y(value) }),
      draw("text", { x: BOX.left - 6, y: y(value) + 4, "text-anchor": "end" }, inFigures(value))]),
    ...ticks(x0, x1).map((value) => draw("text", { x: x(value), y: BOX.height - 6, "text-anchor": "middle" }, count(value))),
    ...series.map((one, number) => draw("path", { class: `line-${number}`, d: one.points.map(([a, b], place) => `${place ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("") })));
  const legend = make("figcaption", {}, make("b", {}, title), ...series.map((one, number) => make("span", { className: `key key-${number}` }, `${one.name} `, make("output", {}, `${shown(one.points.at(-1)?.[1] ?? NaN)}${unit}`))), make("span", { className: "quiet at-step" }, t("chart.step", { number: x1 })));
  const figure = make("figure", { className: "chart" }, legend, svg);
  const line = draw("line", { class: "pointer", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" });
  svg.append(line);
  const showStep = (/** @type {number} */ step) => {
    series.forEach((one, number) => {
      const near = one.points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best), one.points[0]);
      figure.querySelectorAll("output")[number].textContent = `${shown(near?.[1] ?? NaN)}${unit}`;
    });
    const at = figure.querySelector(".at-step");
    if (at) at.textContent = t("chart.step", { number: Math.round(step) });
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * BOX.width;
    const step = Math.min(x1, Math.max(x0, x0 + ((place - BOX.left) / (BOX.width - BOX.left - BOX.right)) * (x1 - x0)));
    line.setAttribute("x1", String(x(step)));
    line.setAttribute("x2", String(x(step)));
    line.setAttribute("visibility", "visible");
    showStep(step);
  });
  svg.addEventListener("pointerleave", () => { line.setAttribute("visibility", "hidden"); showStep(x1); });
  return figure;
}

/** @param {number} value */
const shown = (value) => (Number.isNaN(value) ? "–" : inFigures(value));

/** @param {number} value */
const inFigures = (value) => (+value.toPrecision(3)).toLocaleString(locale, { maximumSignificantDigits: 3, useGrouping: false });

/** The charts of a training run: loss, and R@K in both directions. @param {Record<string, any>[]} metrics */
export function trainingCharts(metrics) {
  const losses = /** @type {[number, number][]} */ (metrics.filter((line) => typeof line.loss === "number").map((line) => [line.step, line.loss]));
  const checks = metrics.filter((line) => line.validation);
  const charts = losses.length > 1 ? [lineChart(t("chart.loss-title"), [{ name: t("chart.loss"), points: losses }])] : [];
  for (const [name, key] of [[t("chart.text-to-video"), "text_to_video"], [t("chart.video-to-text"), "video_to_text"]]) {
    const series = ["R@1", "R@5", "R@10"].map((recall) => ({ name: recall, points: /** @type {[number, number][]} */ (
      checks.filter((line) => typeof line.validation[key]?.[recall] === "number").map((line) => [line.step, line.validation[key][recall]])) }));
    if (series[0].points.length > 1) charts.push(lineChart(name, series, { unit: " %", most: 100 }));
  }
  return charts;
}
