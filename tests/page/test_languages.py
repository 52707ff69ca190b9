"""The words of the page: every language has every key, each key is used, the choice is kept, English never flashes."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from page_support import watched_page
from playwright.sync_api import expect

from indexer.store.demo_notice import NOTICE
from model.config import EMCLConfig
from model.emcl.active import active_emcl
from model.emcl.correction import Correction
from model.emcl.em import FrozenMap
from service.routes.pages import WEB

LANGUAGES = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (WEB / "languages").glob("*.json")}
ENGLISH = LANGUAGES["en"]
ATTRIBUTES = {
    "data-label": "aria-label",
    "data-hint": "title",
    "data-placeholder": "placeholder",
    "data-content": "content",
}
# What CLDR names for whole numbers; a language that is added here brings its own.
PLURALS = {"en": {"one", "other"}, "de": {"one", "other"}}
# Elements that hold a value or a sign, not words.
NO_WORDS = re.compile(r"[\W\d_]*|Enter|Esc|s|openapi\.json")


class Words(HTMLParser):
    """Collects the words of a page of ours with the keys that name them, and the words without a key."""

    def __init__(self):
        super().__init__()
        self.keyed, self.bare, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        key = found.get("data-text")
        self.open = [(tag, key)] if tag in ("meta", "link", "input", "img", "use", "path") else [*self.open, (tag, key)]
        for source, target in ATTRIBUTES.items():
            if source in found:
                self.keyed.append((found[source], found[target]))
            elif found.get(target) and target != "content":
                self.bare.append(found[target])
        if "data-title" in found:
            self.keyed.append((found["data-title"], None))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if not data.strip():
            return
        tag, key = self.open[-1] if self.open else ("", None)
        if key:
            self.keyed.append((key, data))
        elif tag != "title":
            self.bare.append(data.strip())


def words_of(name):
    parser = Words()
    parser.feed((WEB / name).read_text(encoding="utf-8"))
    return parser


def used_keys():
    """Every text of the scripts that is a key, and every key of the HTML."""
    scripts = "\n".join(file.read_text(encoding="utf-8") for file in WEB.glob("*.js"))
    found = {key for key in re.findall(r'"([a-z][\w-]*\.[\w-]+)"', scripts) if key in ENGLISH}
    called = set(re.findall(r'\b(?:t|amount)\("([^"]+)"', scripts))
    return found | called | {key for page in WEB.glob("*.html") for key, _ in words_of(page.name).keyed}


def forms(message):
    return list(message.values()) if isinstance(message, dict) else [message]


def placeholders(message):
    return {name for form in forms(message) for name in re.findall(r"\{(\w+)\}", form)}


def test_every_key_that_is_used_exists_and_every_key_is_used():
    assert used_keys() == set(ENGLISH)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_the_keys_and_placeholders_of_english(language):
    messages = LANGUAGES[language]
    assert list(messages) == list(ENGLISH)
    for key, message in messages.items():
        assert all(forms(message)), key
        assert placeholders(message) == placeholders(ENGLISH[key]), key
        assert isinstance(message, dict) == isinstance(ENGLISH[key], dict), key
        if isinstance(message, dict):
            assert set(message) == PLURALS[language], key
            assert all("{count}" in form for form in message.values()), key


def test_the_page_offers_the_languages_that_have_a_file():
    choice = (WEB / "language-choice.js").read_text(encoding="utf-8")
    assert set(json.loads(re.search(r"LANGUAGES = (\[.*?\])", choice)[1])) == set(LANGUAGES)


@pytest.mark.parametrize("name", ["index.html", "docs.html", "missing.html"])
def test_the_html_is_the_english_of_its_keys(name):
    words = words_of(name)
    assert [one for one in words.bare if not NO_WORDS.fullmatch(one) and one != "emcl_…"] == []
    title = re.search(r"<title>(.*)</title>", (WEB / name).read_text(encoding="utf-8"))[1]
    assert [(key, text) for key, text in words.keyed if ENGLISH[key] != (title if text is None else text)] == []


def test_the_note_on_the_demo_model_is_that_of_the_server():
    assert ENGLISH["page.demo"] == NOTICE.replace("`", "")


def test_what_emcl_does_is_said_as_the_server_says_it():
    uncalibrated = EMCLConfig(beta=0.0)
    fresh, stale = (
        active_emcl(uncalibrated, Correction(frozen=FrozenMap.neutral(4))).text,
        active_emcl(uncalibrated, Correction(frozen=replace(FrozenMap.neutral(4), strength=0.1))).text,
    )
    assert ENGLISH["ranking.off"] == fresh
    assert f"{ENGLISH['ranking.off']}; {ENGLISH['ranking.stale']}" == stale


def test_scripts_hold_no_sentence_of_their_own():
    for file in WEB.glob("*.js"):
        code = re.sub(r"/\*.*?\*/|(?<!:)//[^\n]*", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        code = re.sub(r"new Error\([^)]*\)", "", code)  # for programmers
        said = re.findall(r'"([A-Z][a-z]+(?: [\w,.:…]+)*|[a-z]+(?: [a-z]+){2,})"', code)
        assert [one for one in said if one not in NAMES] == [], file.name


# Names of events, of keys of the keyboard, of CSS classes, and of one text that the server sends.
NAMES = {
    "Content-Type", "Server-Timing", "Files", "Escape", "Enter", "Home", "End", "Backspace", "ArrowLeft", "ArrowRight",
    "ArrowUp", "ArrowDown", "Authorization", "AbortError", "row end", "answer to paint", "small danger ended",
}  # fmt: skip


@pytest.mark.browser
def test_german_is_chosen_kept_and_spoken_everywhere(page, page_server):
    page.goto(page_server.url)
    expect(page.locator("html")).to_have_attribute("lang", "en")
    assert page.locator("#language option").all_inner_texts() == ["English", "Deutsch"]
    page.locator("#language").select_option("de")
    expect(page.locator("nav a[data-view=library]")).to_have_text("Mediathek")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "de")
    expect(page.locator("#text")).to_have_attribute("placeholder", "Einen Moment beschreiben…")
    expect(page.locator("#text")).to_be_focused()
    expect(page).to_have_title("EMCL-Suche")
    page.goto(page_server.url + "/?q=a+star")
    expect(page.locator("#status")).to_have_text(re.compile(r"^\d+ (Videos|beste) · .*ms$"))
    expect(page.locator(".card .score").first).to_have_text(re.compile(r"^-?\d,\d{3}$"))
    page.goto(page_server.url + "/?view=library&tab=status")
    expect(page.locator(".health")).to_contain_text("durchsuchbar")
    page.goto(page_server.url + "/nowhere", wait_until="load")
    expect(page.locator("h1")).to_have_text("Seite nicht gefunden")
    page.goto(page_server.url + "/docs")
    expect(page.locator("h2").last).to_have_text("Fehler")


@pytest.mark.browser
def test_the_browsers_language_counts_at_first_and_english_never_flashes(browser, page_server):
    with watched_page(browser, locale="de-AT") as page:
        opacities = []

        def late(route):
            opacities.append(page.evaluate("getComputedStyle(document.body).opacity"))
            route.continue_()

        page.route("**/languages/de.json", late)
        page.goto(page_server.url)
        expect(page.locator("nav a[data-view=search]")).to_have_text("Suche")
        expect(page.locator("body")).to_have_css("opacity", "1")
        assert opacities == ["0"]
    with watched_page(browser, locale="fr-FR") as page:  # a language that the page lacks
        page.goto(page_server.url)
        expect(page.locator("nav a[data-view=search]")).to_have_text("Search")


@pytest.mark.browser
def test_a_missing_message_is_english(browser, page_server):
    with watched_page(browser, locale="de") as page:
        page.route("**/languages/de.json", lambda route: route.fulfill(json={"nav.search": "Suche"}))
        page.goto(page_server.url + "/?view=library")
        expect(page.locator("nav a[data-view=search]")).to_have_text("Suche")
        expect(page.locator("nav a[data-view=library]")).to_have_text("Library")
        expect(page.locator("#library-view .status")).to_have_text(re.compile(r"^\d+ videos$"))
