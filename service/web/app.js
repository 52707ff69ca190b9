// Joins the views: what the address says is shown. No library, no build step; every part is a file beside this one.
import * as adding from "./adding.js";
import { describeIndex } from "./api.js";
import { misread, read } from "./address.js";
import { find } from "./dom.js";
import * as editing from "./editing.js";
import * as filters from "./filters.js";
import { amount } from "./format.js";
import * as keys from "./keys.js";
import { t, translated } from "./language.js";
import * as library from "./library.js";
import { correction, sentence, toast } from "./notice.js";
import * as asking from "./asking.js";
import * as player from "./player.js";
import * as search from "./search.js";
import * as session from "./session.js";
import * as videoin from "./videoin.js";

const NAMES = { "": "search", library: "library", video: "video" };

/** Show what the address asks for. */
function show() {
  const place = read();
  const name = NAMES[/** @type {keyof NAMES} */ (place.view)];
  for (const one of Object.values(NAMES)) find(`#${one}-view`).hidden = one !== name;
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    if (link.getAttribute("data-view") === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = name === "library" ? t("library.title") : name === "video" ? t("look.title") : place.q;
  document.title = title ? t("page.titled", { name: title }) : t("page.title");
  filters.show(place);
  if (name === "library") library.show(place);
  else library.leave();
  if (name === "search") search.show(place);
  if (name === "video") videoin.show();
  player.show(place);
}

async function knowIndex() {
  const index = await describeIndex();
  find("#facts").textContent = t("page.facts", { videos: amount("count.videos", index.counts.videos), captions: amount("count.captions", index.counts.captions), model: index.model });
  find("#correction").textContent = t("ranking.correction", { text: correction(index) });
  find("#banner").textContent = index.demo_notice ? t("page.note", { text: translated(index.demo_notice.replaceAll("`", ""), "page.demo") }) : "";
  find("#banner").hidden = !index.demo_notice;
  search.knowIndex(index);
  videoin.knowLimits(index);
  asking.knowHeads(index);
}

/** Links inside the page change the view, not the document. @param {MouseEvent} event */
function follow(event) {
  const link = /** @type {Element} */ (event.target).closest?.("a[href^='/']");
  if (event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || !link || link.hasAttribute("download")) return;
  const url = new URL(link.getAttribute("href") ?? "", location.href);
  if (url.pathname !== "/") return;
  event.preventDefault();
  if (url.search !== location.search) history.pushState(null, "", url);
  show();
  scrollTo(0, 0);
}

/** Whether a dropped file is added; elsewhere, it is looked up. */
const isAdding = () => read().view === "library" && session.may("write");

/** Files may be dropped anywhere. */
function acceptDrops() {
  const overlay = find("#drop"), label = find("#drop p");
  let depth = 0;
  const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (hasFiles(event)) { depth += 1; label.textContent = t(isAdding() ? "drop.add" : "drop.look"); overlay.hidden = false; } });
  addEventListener("dragleave", (event) => { if (hasFiles(event)) { depth = Math.max(0, depth - 1); overlay.hidden = depth === 0; } });
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    depth = 0;
    overlay.hidden = true;
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    if (adding.dropped(files)) return;
    if (isAdding()) adding.addDialog(files);
    else videoin.look(files[0]);
  });
  addEventListener("paste", (event) => {
    const picture = [...(event.clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"));
    if (picture && !document.querySelector("dialog[open]")) { event.preventDefault(); videoin.look(picture); }
  });
  find("#file").addEventListener("change", (/** @type {Event} */ event) => {
    const input = /** @type {HTMLInputElement} */ (event.target);
    const file = input.files?.[0];
    input.value = ""; // so that the same file can be chosen again
    if (file) videoin.look(file);
  });
}

const unclear = misread();
if (unclear.length) toast(t("page.link-unclear", { parts: unclear.join(", ") }), true);
for (const part of [search, filters, player, editing, adding, keys]) part.start();
acceptDrops();
addEventListener("popstate", show);
addEventListener("click", follow);
document.addEventListener("navigated", show);
document.addEventListener("library-changed", () => { search.forget(); knowIndex().catch(() => {}); });
session.start(() => { search.forget(); library.leave(); knowIndex().catch(() => {}); show(); }).catch((error) => { show(); toast(sentence(error), true); });
