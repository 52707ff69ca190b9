// Adding videos: files are sent one after the other, and each is followed until it can be found.
import * as api from "./api.js";
import { tagInput } from "./editing.js";
import { find, icon, make } from "./dom.js";
import { limit, percent } from "./format.js";
import { t } from "./language.js";
import { sentence, stateName } from "./notice.js";
import { may } from "./session.js";

const LOOK_MS = 700;
const dialog = find("#adding");
const part = { form: find("#adding form"), files: find("#add-files"), chosen: find("#add-chosen"), title: find("#add-title"), tags: find("#add-tags"), captions: find("#add-captions"), tray: find("#tray") };
/** @type {File[]} */
let files = [];
/** @type {ReturnType<typeof tagInput>} */
let tags;

/** Ask what is to be known of some files, then add them. @param {File[]} given */
export function addDialog(given) {
  part.form.reset();
  tags = tagInput([], "add-tags-input");
  part.tags.replaceChildren(tags.element);
  choose(given);
  dialog.showModal();
}

/** @param {File[]} given */
function choose(given) {
  files = given;
  part.chosen.textContent = files.length ? files.map((file) => t("add.file", { name: file.name, size: limit(file.size) })).join(", ") : t("add.none");
  part.title.disabled = files.length > 1;
  find("button[type=submit]", part.form).disabled = files.length === 0;
}

/** Add files that were dropped while the dialog is open. @param {File[]} given */
export function dropped(given) {
  if (!dialog.open) return false;
  choose(given);
  return true;
}

async function add() {
  const about = { title: files.length === 1 ? part.title.value.trim() : "", tags: tags.values(), captions: part.captions.value.split("\n").map((/** @type {string} */ line) => line.trim()).filter(Boolean) };
  const given = files;
  dialog.close();
  for (const file of given) await addOne(file, about);
}

/** @param {File} file @param {{title: string, tags: string[], captions: string[]}} about */
async function addOne(file, about) {
  const bar = make("progress", { max: 1, value: 0, "aria-label": t("add.progress", { name: file.name }) });
  const said = make("p", { className: "quiet" }, t("add.sending"));
  const stop = new AbortController();
  const away = make("button", { type: "button", className: "small", "aria-label": t("add.dismiss", { name: file.name }), onclick: () => { stop.abort(); item.remove(); } }, icon("close"));
  const item = make("div", { className: "tray-item", role: "status" }, make("p", { className: "title" }, file.name), away, said, bar);
  part.tray.append(item);
  const end = (/** @type {string} */ text, bad = false) => { said.textContent = text; item.classList.add(bad ? "bad" : "good"); bar.remove(); };
  const form = new FormData();
  form.append("file", file);
  form.append("title", about.title || file.name.replace(/\.[^.]+$/, "").slice(0, 500));
  about.tags.forEach((tag) => form.append("tags", tag));
  about.captions.forEach((caption) => form.append("captions", caption));
  try {
    const added = await api.send("/v1/videos", form, { signal: stop.signal, onprogress: (share) => {
      if (share < 1) { bar.value = share; said.textContent = t("add.sending-share", { share: percent(share) }); } else { bar.removeAttribute("value"); said.textContent = t("add.received"); }
    } });
    if (added.job_id) await follow(added, said, bar, stop.signal);
    end(t(added.job_id ? "add.added" : "add.known"));
    document.dispatchEvent(new Event("library-changed"));
  } catch (error) {
    if (!api.isAbort(error)) end(sentence(error), true);
  }
}

/** Wait until a video can be found; throws why it cannot. @param {{video_id: string, job_id: string}} added @param {HTMLElement} said @param {HTMLProgressElement} bar @param {AbortSignal} signal */
async function follow(added, said, bar, signal) {
  for (;;) {
    const job = may("admin") ? await api.ask(`/v1/jobs/${added.job_id}`, { signal }) : null; // a lesser key sees no jobs
    if (job) {
      if (job.progress.total) { bar.max = job.progress.total; bar.value = job.progress.done; }
      said.textContent = job.progress.note || t(job.state === "queued" ? "add.queued" : "add.working");
      if (job.state === "succeeded") return;
      if (["failed", "cancelled", "lost"].includes(job.state)) throw new api.Problem({ detail: job.error ?? t("add.job-ended", { state: stateName(job.state) }), next_step: t("add.job-log") });
    } else if (await isThere(added.video_id, signal)) return;
    else said.textContent = t("add.working");
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    signal.throwIfAborted();
  }
}

/** @param {string} id @param {AbortSignal} signal */
async function isThere(id, signal) {
  try {
    return (await api.ask(`/v1/videos/${id}`, { signal })).state === "indexed";
  } catch (error) {
    if (error instanceof api.Problem && error.status === 404) throw new api.Problem({ detail: t("add.undecodable"), next_step: t("add.another-file") });
    throw error;
  }
}

/** Listen to the dialog. */
export function start() {
  find("#add-close").onclick = () => dialog.close();
  part.files.addEventListener("change", () => choose([...part.files.files]));
  part.form.addEventListener("submit", (/** @type {Event} */ event) => { event.preventDefault(); add(); });
}
