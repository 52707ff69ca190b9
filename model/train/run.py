"""Training: ``emcl train``. In: a ``TrainConfig``. Out: a folder with the trained checkpoint and the run's log.

    OUTPUT/model.safetensors + model.json   the result, loadable with ``--model OUTPUT/model.safetensors``; its
                                            metadata says which of the run's weights it holds
    OUTPUT/best.* and last.*                with ``keep_best``: the best validation's weights, and the last ones
    OUTPUT/log.jsonl                        one JSON object per line: steps (loss, rates) and validations (R@K)
    OUTPUT/tensorboard/                     the same for TensorBoard, with ``tensorboard``
    OUTPUT/config.json                      the settings, which a resumed run must repeat
    OUTPUT/checkpoints/                     the last point to resume from (model.train.state)

A run that was killed and resumed ends in the same bits as one that was not (on a CPU, with as many threads and
processes). Several processes, one per GPU, or on CPUs:

    torchrun --nproc-per-node 2 -m service.cli train --config configs/msrvtt.yaml --output runs/msrvtt
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import load_mapping
from model.train.config import TrainConfig
from model.train.distributed import World, join_world
from model.train.log import RunLog, require_tensorboard
from model.train.loop import Trainer
from model.train.optimiser import rate_factor
from model.train.state import load_state, newest_checkpoint, step_of
from model.train.step import TrainingDivergedError

__all__ = ["Trainer", "TrainingDivergedError", "rate_factor", "train"]

logger = logging.getLogger(__name__)

# What a resumed run may change, because no weight depends on it.
_CHANGEABLE = {"workers", "tensorboard", "timeout_seconds"}


def train(config: TrainConfig, output: Path, *, resume: bool = False, device: str = "auto") -> Path:
    """Run or continue a training; returns the path of the finished checkpoint. Under torchrun, all processes call it.

    Raises ``ValueError`` if ``output`` holds a run already and ``resume`` is not set, or holds another configuration,
    ``TrainingDivergedError`` for a loss that is not finite, and ``WorkerLostError`` if another process ends.
    """
    _check_output(output, config, resume=resume)
    if config.tensorboard:
        require_tensorboard()
    with join_world(device, timeout_seconds=config.timeout_seconds) as world:
        return train_as(config, output, world)


def train_as(config: TrainConfig, output: Path, world: World) -> Path:
    """Train as one process of ``world``."""
    trainer = Trainer(config, output, world=world)
    # No process writes before all have checked the folder and built the model.
    checkpoint = newest_checkpoint(output)
    start = 0 if checkpoint is None else step_of(checkpoint)
    if len(starts := {tuple(found) for found in world.exchange([start])}) > 1:
        raise ValueError(
            f"the processes found different checkpoints in {output} ({starts}); they must share the folder"
        )
    log = None
    if world.is_first:
        output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config.model_dump(mode="json"), indent=2)
        (output / "config.json").write_text(text + "\n", encoding="utf-8")
        log = RunLog(output, steps_done=start, tensorboard=config.tensorboard)
    if checkpoint is not None:
        load_state(trainer.state, checkpoint)
        logger.info("resuming %s after step %d of %d", output, start, trainer.steps)
    world.wait()  # until all have read the checkpoint that the first will replace
    return trainer.run(start, log)


def _check_output(output: Path, config: TrainConfig, *, resume: bool) -> None:
    file = output / "config.json"
    if not file.exists():
        return
    if not resume:
        raise ValueError(f"{output} holds a run already; pass --resume to continue it, or another --output")
    wanted, found = config.model_dump(mode="json"), _settings_of(file)
    changed = sorted(key for key in wanted if wanted[key] != found.get(key) and key not in _CHANGEABLE)
    if changed:
        raise ValueError(
            f"{output} was started with other settings for {', '.join(changed)}; restore them or start afresh with "
            "another --output"
        )


def _settings_of(file: Path) -> dict[str, Any]:
    """The settings that a run was started with; those that did not exist yet have their defaults."""
    try:
        return TrainConfig.model_validate(load_mapping(file)).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError(
            f"{file} is not a configuration of this version; finish that run with the version that began it, or start "
            f"afresh with another --output ({error.error_count()} settings differ)"
        ) from error
