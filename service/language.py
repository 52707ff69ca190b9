"""The language of the command line: English, or that of a catalogue in ``languages/``, one file for each language.

A catalogue maps English sentences to those of its language; a sentence that it lacks stays English. Option names, JSON,
logs and errors are English: programs and bug reports quote them. ``EMCL_LANGUAGE`` wins over the choice that
``emcl language`` keeps, that over ``LC_ALL``, ``LC_MESSAGES`` and ``LANG``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer

CATALOGUES = Path(__file__).parent / "languages"
ENGLISH = "en"
_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")

_messages: dict[str, str] = {}


def languages() -> list[str]:
    """The tags of all languages, English first."""
    return [ENGLISH, *sorted(path.stem for path in CATALOGUES.glob("*.json"))]


def kept_choice() -> Path:
    """The file that holds the choice of ``emcl language``."""
    return Path(typer.get_app_dir("emcl")) / "language"


def chosen_language() -> str:
    """The language that environment and kept choice ask for; English if it has no catalogue."""
    try:
        kept = kept_choice().read_text(encoding="utf-8")
    except OSError:  # nothing is kept, or it cannot be read
        kept = ""
    locale = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "")
    wanted = os.environ.get("EMCL_LANGUAGE") or kept.strip() or locale
    tag = wanted.replace("-", "_").split("_")[0].split(".")[0].lower()
    return tag if tag in languages() else ENGLISH


def catalogue(language: str) -> dict[str, str]:
    """The sentences of a language by their English."""
    if language == ENGLISH:
        return {}
    loaded: dict[str, str] = json.loads((CATALOGUES / f"{language}.json").read_text(encoding="utf-8"))
    return loaded


def speak(language: str) -> None:
    """Use a language from now on, in this process."""
    _messages.clear()
    _messages.update(catalogue(language))


def _(text: str) -> str:
    """A sentence in the language in use."""
    return _messages.get(text, text)


def translate_help(command: Any) -> None:
    """Put the help of a command, its options and its commands into the language in use."""
    command.help = _(command.help or "")
    if getattr(command, "rich_help_panel", None):
        command.rich_help_panel = _(command.rich_help_panel)
    for parameter in command.params:
        if getattr(parameter, "help", None):
            parameter.help = _(parameter.help)
    for inner in getattr(command, "commands", {}).values():
        translate_help(inner)


def translate_headings() -> None:
    """Put the headings that typer draws around help and errors into the language in use."""
    from typer import rich_utils

    for name in ("ARGUMENTS_PANEL_TITLE", "OPTIONS_PANEL_TITLE", "COMMANDS_PANEL_TITLE", "ERRORS_PANEL_TITLE"):
        setattr(rich_utils, name, _(getattr(rich_utils, name)))
