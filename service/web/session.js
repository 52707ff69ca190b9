// Signing in where keys are required. The key goes to the server once; what stays is a cookie that no script can read.
import * as api from "./api.js";
import { find, make } from "./dom.js";
import { problemPanel } from "./notice.js";

const SCOPES = ["search", "write", "admin"];
const dialog = find("#sign-in");
const part = { form: find("#sign-in form"), key: find("#key"), error: find("#sign-in-error"), who: find("#who"), out: find("#sign-out") };
/** @type {api.Session} */
let session = { keys_required: false, signed_in: false, name: null, scope: null };
/** @type {() => void} */
let signedIn = () => {};

/** Whether who looks may do what needs this scope. @param {"search" | "write" | "admin"} scope */
export const may = (scope) => !session.keys_required || SCOPES.indexOf(session.scope ?? "") >= SCOPES.indexOf(scope);

/** Ask who is signed in; resolves when somebody is, or nobody needs to be. @param {() => void} whenSignedIn */
export async function start(whenSignedIn) {
  signedIn = whenSignedIn;
  part.form.addEventListener("submit", signIn);
  part.out.addEventListener("click", signOut);
  dialog.addEventListener("cancel", (/** @type {Event} */ event) => event.preventDefault());
  document.addEventListener("signed-out", () => ask());
  await know(await api.ask("/v1/session"));
}

/** @param {api.Session} now */
async function know(now) {
  session = now;
  part.who.textContent = now.signed_in ? `${now.name} (${now.scope})` : "";
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
    part.error.replaceChildren();
    dialog.close();
    await know(now);
  } catch (error) {
    part.error.replaceChildren(problemPanel(error));
    part.key.focus();
  }
}

async function signOut() {
  await api.ask("/v1/session", { method: "DELETE" });
  location.assign("/");
}

/** Says that a key may not do something. @param {string} scope */
export const needs = (scope) => make("p", { className: "quiet" }, `This needs a key of scope “${scope}”; yours is “${session.scope}”.`);
