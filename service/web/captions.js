// The captions of the library: texts that an uploaded video finds.
import * as api from "./api.js";
import { go } from "./address.js";
import { icon, make } from "./dom.js";
import { plural } from "./format.js";
import { emptyPanel, problemPanel, sentence, toast } from "./notice.js";
import { picture } from "./pictures.js";
import { longList } from "./rows.js";
import { may } from "./session.js";

/** @param {HTMLElement} panel @param {import("./address.js").Place} _place @param {AbortSignal} signal */
export function captionsTab(panel, _place, signal) {
  const text = make("input", { type: "text", placeholder: "Add a caption without a video…", "aria-label": "New caption", required: true, maxLength: 2000 });
  const form = make("form", { className: "row filters-row", onsubmit: async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (await change(() => api.ask("/v1/captions", { json: { captions: [{ text: text.value }] } }), "Caption added.")) { text.value = ""; list(); }
  } }, text, make("button", { type: "submit", className: "primary" }, "Add"));
  const total = make("p", { className: "status", role: "status" }, "\u00a0");
  const place = make("div", { className: "caption-rows" });
  const list = () => place.replaceChildren(longList({
    name: "Captions", signal,
    fetchPage: async (offset, limit) => {
      const page = await api.ask(`/v1/captions?offset=${offset}&limit=${limit}`, { signal });
      return { items: page.captions, total: page.total };
    },
    makeRow: (/** @type {api.Caption} */ caption) => captionRow(caption, list),
    onfail: (error) => place.replaceChildren(problemPanel(error, list)),
    ontotal: (number) => { total.textContent = plural(number, "caption"); },
    onempty: () => place.replaceChildren(emptyPanel("No captions yet", "Videos that you look up are matched with captions. Add some here, or with a video.")),
  }));
  panel.replaceChildren(...(may("write") ? [form] : []), total, place);
  list();
}

/** @param {api.Caption} caption @param {() => void} list */
function captionRow(caption, list) {
  const id = caption.video_id;
  return make("div", { className: "video-row caption" },
    id ? make("button", { type: "button", className: "thumb", "aria-label": `Play the video of: ${caption.text}`, onclick: () => go({ play: id, part: null, t: null }, { opened: true }) },
      picture(`/v1/videos/${id}/thumbnail`)) : make("span", { className: "thumb" }),
    make("div", { className: "row-words" }, make("p", { className: "title two-lines", title: caption.text }, caption.text)),
    make("div", { className: "row" },
      make("button", { type: "button", className: "small", "aria-label": `Search for: ${caption.text}`, onclick: () => go({ q: caption.text }, { fresh: true }) }, icon("search")),
      may("write") && make("button", { type: "button", className: "small", "aria-label": `Remove the caption: ${caption.text}`, onclick: async () => {
        if (await change(() => api.ask(`/v1/captions/${caption.caption_id}`, { method: "DELETE" }), "Caption removed.")) list();
      } }, icon("bin"))));
}

/** Change the library and say so; false if it did not work. @param {() => Promise<unknown>} work @param {string} done */
export async function change(work, done) {
  try {
    await work();
    toast(done);
    return true;
  } catch (error) {
    toast(sentence(error), true);
    return false;
  }
}
