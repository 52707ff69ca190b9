// Draws /openapi.json: every route with its parameters and bodies, a form to try it, and every kind of problem.

import { t } from "./language.js";

/** Make an element. @param {string} name @param {object} properties @param {(Node | string)[]} children @returns {any} */
function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** Text with `code` in backticks. @param {string} text */
function marked(text) {
  return text.split("`").map((part, number) => (number % 2 ? make("code", {}, part) : part));
}

/** Follow references, so that a schema stands for itself. @param {any} schema @param {any} api @returns {any} */
function resolve(schema, api) {
  return schema?.$ref ? resolve(api.components.schemas[schema.$ref.split("/").pop()], api) : schema ?? {};
}

/** A short name of a schema's type. @param {any} schema @param {any} api @returns {string} */
function typeOf(schema, api) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map((/** @type {any} */ one) => typeOf(one, api)).join(" | ");
  if (schema.type === "array") return t("docs.list-of", { type: typeOf(schema.items ?? {}, api) });
  return schema.format ?? schema.type ?? "any";
}

/** @param {[string, string, string][]} rows */
function table(rows) {
  const line = (/** @type {string[]} */ [name, type, text]) =>
    make("tr", {}, make("td", {}, make("code", {}, name)), make("td", {}, make("code", {}, type)), make("td", {}, ...marked(text)));
  return make("table", {}, make("tbody", {}, ...rows.map(line)));
}

/** The fields of a body, as a table, and those of the bodies inside it. @param {any} schema @param {any} api */
function fields(schema, api, seen = new Set()) {
  const whole = resolve(schema, api);
  const parts = [];
  const inner = (/** @type {any} */ part) => {
    const one = part.$ref ? part : part.items?.$ref ? part.items : null;
    if (!one || seen.has(one.$ref) || !resolve(one, api).properties) return;
    seen.add(one.$ref);
    parts.push(make("h4", {}, typeOf(one, api)), ...fields(one, api, seen));
  };
  if (whole.properties) {
    parts.push(table(Object.entries(whole.properties).map(([name, part]) => [
      name + (whole.required?.includes(name) ? " *" : ""),
      typeOf(part, api),
      (part.description ?? "") + ("default" in part && part.default !== null ? t("docs.default", { value: JSON.stringify(part.default) }) : ""),
    ])));
    Object.values(whole.properties).forEach(inner);
  }
  (whole.anyOf ?? []).forEach(inner);
  return parts;
}

/** A form that sends a JSON body and shows what comes back. @param {string} path @param {any} schema */
function tryIt(path, schema) {
  const body = make("textarea", { value: JSON.stringify(schema.examples?.[0] ?? {}, null, 2), spellcheck: false });
  body.setAttribute("aria-label", t("docs.body-for", { path }));
  const out = make("pre", { hidden: true });
  const send = make("button", { type: "button", onclick: async () => {
    const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: body.value });
    out.textContent = `${response.status}\n${JSON.stringify(await response.json(), null, 2)}`;
    out.hidden = false;
  } }, t("docs.send"));
  return [make("h3", {}, t("docs.try")), body, send, out];
}

/** @param {string} path @param {string} method @param {any} route @param {any} api */
function drawRoute(path, method, route, api) {
  const parts = [make("p", {}, ...marked(route.description ?? ""))];
  if (route.parameters) {
    parts.push(make("h3", {}, t("docs.parameters")), table(route.parameters.map((/** @type {any} */ one) => [
      `${one.name}${one.required ? " *" : ""} (${one.in})`, typeOf(one.schema, api),
      (one.description ?? "") + (one.schema.default === undefined ? "" : t("docs.default", { value: String(one.schema.default) })),
    ])));
  }
  for (const [type, content] of Object.entries(route.requestBody?.content ?? {})) {
    parts.push(make("h3", {}, t("docs.body"), make("code", {}, type)), ...fields(content.schema, api));
    if (type === "application/json") parts.push(...tryIt(path, resolve(content.schema, api)));
  }
  const answer = route.responses?.["200"]?.content?.["application/json"]?.schema;
  if (answer) parts.push(make("h3", {}, t("docs.answer"), make("code", {}, typeOf(answer, api))), ...fields(answer, api));
  return make("details", {},
    make("summary", {}, make("span", { className: "method" }, method.toUpperCase()), make("code", {}, path),
      make("span", { className: "quiet" }, route.summary ?? "")), ...parts);
}

/** @param {any} api */
function draw(api) {
  const parts = [make("p", {}, t("docs.version", { summary: api.info.summary, version: api.info.version }))];
  const tags = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, route] of Object.entries(methods)) {
      const tag = route.tags?.[0] ?? "other";
      tags.set(tag, [...(tags.get(tag) ?? []), drawRoute(path, method, route, api)]);
    }
  }
  for (const [tag, routes] of tags) parts.push(make("h2", {}, tag), ...routes);
  parts.push(make("h2", {}, t("docs.problems")), make("p", {},
    t("docs.problems-what")));
  for (const kind of api["x-problems"]) {
    parts.push(make("article", { id: `problem-${kind.slug}` }, make("b", {}, `${kind.status} ${kind.title}. `), kind.meaning));
  }
  document.querySelector("#content")?.replaceChildren(...parts);
  if (location.hash) document.querySelector(location.hash)?.scrollIntoView();
}

fetch("/openapi.json").then((response) => response.json()).then(draw).catch((error) => {
  document.querySelector("#content")?.replaceChildren(make("p", { role: "alert" }, t("docs.failed", { reason: error.message })));
});
