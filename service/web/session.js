// Signing in where keys are required. The key goes to the server once; what stays is a cookie that no script can read.
import * as api from "./api.js";
import { find, make } from "./dom.js";
import { t } from "./language.js";
import { sentence } from "./notice.js";

const SCOPES = ["search", "write", "admin"];
const dialog = find("#sign-in");
const part = { form: find("#sign-in form"), key: find("#key"), error: find("#sign-in-error"), why: find("#sign-in-why"), who: find("#who"), out: find("#sign-out") };
/** @type {api.Session} */
let session = { keys_required: false, signed_in: false, name: null, scope: null };
/** @type {() => void} */
let signedIn = () => {};

/** Whether the visitor may do what needs this scope. @param {"search" | "write" | "admin"} scope */
export const may = (scope) => !session.keys_required || SCOPES.indexOf(session.scope ?? "") >= SCOPES.indexOf(scope);

/** Find out whether the visitor is signed in, and ask for a key where one is needed. @param {() => void} whenSignedIn */
export async function start(whenSignedIn) {
  signedIn = whenSignedIn;
  part.form.addEventListener("submit", signIn);
  part.out.addEventListener("click", signOut);
  dialog.addEventListener("cancel", (/** @type {Event} */ event) => event.preventDefault());
  document.addEventListener("signed-out", () => {
    if (session.signed_in && !dialog.open) part.why.textContent = t("sign-in.ended");
    ask();
  });
  await know(await api.ask("/v1/session"));
}

/** @param {api.Session} now */
async function know(now) {
  session = now;
  part.who.textContent = now.signed_in ? t("sign-in.who", { name: now.name ?? "", scope: now.scope ?? "" }) : "";
  part.out.hidden = !now.signed_in;
  if (now.keys_required && !now.signed_in) ask();
  else signedIn();
}

function ask() {
  if (!session.keys_required || dialog.open) return;
  dialog.showModal();
  part.key.focus();
}

/** @param {Event} event */
async function signIn(event) {
  event.preventDefault();
  const key = part.key.value.trim();
  part.key.value = "";
  try {
    const now = await api.ask("/v1/session", { method: "POST", headers: { Authorization: `Bearer ${key}` } });
    part.error.textContent = "";
    dialog.close();
    await know(now);
  } catch (error) {
    part.error.textContent = refusal(error);
    part.key.focus();
  }
}

/** Why somebody could not sign in. @param {unknown} error */
function refusal(error) {
  const status = error instanceof api.Problem ? error.status : 0;
  if (status === 401) return t("sign-in.bad-key");
  if (status === 429) return t("sign-in.too-often");
  return sentence(error);
}

async function signOut() {
  await api.ask("/v1/session", { method: "DELETE" });
  location.assign("/");
}

/** Says that a key may not do something. @param {string} scope */
export const needs = (scope) => make("p", { className: "quiet" }, t("sign-in.needs", { held: session.scope ?? "", wanted: scope }));
