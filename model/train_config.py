"""Settings of a training run: the YAML file behind ``emcl train --config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from model.config import Config, ModelConfig, load_mapping, problems_of
from model.data.scenes import ScenesConfig
from model.data.sources import StoredSet

DataConfig = Annotated[ScenesConfig | StoredSet, Field(discriminator="kind")]


class OptimiserConfig(Config):
    """AdamW with linear warm-up and a cosine, decoupled weight decay on matrices only.

    ``encoder_learning_rate`` is that of the CLIP towers, ``learning_rate`` that of everything new. The reference's
    1e-7 for the towers works through fp16 rounding (reference §2.5) and has to be tuned anew in fp32.
    """

    learning_rate: float = Field(1e-4, gt=0)
    encoder_learning_rate: float = Field(1e-6, gt=0)
    # What the cosine ends at, as a share of the learning rate.
    final_share: float = Field(0.0, ge=0, le=1)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.2, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)


class TrainConfig(Config):
    """One run. ``steps`` of ``batch_size`` clips, each step one symmetric InfoNCE over the whole batch."""

    model: ModelConfig
    data: DataConfig
    optimiser: OptimiserConfig = OptimiserConfig()
    batch_size: int = Field(128, ge=2)
    steps: int = Field(ge=1)
    seed: int = 0
    # A checkpoint to go on from, with its weights but not its optimiser; the configuration above must fit it.
    start_from: Path | None = None
    # Whether the EM pass is part of the loss. It moves the EMCL state; without it the state stays as drawn.
    joint_emcl: bool = True
    # bf16 is autocast: weights and loss stay float32.
    precision: Literal["fp32", "bf16"] = "fp32"
    # fp16 halves the finished checkpoint.
    saved_dtype: Literal["fp32", "fp16"] = "fp32"
    # 0 loads batches in the training process itself.
    workers: int = Field(1, ge=0)
    log_every: int = Field(20, ge=1)
    validate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(500, ge=1)


def load_train_config(path: Path) -> TrainConfig:
    """Read a run's settings from YAML or JSON; paths in it are relative to the working directory.

    Raises ``ValueError`` that names the file and every wrong key.
    """
    try:
        return TrainConfig.model_validate(load_mapping(path))
    except ValidationError as error:
        raise ValueError(f"{path} is not a valid training configuration: {problems_of(error)}") from error
