"""Options of commands from pydantic models: a model's fields alone name, describe and bound them.

A command names the models that it wants as parameters, and ``from_models`` gives it one option for each field:

    @app.command()
    @from_models
    def rebuild(store: Store, encoder: Annotated[EncoderOptions, Only("model", "device")], wishes: Wishes) -> None: ...

Called from Python, such a command takes the options as keyword arguments. A parameter ``Annotated[dict[str, Any],
Given(Model, …)]`` gets what was given instead of a model, to complete it from elsewhere. Imports nothing heavy.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from model.config import Config


@dataclass(frozen=True)
class Shown:
    """Metadata of a field: how its option differs from the field.

    ``flag`` is another name than the field's, and a flag has no --no- form then; ``also`` is a second name; ``metavar``
    stands for the value; ``default`` is what --help shows as the default, where the field has none;
    ``exists``, ``file_okay`` and ``dir_okay`` are checks of files before anything is loaded. ``variable`` is the
    environment variable that sets the option.
    """

    flag: str | None = None
    also: str | None = None
    default: str | None = None
    metavar: str | None = None
    exists: bool = False
    file_okay: bool = True
    dir_okay: bool = True
    variable: str | None = None


class EncoderOptions(Config):
    """The encoder: keyword arguments of ``model.encoder.load_encoder``, which has the defaults of unset fields."""

    model: str | None = Field(
        None,
        description="`small`, `base`, `large`, `clip` (see `emcl models`), `demo`, the path of a checkpoint or of a "
        "fetched model, or an open_clip name with --pretrained. Default: the store's model; for a new store base with "
        "CUDA, else small.",
    )
    pretrained: str | None = Field(None, description="Tag or weights file of an open_clip model.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    runtime: Annotated[
        Literal["auto", "torch", "torch-compiled", "onnx", "onnx-int8"], Shown(variable="EMCL_RUNTIME")
    ] = Field(
        "auto",
        description="Runtime of the encoder; auto: for texts and frames each the fastest that ranks as fp32 does, "
        "measured at first use.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic of the encoder; auto: the runtime decides."
    )
    exports: Path | None = Field(
        None, description="Folder of `emcl export`. Default: beside the checkpoint, or var/exports."
    )


class Only:
    """As metadata of an annotation: only these fields are options, some of them described in other words."""

    def __init__(self, *names: str, **described: str) -> None:
        self.names = (*names, *described)
        self.described = described


class Given:
    """As metadata of a dictionary: these fields of ``model`` (all, if none are named) are options without a default.

    The command gets the values that were given, as they were given: the model checks them when they are complete, after
    the environment was read. ``default_text`` says what ``--help`` shows as the default of a field.
    """

    def __init__(self, model: type[BaseModel], *names: str, default_text: Callable[[str], str]) -> None:
        self.model = model
        self.names = names or tuple(model.model_fields)
        self.default_text = default_text


def from_models(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of ``command`` that is a pydantic model, or ``Given``, by one option for each field.

    The command gets the model with the values that were given or are the defaults; fields outside of ``Only`` stay
    unset. A value that a model refuses is a usage error (exit code 2) that names its option.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, tuple[type[BaseModel], list[str]]] = {}
    unchecked: dict[str, Given] = {}
    parameters = []
    for parameter in signature.parameters.values():
        model, only = _model_of(parameter.annotation)
        if isinstance(only, Given):
            unchecked[parameter.name] = only
            parameters += [_given_option(name, only) for name in only.names]
            continue
        if model is None:
            parameters.append(parameter)
            continue
        names = [name for name in model.model_fields if only is None or name in only.names]
        groups[parameter.name] = model, names
        described = only.described if only else {}
        parameters += [_option(name, model.model_fields[name], described.get(name)) for name in names]

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        bound = flat.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        for parameter, (model, names) in groups.items():
            values[parameter] = _make(model, {name: values.pop(name) for name in names})
        for parameter, given in unchecked.items():
            found = {name: values.pop(name) for name in given.names}
            values[parameter] = {name: value for name, value in found.items() if value is not None}
        command(**values)

    # Called from Python, options may be left out; those without a default come first, as Python wants it.
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    flat = signature.replace(parameters=parameters)
    call.__signature__ = flat  # type: ignore[attr-defined]
    return call


def _model_of(annotation: Any) -> tuple[type[BaseModel] | None, Only | Given | None]:
    kind, *metadata = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if given := next((item for item in metadata if isinstance(item, Given)), None):
        return given.model, given
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return None, None
    return kind, next((item for item in metadata if isinstance(item, Only)), None)


def _make(model: type[BaseModel], given: dict[str, Any]) -> BaseModel:
    absent = {name for name, value in given.items() if value is None}  # such fields keep the model's own default
    try:
        return model(**{name: value for name, value in given.items() if name not in absent})
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ValueError) and type(cause) is not ValueError:
            raise cause from error  # an error of a package, whose text says everything
        name = str(first["loc"][0])
        flag = flag_of(model, name)
        described = model.model_fields[name].description
        raise typer.BadParameter(f"{flag} is {first['input']!r}: {first['msg']}. {described}") from error


def flag_of(model: type[BaseModel], name: str) -> str:
    """The name of a field's option, such as ``--dry-run``."""
    return _shown(model.model_fields[name]).flag or f"--{name.replace('_', '-')}"


def _shown(field: FieldInfo) -> Shown:
    return next((item for item in field.metadata if isinstance(item, Shown)), Shown())


def _option(name: str, field: FieldInfo, described: str | None) -> inspect.Parameter:
    kind = _kind(field.annotation)
    shown = _shown(field)
    bounds: dict[str, Any] = {}
    if kind in (int, float):
        for item in _metadata(field):
            least, most = getattr(item, "ge", None), getattr(item, "le", None)
            bounds.update({name: bound for name, bound in (("min", least), ("max", most)) if bound is not None})
    option: Any = typer.Option(
        *(name for name in (shown.flag, shown.also) if name),
        show_default=shown.default or True,
        help=described or field.description,
        metavar=shown.metavar,
        exists=shown.exists,
        file_okay=shown.file_okay,
        dir_okay=shown.dir_okay,
        envvar=shown.variable,
        **bounds,
    )
    default = field.default if isinstance(field.default, str | int | float | Path) else None
    is_required = field.is_required()
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=inspect.Parameter.empty if is_required else default,
        annotation=Annotated[kind if is_required or default is not None else kind | None, option],
    )


def _given_option(name: str, given: Given) -> inspect.Parameter:
    field = given.model.model_fields[name]
    option: Any = typer.Option(help=field.description, show_default=given.default_text(name) or False)
    kind = _kind(field.annotation)
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Annotated[kind | None, option]
    )


def _kind(annotation: Any) -> Any:
    """What typer parses for a field: numbers, choices and paths itself, anything else as text for the model."""
    members = [part for part in _members(annotation) if part is not type(None)]
    kind = members[0]
    if get_origin(kind) is frozenset:
        return list[str]
    return kind if kind in (bool, int, float, Path) or get_origin(kind) is Literal else str


def _members(annotation: Any) -> Iterator[Any]:
    """The types of a union, without their ``Annotated``."""
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _members(part)
    elif get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    else:
        yield annotation


def _metadata(field: FieldInfo) -> Iterator[Any]:
    """Bounds of a field, also those inside of ``Annotated[int, Field(ge=1)] | None``."""
    parts = [field.metadata, *(get_args(part)[1:] for part in get_args(field.annotation))]
    for item in (item for part in parts for item in part):
        yield from item.metadata if isinstance(item, FieldInfo) else [item]
