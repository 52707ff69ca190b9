"""The trainer: ``emcl train``. In: a ``TrainConfig``. Out: a folder with the trained checkpoint and the run's log.

    OUTPUT/model.safetensors + model.json   the result, loadable with ``--model OUTPUT/model.safetensors``
    OUTPUT/log.jsonl                        one JSON object per line: steps (loss, rates) and validations (R@K)
    OUTPUT/config.json                      the settings, which a resumed run must repeat
    OUTPUT/checkpoints/                     the last point to resume from (model.train_state)

A run that was killed and resumed ends in the same bits as one that was not (on a CPU, with as many threads).
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import load_mapping
from model.data.base import Batch, TrainingData
from model.data.manifest import ManifestConfig, ManifestData
from model.data.scenes import ScenesConfig, ScenesData
from model.data.sources import training_data
from model.encoder import resolve_device
from model.loss import contrastive_loss
from model.net import EMCLNet, build_net
from model.tokenizer import Tokenizer, build_tokenizer
from model.train_config import OptimiserConfig, TrainConfig
from model.train_state import TrainState, load_state, newest_checkpoint, save_state, step_of
from model.validate import encode_batch, validate
from model.weights import load_strictly

logger = logging.getLogger(__name__)

MAX_LOG_SCALE = math.log(100)  # CLIP's bound on the logit scale, kept by the reference


class TrainingDivergedError(ValueError):
    """The loss is not finite. The message names the step and the clips of its batch."""


class _Steps(Dataset[Batch]):
    """Batches by step number, so that workers can prepare them ahead."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __getitem__(self, step: int) -> Batch:
        return self.data.batch(step)


def build_data(config: TrainConfig, image_size: int) -> TrainingData:
    """Build the data source that ``config.data`` describes."""
    sampling = config.model.sampling
    if isinstance(config.data, ScenesConfig):
        return ScenesData(config.data, batch_size=config.batch_size, image_size=image_size, sampling=sampling)
    if isinstance(config.data, ManifestConfig):
        return ManifestData(config.data, batch_size=config.batch_size, image_size=image_size, sampling=sampling)
    return training_data(config.data, batch_size=config.batch_size, image_size=image_size, sampling=sampling)


def build_optimiser(net: EMCLNet, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW with four groups: CLIP towers or new modules, with weight decay (matrices) or without."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("clip."), parameter.ndim >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak": config.encoder_learning_rate if in_clip else config.learning_rate,
                "weight_decay": config.weight_decay if is_matrix else 0.0,
            }
            for (in_clip, is_matrix), parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
    )


