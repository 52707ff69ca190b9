// Talks to the API that /docs describes. A browser's session is a cookie; the key itself is never kept here.

/**
 * @typedef {{time: number, weight: number}} Frame
 * @typedef {{video_id: string, segment: number, start: number, end: number, score: number, stage1_score: number, confidence?: number | null,
 *   moment: number, frame_weights: Frame[], title: string, duration_seconds: number, tags: string[],
 *   matched: string[], snippet: {text: string, match: boolean}[], passage: {start: number, end: number} | null,
 *   moments: {start: number, end: number, score: number}[], thumbnail_url: string, stream_url: string}} Hit
 * @typedef {{stage_ms: Record<string, number>, generation: string, fingerprint: string, emcl: string, strength: number}} Source
 * @typedef {{hits: Hit[], source: Source, truncated: boolean, unknown_script: string | null, nothing_fits: boolean}} Answer
 * @typedef {{caption_id: number, text: string, video_id: string | null, score: number, moment: number,
 *   frame_weights: Frame[]}} CaptionHit
 * @typedef {{captions: CaptionHit[], hits: Hit[], source: Source, upload: {duration_seconds: number, frames: number}}} UploadAnswer
 * @typedef {{video_id: string, title: string, duration_seconds: number | null, width: number | null, height: number | null,
 *   recorded: string | null, camera: string | null, place: {latitude: number, longitude: number} | null,
 *   size_bytes: number, tags: string[], state: string, reason: string | null, captions: string[],
 *   transcripts: {language: string, origin: string, cues: number, url: string}[],
 *   segments: {segment: number, start: number, end: number}[], thumbnail_url: string, stream_url: string}} Video
 * @typedef {{videos: Video[], total: number, offset: number, limit: number}} VideosPage
 * @typedef {{caption_id: number, text: string, video_id: string | null}} Caption
 * @typedef {{job_id: string, kind: string, state: string, stopping: boolean, resumable: boolean,
 *   parameters: Record<string, any>, progress: {done: number, total: number, note: string}, created: string,
 *   started: string | null, ended: string | null, error: string | null, result: Record<string, any> | null,
 *   key_name: string | null}} Job
 * @typedef {{upload_limits: {max_bytes: number, max_seconds: number}, counts: Record<string, number>, model: string, generation: string,
 *   created: string, fingerprint: string, dim: number, factory: string, segment_seconds: number, version: string,
 *   overlay: {rows: number, waiting: number, publishing: boolean}, emcl: Record<string, any>,
 *   correction: {mode: string, strength: number, text: string}, demo_notice: string | null, watched_folders: number, confidence_line: number | null, heads: string[],
 *   query_limits: {max_candidates: number, default_candidates: number}}} Index
 * @typedef {{keys_required: boolean, signed_in: boolean, name: string | null, scope: string | null}} Session
 */

import { t } from "./language.js";

/** What went wrong, as the server said it (problem details) or as it looks from here. */
export class Problem extends Error {
  /** @param {{status?: number, title?: string, detail?: string, expected?: string, next_step?: string, incident?: string, request_id?: string}} said */
  constructor(said) {
    super(said.detail ?? said.title ?? t("problem.detail"));
    this.status = said.status ?? 0;
    this.title = said.title ?? t("problem.title");
    this.detail = said.detail ?? "";
    this.expected = said.expected ?? "";
    this.nextStep = said.next_step ?? "";
    this.requestId = said.request_id ?? "";
  }
}

/** Nobody answered. */
const unreachable = () => new Problem({
  title: t("problem.unreachable"),
  detail: t("problem.nobody", { host: location.host }),
  next_step: t("problem.check-running"),
});

/** The JSON of an answer; throws a Problem, or the AbortError of who asked to stop.
 * @param {string} path @param {{method?: string, json?: unknown, signal?: AbortSignal, headers?: Record<string, string>}} [options] @returns {Promise<any>} */
export async function ask(path, { method, json, signal, headers = {} } = {}) {
  const body = json === undefined ? undefined : JSON.stringify(json);
  /** @type {Response} */
  let response;
  try {
    response = await fetch(path, {
      method: method ?? (body ? "POST" : "GET"), body, signal,
      headers: { "X-Requested-With": "fetch", ...(body ? { "Content-Type": "application/json" } : {}), ...headers },
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw unreachable();
  }
  if (response.status === 204) return null;
  const text = await response.text();
  if (response.ok) return response.headers.get("Content-Type")?.includes("json") ? JSON.parse(text) : text;
  throw refused(response.status, text);
}

/** @param {number} status @param {string} text */
function refused(status, text) {
  if (status === 401) document.dispatchEvent(new Event("signed-out"));
  try {
    return new Problem({ status, ...JSON.parse(text) });
  } catch {
    return new Problem({ status, detail: t("problem.status", { status: String(status) }), next_step: t("problem.later") });
  }
}

/** @param {object} query @param {AbortSignal} [signal] @returns {Promise<Answer>} */
export const search = (query, signal) => ask("/v1/search", { json: query, signal });

/** @returns {Promise<Index>} */
export const describeIndex = () => ask("/v1/index");

/** @param {string} id @returns {Promise<Video>} */
export const video = (id) => ask(`/v1/videos/${id}`);

/** A picture of a moment. @param {string} id @param {number} seconds */
export const pictureUrl = (id, seconds) => `/v1/videos/${id}/thumbnail?t=${seconds.toFixed(3)}`;

/** Many pictures in one file, see sprites.js: the frames of a segment, or 24 moments of the whole video. @param {string} id @param {number} [segment] */
export const spriteUrl = (id, segment) => `/v1/videos/${id}/sprite${segment === undefined ? "" : `?segment=${segment}`}`;

/** A moment as a file. @param {string} id @param {number} start @param {number} end */
export const clipUrl = (id, start, end) => `/v1/videos/${id}/clip?from=${start.toFixed(3)}&to=${end.toFixed(3)}`;

/** @param {string} id */
export const streamUrl = (id) => `/v1/videos/${id}/stream`;

/** The stages of a Server-Timing header, in milliseconds. @param {string | null} header @returns {Record<string, number>} */
export const timings = (header) => Object.fromEntries([...(header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, stage, took]) => [stage, +took]));

/** Send a form, reporting how much of it is on its way (0 to 1), which fetch does not; then what its stages took.
 * @param {string} path @param {FormData} form @param {{signal?: AbortSignal, onprogress?: (share: number) => void, ontimings?: (took: Record<string, number>) => void}} [options] @returns {Promise<any>} */
export function send(path, form, { signal, onprogress, ontimings } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    signal?.addEventListener("abort", () => request.abort());
    request.upload.onprogress = (event) => onprogress?.(event.total ? event.loaded / event.total : 0);
    request.upload.onload = () => onprogress?.(1);
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    request.onerror = () => reject(new Problem({
      title: t("problem.interrupted"),
      detail: t("problem.closed"),
      next_step: t("problem.check-size"),
    }));
    request.onload = () => {
      ontimings?.(timings(request.getResponseHeader("Server-Timing")));
      if (request.status < 400) resolve(JSON.parse(request.responseText));
      else reject(refused(request.status, request.responseText));
    };
    request.open("POST", path);
    request.setRequestHeader("X-Requested-With", "fetch");
    request.send(form);
  });
}

/** Whether an error only says that nobody wants the answer any more. @param {unknown} error */
export const isAbort = (error) => error instanceof DOMException && error.name === "AbortError";
