// Numbers as people read them.

/** Seconds as 1:02.5, or 1:02:03 from an hour on. @param {number} seconds */
export function clock(seconds) {
  const tenths = Math.round(Math.max(0, seconds) * 10);
  const pad = (/** @type {number} */ number) => String(number).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, Math.floor(tenths / 10) % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}.${tenths % 10}`;
}

/** @param {number} from @param {number} to */
export const range = (from, to) => `${clock(from)} – ${clock(to)}`;

/** Bytes as 1.5 MB. @param {number} bytes */
export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const step = bytes < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3));
  return `${step ? (bytes / 1000 ** step).toFixed(1) : bytes} ${units[step]}`;
}

/** Bytes as limits are set, in 1024s. @param {number} bytes */
export const limit = (bytes) => (bytes >= 2 ** 20 ? `${+(bytes / 2 ** 20).toFixed(1)} MiB` : `${+(bytes / 2 ** 10).toFixed(1)} KiB`);

/** @param {number} number */
export const count = (number) => number.toLocaleString("en");

/** "1 video", "2 videos". @param {number} number @param {string} name */
export const plural = (number, name) => `${count(number)} ${name}${number === 1 ? "" : "s"}`;

/** @param {number} milliseconds */
export const ms = (milliseconds) => (milliseconds < 10 ? `${milliseconds.toFixed(1)} ms` : `${count(Math.round(milliseconds))} ms`);

/** @param {number} score */
export const score = (score) => score.toFixed(3);

/** A point in time, in the visitor's own way. @param {string | null} iso */
export const moment = (iso) => (iso ? new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "–");

/** The day of a time, as it is written here. @param {string} iso */
export const day = (iso) => new Date(iso).toLocaleDateString(undefined, { dateStyle: "medium" });