def rate_factor(step: int, steps: int, config: OptimiserConfig) -> float:
    """Return what the learning rates are multiplied by at ``step`` (from 0): linear warm-up, then a half cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """A run between two points in time. Use ``train``, which builds one."""

    def __init__(self, config: TrainConfig, output: Path, *, device: str = "auto") -> None:
        self.config = config
        self.output = output
        self.device = resolve_device(device)
        torch.manual_seed(config.seed)
        self.net = self._build_net().to(self.device)
        self.tokenizer: Tokenizer = build_tokenizer(config.model.tokenizer, config.model.clip)
        self.data = build_data(config, self.net.clip.image_size)
        self.state = TrainState(net=self.net, optimiser=build_optimiser(self.net, config.optimiser))

    def _build_net(self) -> EMCLNet:
        net = build_net(self.config.model)
        if self.config.start_from is not None:
            source = load_checkpoint(self.config.start_from)
            state = source.state_dict()
            if source.config.emcl != self.config.model.emcl:  # its EMCL state means nothing under other settings
                state |= {name: value for name, value in net.state_dict().items() if name.startswith("emcl.")}
            load_strictly(net, state, source=str(self.config.start_from))
        return net

    def run(self, start: int) -> Path:
        """Train from ``start`` steps done to the end; returns the path of the finished checkpoint."""
        # Both count this process only: a resumed run has no memory of its predecessor's pace.
        began, seen = time.monotonic(), 0
        self.net.train()
        with tqdm(total=self.config.steps, initial=start, desc="train", unit="step") as bar:
            for step, batch in enumerate(self._batches(start), start=start):
                loss = self._step(step, batch)
                seen += len(batch.captions)
                done = step + 1
                seconds = time.monotonic() - began
                rate = seen / seconds
                bar.update()
                bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} clips/s", refresh=False)
                if done % self.config.log_every == 0 or done == self.config.steps:
                    pace = {"examples_per_second": round(rate, 1), "seconds": round(seconds, 1)}
                    self._log(step=done, loss=round(loss, 5), **pace, **self._rates(step))
                if done % self.config.validate_every == 0 or done == self.config.steps:
                    self._validate(done)
                if done % self.config.checkpoint_every == 0 or done == self.config.steps:
                    save_state(self.state, self.output, done)
        return self._finish()

    def _batches(self, start: int) -> Iterator[Batch]:
        workers = self.config.workers
        return iter(
            DataLoader(
                _Steps(self.data),
                batch_size=None,
                sampler=range(start, self.config.steps),
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                # Forking a process that runs threads can deadlock.
                multiprocessing_context="spawn" if workers else None,
                collate_fn=_unchanged,
                worker_init_fn=_end_with_parent if workers else None,
                # Its own generator: the loader must not draw from the one that a resumed run would have to restore.
                generator=torch.Generator(),
            )
        )

    def _step(self, step: int, batch: Batch) -> float:
        factor = rate_factor(step, self.config.steps, self.config.optimiser)
        for group in self.state.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        loss = self._loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"the loss is {value} at step {step}; lower the learning rates or look at the clips of this batch: "
                f"{', '.join(batch.clip_ids)}"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), self.config.optimiser.clip_norm)
        self.state.optimiser.step()
        self.state.optimiser.zero_grad()
        with torch.no_grad():
            self.net.clip.logit_scale.clamp_(max=MAX_LOG_SCALE)
        return value

    def _loss(self, batch: Batch) -> Tensor:
        with self._arithmetic():
            text_BD, features_BFD, mask_BF = encode_batch(self.net, self.tokenizer, batch, self.device)
        return contrastive_loss(self.net, text_BD, features_BFD, mask_BF, joint_emcl=self.config.joint_emcl)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        if self.config.precision == "bf16":
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
        if self.device.type == "cpu":
            # For the few tokens of a small image the flash kernel's backward costs more than all products together.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack

    def _rates(self, step: int) -> dict[str, float]:
        factor = rate_factor(step, self.config.steps, self.config.optimiser)
        return {
            "learning_rate": self.config.optimiser.learning_rate * factor,
            "encoder_learning_rate": self.config.optimiser.encoder_learning_rate * factor,
            "logit_scale": round(float(self.net.clip.logit_scale.detach().exp()), 3),
        }

    def _validate(self, step: int) -> None:
        metrics = validate(self.net, self.tokenizer, self.data.validation(), self.device, self._arithmetic)
        if metrics is not None:
            self._log(step=step, validation=metrics)
            both = [metrics[way]["R@1"] for way in ("text_to_video", "video_to_text")]
            logger.info("step %d: validation R@1 %.1f text to video, %.1f video to text", step, *both)

    def _log(self, **entry: Any) -> None:
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _finish(self) -> Path:
        metadata = {"steps": self.config.steps, "batch_size": self.config.batch_size, "seed": self.config.seed}
        path = self.output / "model.safetensors"
        return save_checkpoint(self.net, path, metadata=metadata, dtype=self.config.saved_dtype)


def _end_with_parent(_: int) -> None:
    """Keep no data worker of a killed run: one that waits for room in its pipe would wait for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # only workers run this
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _unchanged(batch: Any) -> Any:
    return batch


def train(config: TrainConfig, output: Path, *, resume: bool = False, device: str = "auto") -> Path:
    """Run or continue a training; returns the path of the finished checkpoint.

    Raises ``ValueError`` if ``output`` holds a run already and ``resume`` is not set, or holds another configuration,
    and ``TrainingDivergedError`` for a loss that is not finite.
    """
    _check_output(output, config, resume=resume)
    trainer = Trainer(config, output, device=device)
    # Nothing is written before the configuration has proved buildable.
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    checkpoint = newest_checkpoint(output)
    start = 0 if checkpoint is None else step_of(checkpoint)
    _cut_log(output / "log.jsonl", start)
    if checkpoint is not None:
        load_state(trainer.state, checkpoint)
        logger.info("resuming %s after step %d of %d", output, start, config.steps)
    return trainer.run(start)


def _check_output(output: Path, config: TrainConfig, *, resume: bool) -> None:
    file = output / "config.json"
    if not file.exists():
        return
    if not resume:
        raise ValueError(f"{output} holds a run already; pass --resume to continue it, or another --output")
    wanted, found = config.model_dump(mode="json"), load_mapping(file)
    changed = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if changed:
        raise ValueError(
            f"{output} was started with other settings for {', '.join(changed)}; restore them or start afresh with "
            "another --output"
        )


def _cut_log(log: Path, steps_done: int) -> None:
    """Drop what was logged after the checkpoint: those steps are done again. A torn last line goes with them."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if entry["step"] <= steps_done:
            kept.append(line + "\n")
    log.write_text("".join(kept), encoding="utf-8")
