"""Parameters of jobs, by kind: the bodies of ``POST /v1/jobs``. Unknown fields are errors.

These checks need the request alone; ``service.jobs.submission`` checks it against folders and other jobs.
Wherever a model is named: ``demo``, ``served`` (the one that the served index was built with), or the id of a
``train`` or ``calibrate`` job that succeeded.

Paths that clients name: only inside the folders that the operator allowed, whatever links and dots say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.errors import Unprocessable

OTHER_JOB = r"[0-9a-f]{16}"

MODEL = rf"^(demo|served|{OTHER_JOB})$"

KINDS = ("index", "train", "evaluate", "calibrate")

ModelName = Annotated[str, Field(pattern=MODEL)]

Name = Annotated[str, Field(min_length=1, max_length=4096)]


class JobParameters(BaseModel):
    """What every job takes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", description="`auto`, `cpu` or `cuda:N`.")
    timeout_seconds: float | None = Field(
        None, gt=0, description="Stop it after this time. Default and maximum: --job-timeout-seconds."
    )


class IndexJob(JobParameters):
    """Index videos and captions in folders that the operator allowed; `emcl index build` or `add`."""

    kind: Literal["index"]
    paths: list[Name] = Field([], max_length=1000, description="Folders and files, inside --jobs-inputs.")
    captions: Name | None = Field(None, description="JSONL or CSV of captions, inside --jobs-inputs.")
    store: str = Field(
        "served",
        pattern=rf"^(served|new|{OTHER_JOB})$",
        description="`served`: add to the index that is served; `new`: make one in the job's folder; or the id of the "
        "index job that made one.",
    )
    model: ModelName | None = Field(None, description="With `new`: the model of the index. Default: `served`.")
    prune: bool = Field(False, description="Remove videos whose files are gone.")
    segment_seconds: float | None = Field(None, ge=0.1, description="With `new`: longer videos are cut.")
    workers: int | None = Field(None, ge=1, le=64, description="Decoding processes.")

    @model_validator(mode="after")
    def _fits_together(self) -> IndexJob:
        if not self.paths and self.captions is None:
            raise ValueError("give paths, captions or both")
        if self.store != "new" and (self.model is not None or self.segment_seconds is not None):
            raise ValueError('model and segment_seconds are fixed when an index is made; they go with store "new"')
        if not self.paths and (self.store == "new" or self.prune):
            raise ValueError('store "new" and prune need paths')
        return self


class TrainJob(JobParameters):
    """Train a model; `emcl train`. Paths in the configuration must be inside --jobs-inputs."""

    kind: Literal["train"]
    config: dict[str, Any] | None = Field(None, description="The configuration itself, as in configs/*.yaml.")
    config_file: Name | None = Field(None, description="Instead of `config`: a YAML or JSON file inside --jobs-inputs.")
    start_from: ModelName | None = Field(None, description="Start from these weights; `demo` or a job's id.")

    @model_validator(mode="after")
    def _one_configuration(self) -> TrainJob:
        if (self.config is None) == (self.config_file is None):
            raise ValueError("give either config or config_file")
        if self.start_from == "served":
            raise ValueError("start_from takes demo or the id of a job")
        return self


class MeasureJob(JobParameters):
    """Common parameters of evaluation and calibration."""

    data: Name = Field(description="Manifest, its folder, or a data set's configuration, inside --jobs-inputs.")
    allow_missing: bool = Field(False, description="Continue although videos are missing.")
    model: ModelName = Field("served", description="Which model.")


class EvaluateJob(MeasureJob):
    """Measure retrieval in both directions; `emcl evaluate`."""

    kind: Literal["evaluate"]
    split: Literal["train", "val", "test"] = Field("test", description="Which split of a data set.")
    candidates: int | None = Field(
        None, ge=1, le=100_000, description="Candidates from stage 1 to rerank. Default: the model's."
    )


class CalibrateJob(MeasureJob):
    """Choose EMCL's settings on labelled pairs; `emcl calibrate`. Makes a checkpoint of its own."""

    kind: Literal["calibrate"]
    split: Literal["train", "val", "test"] = Field("val", description="Which split of a data set.")
    mode: Literal["both", "channel", "reference"] = Field("both", description="Modes of EMCL to try.")
    only_if_significant: bool = Field(False, description="No EMCL unless it ranks better beyond chance.")


AnyJob = Annotated[IndexJob | TrainJob | EvaluateJob | CalibrateJob, Field(discriminator="kind")]

M = TypeVar("M", bound=BaseModel)

_FORBIDDEN = re.compile(r"[\x00-\x1f*?\[\]]|://")

_LONGEST = 4096

# What open_clip would fetch from elsewhere than its own table of weights.
_FETCHING_KEYS = frozenset({"hf_model_name", "hf_tokenizer_name"})

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class AllowedFolders:
    """The folders that jobs may read (``--jobs-inputs``)."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [folder.resolve() for folder in folders]

    def find(self, name: str, *, field: str) -> Path:
        """The absolute path of a file or folder inside; a relative name is looked for in each folder in turn.

        Raises ``Unprocessable``, with the same message for paths outside and for paths that do not exist.
        """
        path = Path(name)
        if name and len(name) <= _LONGEST and not _FORBIDDEN.search(name) and ".." not in path.parts:
            for folder in self._folders:
                try:
                    found = (folder / path).resolve(strict=True)
                except (OSError, RuntimeError, ValueError):  # not there or not allowed, a loop of links, no name at all
                    continue
                if found.is_relative_to(folder):
                    return found
        raise Unprocessable(
            f"{field}: {name[:200]!r} is not a file or folder that jobs may read",
            expected="a path inside a folder of --jobs-inputs (EMCL_JOBS_INPUTS), without `..`, wildcards and URLs"
            if self._folders
            else "no path, because --jobs-inputs (EMCL_JOBS_INPUTS) names no folder",
            next_step="correct the path, or have the operator add its folder to --jobs-inputs",
        )

    def confine(self, value: M, *, field: str) -> M:
        """A configuration with every path in it, however deep, found inside. Raises ``Unprocessable``."""
        changes: dict[str, Any] = {}
        for name in type(value).model_fields:
            part = getattr(value, name)
            if isinstance(part, Path):
                changes[name] = self.find(str(part), field=f"{field}.{name}")
            elif isinstance(part, BaseModel):
                changes[name] = self.confine(part, field=f"{field}.{name}")
        return value.model_copy(update=changes)

    def confine_clip(self, value: Any, *, field: str) -> Any:
        """A ``ClipConfig`` whose weights are a tag of open_clip's table or a file inside. Raises ``Unprocessable``."""
        if _FETCHING_KEYS & _keys(value.custom) or not _PLAIN_NAME.fullmatch(value.architecture):
            raise Unprocessable(
                f"{field}: this architecture is fetched by its name",
                expected="a name of open_clip's own table, or `custom` without hf_model_name and hf_tokenizer_name",
                next_step="describe the towers in `custom`, or name an architecture that open_clip lists",
            )
        if value.pretrained is None or _is_tag(value.architecture, value.pretrained):
            return value
        return value.model_copy(update={"pretrained": str(self.find(value.pretrained, field=f"{field}.pretrained"))})


def _is_tag(architecture: str, name: str) -> bool:
    from model.clip.compat import import_open_clip

    return name in import_open_clip().list_pretrained_tags_by_model(architecture)


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for part in value.values() for key in _keys(part)}
    return {key for part in value for key in _keys(part)} if isinstance(value, list) else set()
