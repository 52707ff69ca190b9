// The library: its videos and captions, what is being done to it, and how the service is.
import * as api from "./api.js";
import { go, TABS, write } from "./address.js";
import { addDialog } from "./adding.js";
import { openEditor } from "./editing.js";
import { captionsTab } from "./captions.js";
import { debounced, find, icon, make } from "./dom.js";
import { amount, clock, size } from "./format.js";
import { jobsTab } from "./jobs.js";
import { t } from "./language.js";
import { emptyPanel, problemPanel } from "./notice.js";
import { picture } from "./pictures.js";
import { longList } from "./rows.js";
import { may } from "./session.js";
import { statusTab } from "./status.js";

/** @typedef {import("./address.js").Place} Place @typedef {import("./api.js").Video} Video */

const FILTER_MS = 200;
const NAMES = { videos: "library.videos", captions: "library.captions", jobs: "library.jobs", status: "library.status" };
const view = find("#library-view");
/** @type {AbortController | null} */
let current = null;
let shown = "";

/** Leave the view: nothing of it goes on. */
export function leave() {
  current?.abort();
  shown = "";
}

/** @param {Place} place */
export function show(place) {
  const key = `${place.tab} ${place.job}`;
  if (key === shown) return;
  leave();
  shown = key;
  current = new AbortController();
  const tabs = make("nav", { className: "tabs", "aria-label": t("library.title") }, ...TABS.map((tab) =>
    make("a", { href: write({ view: "library", tab }), "aria-current": tab === place.tab ? "page" : null }, t(NAMES[/** @type {keyof NAMES} */ (tab)]))));
  const panel = make("div", { className: "panel" });
  view.replaceChildren(make("div", { className: "view-head" }, make("h1", { className: "view-title" }, t("library.title")),
    may("write") && make("button", { type: "button", className: "primary", id: "add", onclick: () => addDialog([]) }, icon("plus"), t("library.add"))), tabs, panel);
  const draw = { videos: videosTab, captions: captionsTab, jobs: jobsTab, status: statusTab }[place.tab];
  draw?.(panel, place, current.signal, () => { shown = ""; show(place); });
}

/** @param {HTMLElement} panel @param {Place} _place @param {AbortSignal} signal */
function videosTab(panel, _place, signal) {
  const title = make("input", { type: "search", placeholder: t("library.title-placeholder"), "aria-label": t("library.title-contains") });
  const tag = make("input", { type: "search", placeholder: t("library.tag"), "aria-label": t("library.has-tag") });
  const state = make("select", { "aria-label": t("library.state") }, ...[["indexed", t("library.searchable")], ["failed", t("library.failed")], ["any", t("library.any")]].map(([value, name]) => make("option", { value }, name)));
  const sort = make("select", { "aria-label": t("filters.order") }, ...[["newest", t("order.newest")], ["recorded", t("order.recorded")], ["title", t("order.title")], ["longest", t("order.longest")], ["shortest", t("order.shortest")]].map(([value, name]) => make("option", { value }, name)));
  const total = make("p", { className: "status", role: "status" }, "\u00a0");
  const place = make("div", {});
  /** @type {AbortController} */
  let listing;
  const list = () => {
    listing?.abort();
    listing = new AbortController();
    signal.addEventListener("abort", () => listing.abort());
    const wanted = new URLSearchParams({ state: state.value });
    const order = `&sort=${sort.value}`;
    if (title.value.trim()) wanted.set("title", title.value.trim());
    if (tag.value.trim()) wanted.append("tag", tag.value.trim());
    place.replaceChildren(longList({
      name: t("library.videos"), signal: listing.signal, makeRow: videoRow,
      fetchPage: async (offset, limit) => {
        const page = await api.ask(`/v1/videos?${wanted}${order}&offset=${offset}&limit=${limit}`, { signal: listing.signal });
        return { items: page.videos, total: page.total };
      },
      onfail: (error) => place.replaceChildren(problemPanel(error, list)),
      ontotal: (number) => { total.textContent = amount("count.videos", number); },
      onempty: () => place.replaceChildren(wanted.size > 1 || state.value !== "indexed" ? emptyPanel(t("results.none"), t("library.none-what"))
        : emptyPanel(t("library.empty"), t("library.empty-what"))),
    }));
  };
  const soon = debounced(FILTER_MS, list);
  title.addEventListener("input", soon);
  tag.addEventListener("input", soon);
  state.addEventListener("change", list);
  sort.addEventListener("change", list);
  document.addEventListener("library-changed", list, { signal });
  panel.replaceChildren(make("div", { className: "row filters-row" }, title, tag, state, sort), total, place);
  list();
}

/** @param {Video} video */
function videoRow(video) {
  const good = video.state === "indexed";
  return make("div", { className: "video-row" },
    make("button", { type: "button", className: "thumb", disabled: !good, "aria-label": t("library.play", { title: video.title }),
      onclick: () => go({ play: video.video_id, part: null, t: null }, { opened: true }) }, good && picture(video.thumbnail_url)),
    make("div", { className: "row-words" },
      make("p", { className: "title", title: video.title }, video.title),
      make("p", { className: "quiet one-line" }, [clock(video.duration_seconds ?? 0), size(video.size_bytes), video.segments.length > 1 && amount("count.segments", video.segments.length), amount("count.captions", video.captions.length)].filter(Boolean).join(" · ")),
      make("p", { className: "tags" }, ...(video.reason ? [make("span", { className: "reason" }, video.reason)] : video.tags.map((tag) => make("span", { className: "tag" }, tag))))),
    make("div", { className: "row" },
      good && may("write") && make("button", { type: "button", className: "small", "aria-label": t("library.edit", { title: video.title }), onclick: () => openEditor(video.video_id) }, icon("pen"), make("span", {}, t("action.edit")))));
}
