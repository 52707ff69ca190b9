"""Options of commands that are settings of the service: ``service.settings`` alone names and describes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_origin

import typer

from service.settings import Settings, default_text, option_name


def takes_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings (all if none are named), which it gets as keyword arguments.

    An option that is not given is ``None``, so that the environment and then the default decide.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [_option(name) for name in names or Settings.model_fields]
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return command

    return decorate


def _option(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind: Any = field.annotation
    flags = (option_name(name),)
    if kind is bool:
        flags = (f"{flags[0]}/--no-{flags[0][2:]}",)
    elif kind not in (int, float) and get_origin(kind) is not Literal:
        kind = str  # sizes, paths and lists are parsed by the settings themselves
    # Bounds are checked by the settings, whose messages name the environment variable too.
    option = typer.Option(*flags, help=f"{field.description}", show_default=default_text(name) or False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )
