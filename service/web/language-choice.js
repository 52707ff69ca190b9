// Chooses the language before anything is drawn: the one chosen in the page, else the first of the browser's that there is.
(() => {
  const LANGUAGES = ["en", "de"]; // each has its file in languages/
  let kept = null;
  try { kept = localStorage.getItem("language"); } catch { /* a browser that keeps nothing */ }
  const chosen = [kept ?? "", ...navigator.languages].map((tag) => tag.toLowerCase().split("-")[0]).find((tag) => LANGUAGES.includes(tag)) ?? "en";
  document.documentElement.lang = chosen;
  document.documentElement.dataset.languages = LANGUAGES.join(" ");
  document.documentElement.classList.toggle("translating", chosen !== "en"); // unseen until language.js is done: the HTML is English
})();
