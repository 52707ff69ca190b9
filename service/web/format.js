// Numbers as people read them, in the language of the page.
import { locale, t } from "./language.js";

/** @param {number} number @param {number} digits behind the decimal mark */
const fixed = (number, digits) => number.toLocaleString(locale, { minimumFractionDigits: digits, maximumFractionDigits: digits });
const MARK = fixed(0.5, 1).replace(/\d/g, "");

/** Seconds as 1:02.5, or 1:02:03 from an hour on. @param {number} seconds */
export function clock(seconds) {
  const tenths = Math.round(Math.max(0, seconds) * 10);
  const pad = (/** @type {number} */ number) => String(number).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, Math.floor(tenths / 10) % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}${MARK}${tenths % 10}`;
}

/** @param {number} from @param {number} to */
export const range = (from, to) => `${clock(from)} – ${clock(to)}`;

/** Bytes as 1.5 MB. @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return t("count.bytes", { number: bytes });
  const units = ["kB", "MB", "GB", "TB"];
  const step = Math.min(units.length, Math.floor(Math.log10(bytes) / 3));
  return `${fixed(bytes / 1000 ** step, 1)} ${units[step - 1]}`;
}

/** @param {number} number */
const rounded = (number) => number.toLocaleString(locale, { maximumFractionDigits: 1, useGrouping: false });

/** Bytes as limits are set, in 1024s. @param {number} bytes */
export const limit = (bytes) => (bytes >= 2 ** 20 ? `${rounded(bytes / 2 ** 20)} MiB` : `${rounded(bytes / 2 ** 10)} KiB`);

/** @param {number} number */
export const count = (number) => number.toLocaleString(locale);

/** "1 video", "2 videos". @param {string} key of a message with plural forms @param {number} number */
export const amount = (key, number) => t(key, { count: number });

/** A share as whole percent, without the sign. @param {number} share from 0 to 1 */
export const percent = (share) => count(Math.round(100 * share));

/** @param {number} milliseconds */
export const ms = (milliseconds) => (milliseconds < 10 ? `${fixed(milliseconds, 1)} ms` : `${count(Math.round(milliseconds))} ms`);

/** @param {number} score */
export const score = (score) => fixed(score, 3);

/** A point in time, in the visitor's own way. @param {string | null} iso */
export const moment = (iso) => (iso ? new Date(iso).toLocaleString(locale, { dateStyle: "medium", timeStyle: "short" }) : "–");

/** The day of a time, as the language writes it. @param {string} iso */
export const day = (iso) => new Date(iso).toLocaleDateString(locale, { dateStyle: "medium" });
