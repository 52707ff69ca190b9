// The search page. Talks to the API that /docs describes; no library, no build step.

/**
 * @typedef {{time: number, weight: number}} Frame
 * @typedef {{video_id: string, segment: number, start: number, end: number, score: number, stage1_score: number,
 *   moment: number, frame_weights: Frame[], title: string, duration_seconds: number, tags: string[],
 *   thumbnail_url: string, stream_url: string}} Hit
 * @typedef {{text: string, score: number, moment: number}} Caption
 * @typedef {{upload_limits: {max_bytes: number}, counts: {videos: number, captions: number}, model: string}} Index
 */

/** @param {string} selector @returns {any} */
const find = (selector, inside = document) => inside.querySelector(selector);

const page = {
  text: find("#text"), rerank: find("#rerank"), file: find("#file"), progress: find("#progress"),
  status: find("#status"), captions: find("#captions"), videos: find("#videos"), player: find("#player"),
};
const HITS = 24;

/** The request under way; a newer one takes its place. @type {AbortController | null} */
let current = null;
/** @type {Index | null} */
let index = null;

/** Seconds as 1:02.5. @param {number} seconds */
function clock(seconds) {
  const tenths = Math.floor(seconds * 10);
  const rest = String(Math.floor((tenths % 600) / 10)).padStart(2, "0");
  return `${Math.floor(tenths / 600)}:${rest}.${tenths % 10}`;
}

/** @param {string} text */
function say(text, bad = false) {
  page.status.textContent = text;
  page.status.classList.toggle("bad", bad);
}

/** What a problem says, and what to do. @param {any} problem */
const explain = (problem) => (problem.detail ? `${problem.detail}. Next: ${problem.next_step}.` : "The server answered with an error.");

/** Ask the API for JSON; throws an error that can be shown. @param {string} path @param {RequestInit} [options] */
async function ask(path, options) {
  const response = await fetch(path, options);
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(explain(body));
  return body;
}

/** Search with a request body and show the hits. @param {object} body @param {string} name */
async function search(body, name) {
  current?.abort();
  const mine = (current = new AbortController());
  say("Searching…");
  const started = performance.now();
  try {
    const answer = await ask("/v1/search", {
      method: "POST", signal: mine.signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ k: HITS, rerank: page.rerank.value, ...body }),
    });
    page.captions.hidden = true;
    showHits(answer.hits, name);
    say(`${answer.hits.length} videos in ${Math.round(performance.now() - started)} ms`);
  } catch (error) {
    if (!mine.signal.aborted) fail(error);
  }
}

/** @param {any} error */
function fail(error) {
  say(error instanceof TypeError ? "The server cannot be reached. Is it running?" : error.message, true);
}

/** @param {Hit[]} hits @param {string} name */
function showHits(hits, name) {
  find("h2", page.videos).textContent = name;
  find("ol", page.videos).replaceChildren(...hits.map(makeCard));
  page.videos.hidden = false;
}

/** @param {Hit} hit */
function makeCard(hit) {
  const item = find("#card").content.cloneNode(true).firstElementChild;
  const card = find(".card", item);
  find("img", card).src = hit.thumbnail_url;
  find(".at", card).textContent = clock(hit.moment);
  find(".title", card).textContent = hit.title;
  find(".quiet", card).textContent =
    `${hit.score.toFixed(3)} · ${clock(hit.start)}–${clock(hit.end)}${hit.tags.length ? " · " + hit.tags.join(", ") : ""}`;
  drawWeights(find(".weights", card), hit.frame_weights);
  card.addEventListener("click", () => play(hit));
  card.addEventListener("pointerenter", () => preview(card, hit));
  card.addEventListener("pointerleave", () => find("video", card)?.remove());
  return item;
}

/** Bars of the query's weight over the frames of a segment. @param {SVGElement} svg @param {Frame[]} frames */
function drawWeights(svg, frames) {
  const largest = Math.max(...frames.map((frame) => frame.weight), 1e-9);
  const width = 100 / frames.length;
  svg.replaceChildren(...frames.map((frame, number) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = Math.max(1, 20 * (frame.weight / largest));
    const box = { x: number * width, y: 20 - height, width: width * 0.85, height };
    for (const [name, value] of Object.entries(box)) bar.setAttribute(name, String(value));
    return bar;
  }));
}

/** Play the moment, silently, inside a card. @param {HTMLElement} card @param {Hit} hit */
function preview(card, hit) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const video = document.createElement("video");
  Object.assign(video, { src: `${hit.stream_url}#t=${hit.moment}`, muted: true, playsInline: true, loop: true });
  video.addEventListener("error", () => video.remove()); // a format that this browser does not play
  find(".screen", card).append(video);
  video.play().catch(() => video.remove());
}

