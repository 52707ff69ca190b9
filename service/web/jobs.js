// Jobs: what runs, what ran; one of them with its log as it is written and, for trainings, its curves.
import * as api from "./api.js";
import { go, write } from "./address.js";
import { change } from "./captions.js";
import { trainingCharts } from "./charts.js";
import { make } from "./dom.js";
import { amount, moment } from "./format.js";
import { t } from "./language.js";
import { emptyPanel, problemPanel, stateName } from "./notice.js";
import { may, needs } from "./session.js";

/** @typedef {import("./api.js").Job} Job */

const LOOK_MS = 3000;
const CURVES_MS = 4000;
const LOG_CHARACTERS = 200_000;

/** @param {HTMLElement} panel @param {import("./address.js").Place} place @param {AbortSignal} signal @param {() => void} again */
export function jobsTab(panel, place, signal, again) {
  if (!may("admin")) panel.replaceChildren(needs("admin"));
  else if (place.job) oneJob(panel, place.job, signal, again);
  else allJobs(panel, signal);
}

/** @param {HTMLElement} panel @param {AbortSignal} signal */
async function allJobs(panel, signal) {
  const total = make("p", { className: "status", role: "status" }, "\u00a0");
  const list = make("ul", { className: "job-list" });
  panel.replaceChildren(total, list);
  while (!signal.aborted) {
    try {
      const page = await api.ask("/v1/jobs?limit=200", { signal });
      const counts = Object.entries(page.counts).filter(([, number]) => number).map(([state, number]) => t("jobs.in-state", { count: /** @type {number} */ (number), state: stateName(state) }));
      total.textContent = [amount("count.jobs", page.total), ...counts].join(" · ");
      if (page.total === 0) panel.replaceChildren(emptyPanel(t("jobs.none"), t("jobs.none-what")));
      else if (!list.contains(document.activeElement)) list.replaceChildren(...page.jobs.map(jobRow));
    } catch (error) {
      if (!signal.aborted) panel.replaceChildren(problemPanel(error, () => allJobs(panel, signal)));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
}

/** @param {Job} job */
const badge = (job) => make("span", { className: `badge state ${job.state}` }, job.stopping ? t("jobs.stopping") : stateName(job.state));

/** @param {Job} job */
const name = (job) => [job.kind, job.parameters.title ?? job.parameters.config_file ?? job.parameters.model].filter(Boolean).join(": ");

/** @param {Job} job */
const bar = (job) => job.state === "running" && make("progress", { ...(job.progress.total ? { max: job.progress.total, value: job.progress.done } : {}), "aria-label": t("jobs.progress", { name: name(job) }) });

/** @param {Job} job */
const jobRow = (job) => make("li", { className: "job-row" },
  badge(job),
  make("div", { className: "row-words" }, make("a", { className: "title", href: write({ view: "library", tab: "jobs", job: job.job_id }) }, name(job)),
    make("p", { className: "quiet one-line" }, [moment(job.created), job.key_name, job.error ?? job.progress.note].filter(Boolean).join(" · ")), bar(job)));

/** @param {HTMLElement} panel @param {string} id @param {AbortSignal} signal @param {() => void} again */
async function oneJob(panel, id, signal, again) {
  const head = make("div", { className: "job-head" });
  const curves = make("div", { className: "charts" });
  const log = make("pre", { className: "log", tabindex: "0", "aria-label": t("jobs.log-of") });
  panel.replaceChildren(make("p", {}, make("a", { href: write({ view: "library", tab: "jobs" }) }, t("jobs.back"))), head, curves, make("h2", {}, t("jobs.log")), log);
  try {
    draw(head, /** @type {Job} */ (await api.ask(`/v1/jobs/${id}`, { signal })), again);
  } catch (error) {
    const gone = error instanceof api.Problem && error.status === 404;
    if (!signal.aborted) panel.replaceChildren(gone ? emptyPanel(t("jobs.gone"), t("jobs.gone-what"), make("a", { className: "button", href: write({ view: "library", tab: "jobs" }) }, t("jobs.all"))) : problemPanel(error, again));
    return;
  }
  followCurves(id, curves, signal);
  const events = new EventSource(`/v1/jobs/${id}/events`);
  signal.addEventListener("abort", () => events.close());
  events.addEventListener("job", (event) => {
    const job = /** @type {Job} */ (JSON.parse(event.data));
    draw(head, job, again);
    if (job.ended) signal.dispatchEvent(new Event("ended"));
    if (job.ended) setTimeout(() => events.close(), 2 * LOOK_MS); // else the browser would ask again forever
  });
  events.addEventListener("log", (event) => {
    const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.textContent = (log.textContent + JSON.parse(event.data)).slice(-LOG_CHARACTERS);
    if (below) log.scrollTop = log.scrollHeight;
  });
  events.addEventListener("error", () => { if (head.querySelector(".ended")) events.close(); });
}

/** @param {HTMLElement} head @param {Job} job @param {() => void} again */
function draw(head, job, again) {
  const act = (/** @type {string} */ verb, /** @type {string} */ done) => async () => { if (await change(() => api.ask(`/v1/jobs/${job.job_id}/${verb}`, { method: "POST" }), done)) again(); };
  const row = (/** @type {string} */ term, /** @type {string | null | false} */ text) => text && make("div", {}, make("dt", {}, term), make("dd", {}, text));
  head.replaceChildren(
    make("div", { className: "row" }, make("h2", {}, name(job)), badge(job),
      !job.ended && !job.stopping && make("button", { type: "button", className: "small", onclick: act("cancel", t("jobs.cancelling")) }, t("action.cancel")),
      job.ended !== null && job.resumable && ["failed", "cancelled", "lost"].includes(job.state) && make("button", { type: "button", className: "small", onclick: act("resume", t("jobs.resumed")) }, t("jobs.resume")),
      job.ended !== null && make("button", { type: "button", className: "small danger ended", onclick: async () => {
        if (await change(() => api.ask(`/v1/jobs/${job.job_id}`, { method: "DELETE" }), t("jobs.deleted"))) go({ job: "" });
      } }, t("jobs.delete"))),
    make("p", { className: "quiet" }, job.progress.note), bar(job) || "",
    make("dl", { className: "facts-list" }, row(t("jobs.submitted"), [moment(job.created), job.key_name && t("jobs.by", { name: job.key_name })].filter(Boolean).join(" ")), row(t("jobs.started"), job.started && moment(job.started)),
      row(t("jobs.ended"), job.ended && moment(job.ended)), row(t("jobs.error"), job.error), row(t("jobs.result"), job.result && JSON.stringify(job.result))),
    make("details", {}, make("summary", {}, t("jobs.parameters")), make("pre", { tabindex: "0" }, JSON.stringify(job.parameters, null, 2))));
}

/** @param {string} id @param {HTMLElement} place @param {AbortSignal} signal */
async function followCurves(id, place, signal) {
  let known = -1, ended = false;
  signal.addEventListener("ended", () => { ended = true; });
  while (!signal.aborted) {
    const last = ended;
    const { metrics } = await api.ask(`/v1/jobs/${id}/metrics`, { signal }).catch(() => ({ metrics: [] }));
    if (metrics.length !== known && !signal.aborted) place.replaceChildren(...trainingCharts(metrics));
    known = metrics.length;
    if (last) return;
    await new Promise((resolve) => setTimeout(resolve, CURVES_MS));
  }
}
