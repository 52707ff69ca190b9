// What stands below the box while nothing is asked: examples from the library's own captions, and some of its videos.
import * as api from "./api.js";
import { go } from "./address.js";
import { asHit, card, skeletons } from "./cards.js";
import { make } from "./dom.js";
import { amount } from "./format.js";
import { t } from "./language.js";
import { emptyPanel, problemPanel } from "./notice.js";
import { spread } from "./strip.js";

const VIDEOS = 12;
const CAPTIONS = 100;
const EXAMPLES = 6;
const LONGEST = 80;

/** @param {{body: HTMLElement, list: HTMLElement, more: HTMLElement, status: HTMLElement}} part
 * @param {import("./address.js").Place} place @param {AbortSignal} signal */
export async function home(part, place, signal) {
  part.status.replaceChildren();
  part.list.replaceChildren(...skeletons(8));
  part.more.replaceChildren();
  const examples = make("div", { className: "examples" });
  const title = make("h2", {}, t("home.newest"));
  part.body.replaceChildren(examples, title, part.list, part.more);
  try {
    const wanted = new URLSearchParams([["limit", String(VIDEOS)], ["sort", "newest"], ...place.tags.map((tag) => ["tag", tag])]);
    const [videos, captions] = await Promise.all([api.ask(`/v1/videos?${wanted}`, { signal }), someCaptions(signal)]);
    if (videos.total === 0 && place.tags.length === 0) {
      part.body.replaceChildren(emptyPanel(t("library.empty"), t("home.empty-what"),
        make("button", { type: "button", className: "primary", onclick: () => go({ view: "library" }, { fresh: true }) }, t("library.add"))));
      return;
    }
    title.textContent = amount("home.newest-of", videos.total);
    if (captions.length) {
      examples.append(make("span", { className: "quiet" }, t("home.try")), ...captions.map((text) =>
        make("button", { type: "button", className: "chip", onclick: () => go({ q: text }) }, text)));
    }
    part.list.replaceChildren(...videos.videos.map((/** @type {api.Video} */ video, /** @type {number} */ number) => card(asHit(video), number + 1)));
    if (videos.total > VIDEOS) part.more.replaceChildren(make("a", { className: "button", href: "/?view=library" }, t("home.all")));
  } catch (error) {
    if (!signal.aborted) part.body.replaceChildren(problemPanel(error, () => home(part, place, signal)));
  }
}

/** A few captions from here and there. @param {AbortSignal} signal @returns {Promise<string[]>} */
async function someCaptions(signal) {
  const page = await api.ask(`/v1/captions?limit=${CAPTIONS}`, { signal });
  const texts = page.captions.map((/** @type {api.Caption} */ caption) => caption.text).filter((/** @type {string} */ text) => text.length <= LONGEST);
  return spread(/** @type {string[]} */ ([...new Set(texts)]), EXAMPLES);
}