/** Open the player at the moment. @param {Hit} hit */
function play(hit) {
  const video = find("video", page.player);
  find("h2", page.player).textContent = hit.title;
  find("p", page.player).textContent = `from ${clock(hit.moment)} of ${clock(hit.duration_seconds)}`;
  video.onerror = () => { find("p", page.player).textContent = "This browser does not play this video's format."; };
  video.src = `${hit.stream_url}#t=${hit.moment}`;
  find("#alike").onclick = () => {
    page.player.close();
    search({ video_id: hit.video_id, segment: hit.segment }, `Like ${hit.title}`);
  };
  page.player.showModal();
  video.play().catch(() => {}); // a browser that does not start by itself shows its controls
}

/** Send a video, then show its captions and similar videos. @param {File} file */
function upload(file) {
  const limit = index?.upload_limits.max_bytes ?? Infinity;
  if (file.size > limit) {
    say(`${file.name} has ${(file.size / 2 ** 20).toFixed(0)} MiB; at most ${(limit / 2 ** 20).toFixed(0)} MiB are taken.`, true);
    return;
  }
  current?.abort();
  const mine = (current = new AbortController());
  const form = new FormData();
  form.append("file", file);
  const request = new XMLHttpRequest(); // fetch does not tell how much was sent
  mine.signal.addEventListener("abort", () => request.abort());
  request.upload.onprogress = (event) => { page.progress.value = event.total ? event.loaded / event.total : 0; };
  request.upload.onload = () => { page.progress.removeAttribute("value"); say(`Looking at ${file.name}…`); };
  request.onloadend = () => { page.progress.hidden = true; };
  request.onerror = () => say("The server closed the connection, or cannot be reached.", true);
  request.onload = () => {
    const answer = request.response ?? {};
    if (request.status === 200) showUpload(answer, file.name);
    else say(explain(answer), true);
  };
  page.progress.value = 0;
  page.progress.hidden = false;
  say(`Sending ${file.name}…`);
  request.responseType = "json";
  request.open("POST", `/v1/search/video?k=${HITS}&rerank=${page.rerank.value}`);
  request.send(form);
}

/** @param {{captions: Caption[], hits: Hit[]}} answer @param {string} name */
function showUpload(answer, name) {
  find("ol", page.captions).replaceChildren(...answer.captions.slice(0, 10).map((caption) => {
    const item = document.createElement("li");
    const text = document.createElement("span");
    const facts = document.createElement("span");
    text.textContent = caption.text;
    facts.textContent = `${caption.score.toFixed(3)} · at ${clock(caption.moment)}`;
    facts.className = "quiet";
    item.append(text, facts);
    return item;
  }));
  page.captions.hidden = answer.captions.length === 0;
  showHits(answer.hits, "Similar videos");
  say(`${name}: ${answer.captions.length} captions, ${answer.hits.length} similar videos. Nothing of it was kept.`);
}

/** Show what the address asks for. */
function followAddress() {
  const asked = new URLSearchParams(location.search);
  page.text.value = asked.get("q") ?? "";
  page.rerank.value = asked.get("rerank") ?? "emcl";
  if (page.text.value) search({ text: page.text.value }, `“${page.text.value}”`);
}

/** @param {SubmitEvent} event */
function submit(event) {
  event.preventDefault();
  const asked = new URLSearchParams({ q: page.text.value });
  if (page.rerank.value !== "emcl") asked.set("rerank", page.rerank.value);
  history.pushState(null, "", `?${asked}`);
  followAddress();
}

find("#search").addEventListener("submit", submit);
page.rerank.addEventListener("change", () => page.text.value && find("#search").requestSubmit());
page.file.addEventListener("change", () => {
  if (page.file.files[0]) upload(page.file.files[0]);
  page.file.value = ""; // so that the same file can be chosen again
});
addEventListener("popstate", followAddress);
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", () => document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const file = event.dataTransfer?.files[0];
  if (file) upload(file);
});
page.player.addEventListener("close", () => {
  const video = find("video", page.player);
  video.onerror = null;
  video.removeAttribute("src");
  video.load();
});

followAddress();
ask("/v1/index").then((/** @type {Index} */ answer) => {
  index = answer;
  find("#facts").textContent = `${answer.counts.videos} videos · ${answer.counts.captions} captions · ${answer.model}`;
}).catch(fail);
