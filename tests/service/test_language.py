"""The command line in German: the everyday commands are translated, the choice is kept, programs see English."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from service import cli, language

ROOT = Path(__file__).parents[2]
# What has to be translated: these commands with all their options, and the help of every command of `emcl --help`.
WHOLE = ("search", "doctor", "demo")
SERVICE_OPTIONS = "serve"  # `demo` has these too; they are described in docs/settings.md, in English


def parameters_of(command):
    return {one.help for one in command.params if getattr(one, "help", None)}


def help_texts():
    """The texts that a translation must have, and all that it may have."""
    root = typer.main.get_command(cli.app)
    settings = parameters_of(root.commands[SERVICE_OPTIONS])
    wanted = {root.help} | parameters_of(root)
    for name, command in root.commands.items():
        wanted |= {command.help, command.rich_help_panel}
        if name in WHOLE:
            wanted |= parameters_of(command) - (set() if name == "search" else settings)

    def every(command):
        inner = [text for one in getattr(command, "commands", {}).values() for text in every(one)]
        return [command.help, *parameters_of(command), *inner]

    return wanted, wanted | set(every(root))


def said_texts():
    """The texts that the command line says through the catalogue, and the heads of its tables."""
    source = (ROOT / "service" / "cli.py").read_text(encoding="utf-8")
    heads = [name for head in re.findall(r"\((\"#\"[^()]*)\)", source) for name in json.loads(f"[{head}]")]
    return set(re.findall(r"_\(['\"](.+?)['\"]\)", source)) | {name for name in heads if name != "#"}


HEADINGS = {"Arguments", "Options", "Commands", "Error"}


@pytest.mark.parametrize("tag", [tag for tag in language.languages() if tag != language.ENGLISH])
def test_a_catalogue_has_what_is_said_and_nothing_else(tag):
    messages = language.catalogue(tag)
    wanted, possible = help_texts()
    needed = wanted | said_texts() | HEADINGS
    assert sorted(needed - set(messages)) == []
    assert sorted(set(messages) - possible - needed) == []
    for english, other in messages.items():
        assert other
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", other)), english


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A place for the kept choice, and no language in the environment."""
    monkeypatch.setattr(language.typer, "get_app_dir", lambda name: str(tmp_path / name))
    for name in ("EMCL_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)


def test_the_variable_wins_over_the_kept_choice_and_that_over_the_locale(home, monkeypatch):
    assert language.chosen_language() == "en"
    monkeypatch.setenv("LANG", "de_AT.UTF-8")
    assert language.chosen_language() == "de"
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert language.chosen_language() == "en"
    cli.language_command("de")
    assert language.chosen_language() == "de"
    monkeypatch.setenv("EMCL_LANGUAGE", "en")
    assert language.chosen_language() == "en"
    with pytest.raises(ValueError, match=r"unknown language 'xx'; expected one of en, de"):
        cli.language_command("xx")


def test_tables_are_in_the_language_in_use():
    language.speak("de")
    try:
        assert cli.hits_table([]) == "nichts gefunden"
        assert cli._table(("#", "score", "video"), [("1", "0.5", "a")]).split() == [
            "#",
            "Wert",
            "Video",
            "1",
            "0.5",
            "a",
        ]
    finally:
        language.speak("en")
    assert cli.hits_table([]) == "nothing found"


def test_help_is_german_in_a_german_environment(tmp_path):
    environment = {"LANG": "de_DE.UTF-8", "HOME": str(tmp_path), "PATH": "/usr/bin", "TERMINAL_WIDTH": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "search", "--help"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Einen Index mit Worten oder mit einem Video durchsuchen." in done.stdout
    assert "Optionen" in done.stdout
    assert "--min-confidence" in done.stdout
