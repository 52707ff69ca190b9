"""Settings of a training run: the YAML file behind ``emcl train --config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from model.config import Config, ModelConfig, load_mapping, problems_of
from model.data.augment import Augmentation, NoAugmentation
from model.data.clips import NO_AUGMENTATION, EpochOf
from model.data.dataset import Split
from model.data.manifest import ManifestConfig
from model.data.registry import StoredSet
from model.data.scenes import ScenesConfig

DataConfig = Annotated[ScenesConfig | StoredSet, Field(discriminator="kind")]
Every = Annotated[int, Field(ge=1)] | Literal["epoch"]


class OptimiserConfig(Config):
    """The optimiser and its schedule (``model.train.optimiser``).

    ``kind`` ``adamw`` is ours, with ``warmup_steps`` and ``final_share``. ``bert-adam`` is the reference's, with
    ``warmup_share``. A setting that the chosen kind does not read is an error.

    ``encoder_learning_rate`` is that of the CLIP towers, ``learning_rate`` that of everything new. The reference's
    1e-7 for the towers works through fp16 rounding (reference §2.5) and has to be tuned again in fp32.
    """

    kind: Literal["adamw", "bert-adam"] = "adamw"
    learning_rate: float = Field(1e-4, gt=0)
    encoder_learning_rate: float = Field(1e-6, gt=0)
    # adamw: what the cosine ends at, as a share of the learning rate. None: 0.
    final_share: float | None = Field(None, ge=0, le=1)
    # adamw: steps until the full rate. None: 100.
    warmup_steps: int | None = Field(None, ge=0)
    # bert-adam: the share of all steps until the full rate. None: the reference's 0.1.
    warmup_share: float | None = Field(None, ge=0, le=1)
    weight_decay: float = Field(0.2, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    # The norm that all gradients together are clipped to; bert-adam then clips each tensor to norm 1 as well.
    clip_norm: float = Field(1.0, gt=0)
    # False freezes the image tower's patch projection (conv1), as the reference does.
    train_patches: bool = True

    @model_validator(mode="after")
    def _only_what_the_kind_reads(self) -> OptimiserConfig:
        foreign = ("warmup_share",) if self.kind == "adamw" else ("warmup_steps", "final_share")
        given = [name for name in foreign if getattr(self, name) is not None]
        if given:
            own = "warmup_steps and final_share" if self.kind == "adamw" else "warmup_share, a share of all steps"
            raise ValueError(f"optimiser kind {self.kind} does not read {' and '.join(given)}; its schedule has {own}")
        return self

    @property
    def warmup_steps_or_default(self) -> int:
        """``warmup_steps`` of adamw."""
        return 100 if self.warmup_steps is None else self.warmup_steps

    @property
    def final_share_or_default(self) -> float:
        """``final_share`` of adamw."""
        return 0.0 if self.final_share is None else self.final_share

    @property
    def warmup_share_or_default(self) -> float:
        """``warmup_share`` of bert-adam."""
        return 0.1 if self.warmup_share is None else self.warmup_share


class QuestionFiles(Config):
    """MSRVTT-QA's files, for ``task: qa`` on a set from disk: its splits as JSON lines, and optionally its answers.

    ``answers`` is ``train_ans2label.json``; None: the most frequent answers of the training questions.
    """

    train: Path
    validation: Path | None = None
    answers: Path | None = None


TaskName = Literal["retrieval", "captioning", "qa"]
CONTRAST_WEIGHT = 0.5  # of the contrast in the loss of other tasks, in the released question answering


class TrainConfig(Config):
    """One run: ``steps`` steps, or ``epochs`` passes over the training items, of ``batch_size`` clips.

    ``batch_size`` is that of all processes together; each step is one symmetric InfoNCE over the whole batch.
    """

    model: ModelConfig
    data: DataConfig
    # What is learnt (``model.train.tasks``): to rank, or a head of the model for another task, such as model.caption.
    task: TaskName = "retrieval"
    # task qa, except on generated scenes, which bring their own: the questions, which stand in for captions.
    questions: QuestionFiles | None = None
    # False trains the task's head alone, on the features that the model has: its fingerprint, and with it every index
    # of those features, stays valid.
    train_encoder: bool = True
    # Other tasks than retrieval: the weight of the contrast of videos and texts in the loss; 0: none. None: 0.5.
    contrast_weight: float | None = Field(None, ge=0)
    optimiser: OptimiserConfig = OptimiserConfig()
    batch_size: int = Field(128, ge=2)
    # Exactly one of the two. Generated scenes have no end, so they take only steps.
    steps: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    # What an epoch has once: every video with one random caption, or every caption (the reference's way).
    epoch_of: EpochOf = "videos"
    seed: int = 0
    # A checkpoint to start from, with its weights but not its optimiser; the configuration above must fit it.
    # `demo` is the shipped one. It keeps the heads that it has for other tasks.
    start_from: Path | None = None
    # Whether the EM pass is part of the loss. It moves the EMCL state; without it the state stays as drawn.
    joint_emcl: bool = True
    # How the loss treats other captions of a batch's videos, and other videos of its captions: left out, or
    # negatives, as in the reference.
    duplicates: Literal["ignore", "negatives"] = "ignore"
    # `randaugment`, or its settings; applied to training clips only.
    augmentation: Augmentation = NO_AUGMENTATION
    # Steps in which the strength of the EM pass in the loss rises linearly from 0 to the model's beta; 0: at once.
    emcl_ramp_steps: int = Field(0, ge=0)
    # bf16 and fp16 are autocast of the encoders: weights and loss stay float32. fp16 also scales the gradients.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    # Clips per process that are encoded at once with a graph; the gradients are those of the whole batch (GradCache).
    chunk_size: int | None = Field(None, ge=1)
    # Keep no activations inside the blocks of transformers, compute them again in the backward pass.
    gradient_checkpointing: bool = False
    # Whether BatchNorm layers (ResNet towers) normalise by the batch, as torch trains them, or by their running
    # statistics, which chunks and several processes need.
    batch_norm: Literal["batch", "running"] = "batch"
    # Decay of an exponential moving average of the weights, which is then validated and saved; None: no average.
    ema_decay: float | None = Field(None, gt=0, lt=1)
    # fp16 halves the finished checkpoint.
    saved_dtype: Literal["fp32", "fp16"] = "fp32"
    # 0 loads batches in the training process itself.
    workers: int = Field(1, ge=0)
    log_every: int = Field(20, ge=1)
    # In steps, or "epoch".
    validate_every: Every = 500
    checkpoint_every: Every = 500
    # Keep the weights of the best validation (R@1, text to video, or what another task is measured by), not the last
    # ones, and make them the result.
    keep_best: bool = False
    # Also write OUTPUT/tensorboard; needs the extra `train`.
    tensorboard: bool = False
    # How long processes wait for each other, for example while rank 0 validates and saves.
    timeout_seconds: float = Field(1800.0, gt=0)

    @model_validator(mode="after")
    def _length_is_given_once(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            raise ValueError(f"a run has either steps or epochs, this one has {given}; set exactly one of them")
        endless = isinstance(self.data, ScenesConfig)
        counted = [
            name
            for name, is_used in {
                "epochs": self.epochs is not None,
                "epoch_of: captions": self.epoch_of == "captions",
                "validate_every: epoch": self.validate_every == "epoch",
                "checkpoint_every: epoch": self.checkpoint_every == "epoch",
            }.items()
            if is_used
        ]
        if endless and counted:
            raise ValueError(f"generated scenes have no epochs, but {' and '.join(counted)} asks for them; use steps")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> TrainConfig:
        if self.emcl_ramp_steps and not self.joint_emcl:
            raise ValueError("emcl_ramp_steps has no effect without joint_emcl; leave it out or set joint_emcl: true")
        if isinstance(self.data, ScenesConfig) and not isinstance(self.augmentation, NoAugmentation):
            raise ValueError(
                f"augmentation {self.augmentation.kind} would falsify generated scenes, whose captions name colours "
                "and directions; leave it out"
            )
        if self.keep_best:
            self._selects_honestly()
        return self

    @model_validator(mode="after")
    def _task_has_its_head(self) -> TrainConfig:
        wanted = _HEADS.get(self.task)
        given = [name for name in _HEADS.values() if getattr(self.model, name) is not None]
        if wanted is not None and wanted not in given:
            raise ValueError(f"task {self.task} trains model.{wanted}, which is not there; add it ({{}} for defaults)")
        foreign = [f"model.{name}" for name in given if name != wanted]
        if foreign:
            raise ValueError(f"task {self.task} does not train {' and '.join(foreign)}; leave it out")
        return self

    @model_validator(mode="after")
    def _questions_fit(self) -> TrainConfig:
        scenes = isinstance(self.data, ScenesConfig)
        if self.questions is not None and (self.task != "qa" or scenes):
            why = f"task {self.task}" if self.task != "qa" else "generated scenes, which bring their own"
            raise ValueError(f"questions has no effect with {why}; leave it out")
        if self.task == "qa" and not scenes and self.questions is None:
            raise ValueError(f"task qa on data of kind {self.data.kind} needs questions: {{train: FILE}}")
        if self.task == "qa" and isinstance(self.data, ScenesConfig) and self.data.makes_objects:
            raise ValueError("object_warmup_steps and object_steps make clips that task qa has no questions about")
        return self

    @model_validator(mode="after")
    def _frozen_is_possible(self) -> TrainConfig:
        if self.task == "retrieval":
            useless = {
                "train_encoder: false": not self.train_encoder,
                "contrast_weight": self.contrast_weight is not None,
            }
        else:
            useless = {
                "joint_emcl, without a contrast,": self.joint_emcl and self.contrast_weight == 0,
                "gradient_checkpointing, with train_encoder: false,": self.gradient_checkpointing
                and not self.train_encoder,
                "batch_norm: running, with train_encoder: false,": self.batch_norm == "running"
                and not self.train_encoder,
            }
        for name, is_used in useless.items():
            if is_used:
                raise ValueError(f"{name} has no effect with task {self.task}; leave it out")
        return self

    @property
    def contrast_weight_or_default(self) -> float:
        """``contrast_weight`` of other tasks than retrieval."""
        return CONTRAST_WEIGHT if self.contrast_weight is None else self.contrast_weight

    def _selects_honestly(self) -> None:
        split = selection_split(self.data)
        if split is None:
            raise ValueError("keep_best needs validation clips to choose by, and this data section names none")
        if split == "test" and getattr(self.data, "protocol", None) != "reference":
            raise ValueError(
                "keep_best would choose by the test split, which then measures nothing any more; only data.protocol: "
                "reference may do that, as the released code does"
            )


_HEADS = {"captioning": "caption", "qa": "qa"}  # the key of the model's configuration that a task trains


def selection_split(data: ScenesConfig | StoredSet) -> Split | None:
    """Return the split that is validated on while training, None if there is none."""
    if isinstance(data, ScenesConfig):
        return "val" if data.validation_clips else None
    if isinstance(data, ManifestConfig):
        return "val" if data.validation else None
    return data.selection_split if data.selection_split in data.splits else None


def load_train_config(path: Path) -> TrainConfig:
    """Read a run's settings from YAML or JSON; paths in it are relative to the working directory.

    Raises ``ValueError`` that names the file and every wrong key.
    """
    try:
        return TrainConfig.model_validate(load_mapping(path))
    except ValidationError as error:
        raise ValueError(f"{path} is not a valid training configuration: {problems_of(error)}") from error
