"""The published data sets together: what a ``data`` section may be, and how training and evaluation open it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from model.clip.preprocess import Preprocess
from model.config import SamplingConfig, load_mapping, problems_of
from model.data.activitynet import ActivityNetConfig
from model.data.augment import Augmentation
from model.data.check import refuse_overlap, require_disjoint
from model.data.clips import NO_AUGMENTATION, ClipData, EpochOf
from model.data.dataset import DatasetConfig, DatasetError, Split, VideoTextSet
from model.data.didemo import DidemoConfig
from model.data.lsmdc import LsmdcConfig
from model.data.manifest import ManifestConfig, check_manifest, open_manifest
from model.data.msrvtt import MsrvttConfig
from model.data.msvd import MsvdConfig
from model.data.vatex import VatexConfig

logger = logging.getLogger(__name__)

PublishedSet: TypeAlias = MsrvttConfig | MsvdConfig | LsmdcConfig | ActivityNetConfig | DidemoConfig | VatexConfig
# Sets on disk, which can be checked; generated scenes cannot.
StoredSet: TypeAlias = PublishedSet | ManifestConfig

_STORED: TypeAdapter[StoredSet] = TypeAdapter(Annotated[StoredSet, Field(discriminator="kind")])
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def parse_stored_set(settings: dict[str, Any], where: str) -> StoredSet:
    """Build a set's configuration. Raises ``DatasetError`` that begins with ``where`` and names every wrong key."""
    try:
        return _STORED.validate_python(settings)
    except ValidationError as error:
        raise DatasetError(f"{where} does not describe a data set: {problems_of(error)}") from error


def load_stored_set(path: Path) -> StoredSet:
    """Read the ``data`` section of a training configuration, or a file that is nothing but such a section."""
    settings = load_mapping(path)
    section = settings.get("data", settings)
    if not isinstance(section, dict):
        raise DatasetError(f"{path}: data must be a mapping of settings, got {section!r}")
    return parse_stored_set(section, str(path))


def read_splits(config: StoredSet) -> list[VideoTextSet]:
    """Read every split of a set, whatever is missing."""
    if isinstance(config, DatasetConfig):
        return [config.read(split) for split in config.splits]
    splits = [check_manifest(config.train, "train")]
    return splits + ([check_manifest(config.validation, "val")] if config.validation else [])


def open_for_evaluation(data: Path, split: Split, *, allow_missing: bool) -> VideoTextSet:
    """Open what ``emcl evaluate --data`` names: a configuration (YAML or JSON), a manifest, or a manifest's folder.

    A manifest is one split, whatever it is called. Raises ``IncompleteSetError`` if videos are missing.
    """
    if data.suffix not in _CONFIG_SUFFIXES:
        manifest = data / "captions.jsonl" if data.is_dir() else data
        return open_manifest(manifest, split, allow_missing=allow_missing)
    config = load_stored_set(data)
    if isinstance(config, DatasetConfig):
        return config.open(split, allow_missing=allow_missing)
    manifests = {"train": config.train, "val": config.validation}
    chosen = manifests.get(split)
    if chosen is None:
        raise DatasetError(f"{data} names no manifest for the {split} split; pass the manifest itself as --data")
    return open_manifest(chosen, split, allow_missing=allow_missing)


def training_data(
    config: DatasetConfig,
    *,
    batch_size: int,
    preprocess: Preprocess,
    sampling: SamplingConfig,
    epoch_of: EpochOf = "videos",
    augmentation: Augmentation = NO_AUGMENTATION,
) -> ClipData:
    """Open a published set for training: its training split, and the one that models are selected on.

    Raises ``DatasetError`` if a training video is in another split too and ``allow_overlap`` is not set.
    """
    train = config.open("train", allow_missing=config.allow_missing)
    selection = None
    if config.selection_split in config.splits:
        selection = config.open(config.selection_split, allow_missing=config.allow_missing)
        require_disjoint(train, selection, allow_overlap=config.allow_overlap)
    if selection is None or selection.split != "test":
        _require_unseen_test(config, train)
    if selection is not None and selection.split == "test":
        logger.warning(
            "%s: protocol reference validates on the TEST split, as the released code does; a model that is selected "
            "by these figures has seen the test set",
            config.kind,
        )
    return ClipData(
        train.clips,
        selection.clips if selection else (),
        source=f"{config.kind} ({config.root})",
        seed=config.seed,
        batch_size=batch_size,
        preprocess=preprocess,
        sampling=sampling,
        epoch_of=epoch_of,
        augmentation=augmentation,
    )


def _require_unseen_test(config: DatasetConfig, train: VideoTextSet) -> None:
    """Compare the training videos with the ids of the test split, whose videos need not be there to train."""
    try:
        test_ids = {entry.video_id for entry in config.entries("test")}
    except FileNotFoundError as error:
        logger.warning("%s: whether test videos are trained on could not be checked: %s", config.kind, error)
        return
    shared = sorted(test_ids & train.listed)
    if shared:
        refuse_overlap(shared, config.kind, ("train", "test"), allow_overlap=config.allow_overlap)
