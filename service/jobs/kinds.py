"""What a job may be asked for, by kind: the bodies of ``POST /v1/jobs``. Unknown fields are errors.

Here is what can be told from the request alone; ``service.jobs.service`` checks it against folders and other jobs.
Wherever a model is named: ``demo``, ``served`` (the one that the served index was built with), or the id of a
``train`` or ``calibrate`` job that succeeded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
        None, gt=0, description="Stop it after this time. Default, and most: --job-timeout-seconds."
    )


class IndexJob(JobParameters):
    """Index videos and captions that lie in folders which the operator allowed; `emcl index build` or `add`."""

    kind: Literal["index"]
    paths: list[Name] = Field([], max_length=1000, description="Folders and files, inside --jobs-inputs.")
    captions: Name | None = Field(None, description="JSONL or CSV of captions, inside --jobs-inputs.")
    store: str = Field(
        "served",
        pattern=rf"^(served|new|{OTHER_JOB})$",
        description="`served`: add to the index that is served; `new`: make one in the job's folder; or the id of the "
        "index job that made one.",
    )
    model: ModelName | None = Field(None, description="With `new`: whose index it becomes. Default: `served`.")
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
    """Train a model; `emcl train`. Paths in the configuration must lie inside --jobs-inputs."""

    kind: Literal["train"]
    config: dict[str, Any] | None = Field(None, description="The configuration itself, as configs/*.yaml hold it.")
    config_file: Name | None = Field(None, description="Instead: a YAML or JSON file inside --jobs-inputs.")
    start_from: ModelName | None = Field(None, description="Begin with these weights; `demo` or a job's id.")

    @model_validator(mode="after")
    def _one_configuration(self) -> TrainJob:
        if (self.config is None) == (self.config_file is None):
            raise ValueError("give either config or config_file")
        if self.start_from == "served":
            raise ValueError("start_from takes demo or the id of a job")
        return self


class MeasureJob(JobParameters):
    """What evaluation and calibration have in common."""

    data: Name = Field(description="Manifest, its folder, or a data set's configuration, inside --jobs-inputs.")
    allow_missing: bool = Field(False, description="Go on although videos are missing.")
    model: ModelName = Field("served", description="Which model.")


class EvaluateJob(MeasureJob):
    """Measure retrieval in both directions; `emcl evaluate`."""

    kind: Literal["evaluate"]
    split: Literal["train", "val", "test"] = Field("test", description="Which split of a data set.")
    candidates: int | None = Field(
        None, ge=1, le=100_000, description="Candidates that stage 1 hands to the reranking. Default: the model's."
    )


class CalibrateJob(MeasureJob):
    """Choose EMCL's settings on labelled pairs; `emcl calibrate`. Makes a checkpoint of its own."""

    kind: Literal["calibrate"]
    split: Literal["train", "val", "test"] = Field("val", description="Which split of a data set.")
    mode: Literal["both", "channel", "reference"] = Field("both", description="Modes of EMCL to try.")
    only_if_significant: bool = Field(False, description="No EMCL unless it ranks better beyond chance.")


AnyJob = Annotated[IndexJob | TrainJob | EvaluateJob | CalibrateJob, Field(discriminator="kind")]
