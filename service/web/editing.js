// One video of the library: its title, tags and captions can be changed, and it can be removed.
import * as api from "./api.js";
import { change } from "./captions.js";
import { find, icon, make } from "./dom.js";
import { t } from "./language.js";
import { problemPanel } from "./notice.js";

const dialog = find("#editor");
const body = find("#editor-body");

/** @param {string} id */
export async function openEditor(id) {
  body.replaceChildren(make("p", { className: "quiet" }, t("action.loading")));
  dialog.showModal();
  try {
    const [video, captions] = await Promise.all([api.video(id), api.ask(`/v1/captions?video_id=${id}&limit=1000`)]);
    draw(video, captions.captions);
  } catch (error) {
    body.replaceChildren(problemPanel(error, () => { dialog.close(); openEditor(id); }));
  }
}

const changed = () => document.dispatchEvent(new Event("library-changed"));

/** @param {api.Video} video @param {api.Caption[]} captions */
function draw(video, captions) {
  const title = make("input", { type: "text", id: "edit-title", value: video.title, maxLength: 500 });
  const tags = tagInput(video.tags, "edit-tags");
  const save = make("form", { className: "stack", onsubmit: async (/** @type {Event} */ event) => {
    event.preventDefault();
    const edit = { tags: tags.values(), ...(title.value === video.title ? {} : { title: title.value }) };
    if (await change(() => api.ask(`/v1/videos/${video.video_id}`, { method: "PATCH", json: edit }), t("edit.saved"))) { dialog.close(); changed(); }
  } },
  make("label", { for: "edit-title" }, t("edit.video-title")), title,
  make("label", { for: "edit-tags" }, t("edit.tags")), tags.element,
  make("div", { className: "row end" }, make("button", { type: "submit", className: "primary" }, t("action.save"))));
  body.replaceChildren(save, captionsOf(video, captions), removal(video));
  title.focus();
}

/** @param {api.Video} video @param {api.Caption[]} captions */
function captionsOf(video, captions) {
  const text = make("input", { type: "text", placeholder: t("edit.add-caption"), "aria-label": t("edit.another"), required: true, maxLength: 2000 });
  const again = async () => draw(video, (await api.ask(`/v1/captions?video_id=${video.video_id}&limit=1000`)).captions);
  const items = captions.map((caption) => make("li", {}, make("span", {}, caption.text),
    make("button", { type: "button", className: "small", "aria-label": t("edit.remove-caption", { text: caption.text }), onclick: async () => {
      if (await change(() => api.ask(`/v1/captions/${caption.caption_id}`, { method: "DELETE" }), t("captions.removed"))) { again(); changed(); }
    } }, icon("bin"))));
  return make("section", {}, make("h3", {}, t("edit.captions")), make("ul", { className: "plain-list" }, ...items),
    make("form", { className: "row", onsubmit: async (/** @type {Event} */ event) => {
      event.preventDefault();
      const json = { captions: [{ text: text.value, video_id: video.video_id }] };
      if (await change(() => api.ask("/v1/captions", { json }), t("captions.added"))) { again(); changed(); }
    } }, text, make("button", { type: "submit" }, t("action.add"))));
}

/** Removing takes two presses. @param {api.Video} video */
function removal(video) {
  const button = make("button", { type: "button", className: "danger", id: "remove-video", onclick: async () => {
    if (!button.dataset.sure) {
      button.dataset.sure = "yes";
      button.textContent = t("edit.sure");
      return;
    }
    if (await change(() => api.ask(`/v1/videos/${video.video_id}`, { method: "DELETE" }), t("edit.removed"))) { dialog.close(); changed(); }
  } }, t("edit.remove"));
  return make("section", { className: "removal" }, button);
}

/** A field for tags: Enter or a comma ends one, Backspace takes the last back.
 * @param {readonly string[]} given @param {string} id @param {(tags: string[]) => void} [onchange] */
export function tagInput(given, id, onchange) {
  let tags = [...given];
  const input = make("input", { type: "text", id, placeholder: t("tags.add"), maxLength: 100, autocomplete: "off" });
  const element = make("div", { className: "tag-input" });
  const draw = () => element.replaceChildren(...tags.map((tag) => make("button", { type: "button", className: "tag on", "aria-label": t("tags.remove", { tag }), onclick: () => set(tags.filter((other) => other !== tag)) }, tag, icon("close"))), input);
  const set = (/** @type {string[]} */ next, quiet = false) => {
    tags = [...new Set(next)];
    const had = document.activeElement === input;
    draw();
    if (had) input.focus();
    if (!quiet) onchange?.(tags);
  };
  const take = () => {
    const fresh = input.value.split(",").map((tag) => tag.trim()).filter(Boolean);
    input.value = "";
    if (fresh.length) set([...tags, ...fresh]);
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === ",") {
      if (event.key === "Enter" && !input.value.trim()) return;
      event.preventDefault();
      take();
    } else if (event.key === "Backspace" && !input.value && tags.length) set(tags.slice(0, -1));
  });
  input.addEventListener("change", take);
  draw();
  return { element, values: () => { take(); return tags; }, set: (/** @type {string[]} */ next) => { if (next.join("\n") !== tags.join("\n")) set(next, true); } };
}

/** Listen to the dialog's buttons. */
export function start() {
  find("#editor-close").onclick = () => dialog.close();
}
