// The captions of the library: texts that an uploaded video finds.
import * as api from "./api.js";
import { go } from "./address.js";
import { icon, make } from "./dom.js";
import { amount } from "./format.js";
import { t } from "./language.js";
import { emptyPanel, problemPanel, sentence, toast } from "./notice.js";
import { picture } from "./pictures.js";
import { longList } from "./rows.js";
import { may } from "./session.js";

/** @param {HTMLElement} panel @param {import("./address.js").Place} _place @param {AbortSignal} signal */
export function captionsTab(panel, _place, signal) {
  const text = make("input", { type: "text", placeholder: t("captions.placeholder"), "aria-label": t("captions.new"), required: true, maxLength: 2000 });
  const form = make("form", { className: "row filters-row", onsubmit: async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (await change(() => api.ask("/v1/captions", { json: { captions: [{ text: text.value }] } }), t("captions.added"))) { text.value = ""; list(); }
  } }, text, make("button", { type: "submit", className: "primary" }, t("action.add")));
  const total = make("p", { className: "status", role: "status" }, "\u00a0");
  const place = make("div", { className: "caption-rows" });
  const list = () => place.replaceChildren(longList({
    name: t("captions.list"), signal,
    fetchPage: async (offset, limit) => {
      const page = await api.ask(`/v1/captions?offset=${offset}&limit=${limit}`, { signal });
      return { items: page.captions, total: page.total };
    },
    makeRow: (/** @type {api.Caption} */ caption) => captionRow(caption, list),
    onfail: (error) => place.replaceChildren(problemPanel(error, list)),
    ontotal: (number) => { total.textContent = amount("count.captions", number); },
    onempty: () => place.replaceChildren(emptyPanel(t("captions.none"), t("captions.none-what"))),
  }));
  panel.replaceChildren(...(may("write") ? [form] : []), total, place);
  list();
}

/** @param {api.Caption} caption @param {() => void} list */
function captionRow(caption, list) {
  const id = caption.video_id;
  return make("div", { className: "video-row caption" },
    id ? make("button", { type: "button", className: "thumb", "aria-label": t("captions.play", { text: caption.text }), onclick: () => go({ play: id, part: null, t: null }, { opened: true }) },
      picture(`/v1/videos/${id}/thumbnail`)) : make("span", { className: "thumb" }),
    make("div", { className: "row-words" }, make("p", { className: "title two-lines", title: caption.text }, caption.text)),
    make("div", { className: "row" },
      make("button", { type: "button", className: "small", "aria-label": t("captions.search", { text: caption.text }), onclick: () => go({ q: caption.text }, { fresh: true }) }, icon("search")),
      may("write") && make("button", { type: "button", className: "small", "aria-label": t("captions.remove", { text: caption.text }), onclick: async () => {
        if (await change(() => api.ask(`/v1/captions/${caption.caption_id}`, { method: "DELETE" }), t("captions.removed"))) list();
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
