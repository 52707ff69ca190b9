"""Settings of a store from command-line options: the given value, else the store's, else the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from indexer.ann.choose import AUTO
from indexer.ann.recipe import check
from indexer.errors import IndexFactoryError, StoreError
from indexer.store.catalogue import read_settings
from indexer.store.config import DEFAULT_FACTORY, ModelSpec, StoreSettings, Wishes, refuse_differences
from indexer.store.generation import CATALOGUE
from model.config import ModelConfig, problems_of


def with_index(settings: StoreSettings, wishes: Wishes) -> StoreSettings:
    """``settings`` with another kind of index; a new kind has its own search options. Raises ``IndexFactoryError``."""
    changes = wishes.for_index()
    if wishes.index is not None:
        changes = {"options": "", **changes}
    return _checked_index(settings.model_dump() | changes, wishes)


def _checked_index(fields: dict[str, Any], wishes: Wishes) -> StoreSettings:
    factory, options = fields.get("factory", DEFAULT_FACTORY), fields.get("options", "")
    chosen = factory == AUTO
    bounded = {"--index-memory": wishes.index_memory, "--index-recall": wishes.index_recall}
    given = [name for name, value in bounded.items() if value is not None]
    if given and not chosen:
        raise IndexFactoryError(
            f"{' and '.join(given)} say how to choose an index, but the index is {factory!r}; use them with "
            "--index auto"
        )
    if chosen and options:
        raise IndexFactoryError(
            f"the index auto does not take the search options {options!r}, it finds its own; name a kind: "
            "--index 'IVF256,SQ8', say"
        )
    return StoreSettings(**fields)


def recorded_settings(store: Path) -> StoreSettings | None:
    """What the store in ``store`` was built with; None if there is none, or nothing in it. Raises ``NewerFormat``."""
    return read_settings(store / CATALOGUE) if (store / CATALOGUE).exists() else None


def check_wishes(recorded: StoreSettings, wishes: Wishes, store: Path) -> None:
    """Raise ``SettingsConflict`` for an option that differs from what the store was built with."""
    old = {**recorded.model_dump(), **recorded.sampling.model_dump()}
    given = {**wishes.for_store(), **wishes.for_sampling()}
    refuse_differences(store, old, given)


def choose_model(recorded: StoreSettings | None, model: str | None, pretrained: str | None) -> ModelSpec:
    """Which model to load: the one named, else the store's, else for a new store the preset that fits the machine.

    Presets are recorded as what they stand for. Paths are made absolute, because the store outlives the current folder.
    """
    from model.clip.presets import resolve

    if model is None and pretrained is None:
        if recorded is not None:
            return recorded.model_spec
        model = new_store_preset()
    model, pretrained = resolve(model, pretrained)
    return ModelSpec(model=_absolute(model), pretrained=_absolute(pretrained))


def new_store_preset() -> str:
    """The preset of a new store without --model."""
    import torch

    from model.clip.presets import default_preset

    return default_preset(has_cuda=torch.cuda.is_available())


def new_settings(wishes: Wishes, *, spec: ModelSpec, fingerprint: str, dim: int, config: ModelConfig) -> StoreSettings:
    """Settings of a new store; frames are sampled as in the model's ``config`` unless options say otherwise. Raises
    ``StoreError`` for options that do not fit the model, ``IndexFactoryError`` for an index of no known kind.
    """
    try:
        fitting = ModelConfig(
            **{**config.model_dump(), "sampling": {**config.sampling.model_dump(), **wishes.for_sampling()}}
        )
    except ValidationError as error:
        raise StoreError(f"these options do not fit the model: {problems_of(error)}") from error
    settings = _checked_index(
        {
            "model_spec": spec,
            "fingerprint": fingerprint,
            "dim": dim,
            "sampling": fitting.sampling,
            **wishes.for_store(),
        },
        wishes,
    )
    check(settings, dim)  # an index that FAISS does not know is refused before anything is encoded
    return settings


def _absolute(name: str | None) -> str | None:
    from model.clip.presets import is_model_folder

    return name if name is None or not (Path(name).is_file() or is_model_folder(name)) else str(Path(name).absolute())
