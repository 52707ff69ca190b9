"""The training loop: steps, log, validation, checkpoints, and the finished model. Use ``model.train.run.train``.

With several processes each one takes every step; only the first logs, validates and saves, while the others wait.

Before the loop starts, ``prepare_layers`` switches on gradient checkpointing and checks BatchNorm. BatchNorm by batch
statistics makes each clip's features depend on all clips encoded with it. With chunks or several processes those would
be the chunk or the share instead of the whole batch, and the running statistics would move once per chunk, so this is
refused. ``batch_norm: running`` uses the running statistics unchanged, as fine-tuning does; chunks and processes are
then exact.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from model.checkpoint import load_checkpoint, save_checkpoint
from model.clip.tokenizer import Tokenizer, build_tokenizer
from model.clip.weights import load_strictly
from model.data.batches import Batch
from model.encoder import DEMO_CHECKPOINT
from model.net import EMCLNet, build_net
from model.train.config import TrainConfig
from model.train.data import batches, build_data, require_selection_data
from model.train.distributed import World
from model.train.log import RunLog
from model.train.optimiser import build_optimiser, rate_factor
from model.train.state import Best, TrainState, WeightAverage, save_state
from model.train.step import Stepper, StepResult, arithmetic
from model.train.tasks import build_task

logger = logging.getLogger(__name__)

_AGREEMENT_EVERY = 100  # steps after which the processes compare their weights, as they do before each checkpoint


def prepare_layers(net: EMCLNet, config: TrainConfig, processes: int) -> None:
    """Switch on what ``config`` asks for. Raises ``ValueError`` for what this net cannot do exactly."""
    norms = _batch_norms(net)
    if config.batch_norm == "running" and not norms:
        raise ValueError("batch_norm: running is for towers with BatchNorm layers, and this model has none; drop it")
    if norms and config.batch_norm == "batch" and (processes > 1 or config.chunk_size is not None):
        cause = f"{processes} processes" if processes > 1 else f"chunk_size {config.chunk_size}"
        raise ValueError(
            f"this model has {len(norms)} BatchNorm layers, whose batch statistics would differ with {cause}, and the "
            "gradients with them; train in one process without chunk_size, or set batch_norm: running"
        )
    if config.gradient_checkpointing:
        _checkpoint_blocks(net)


def training_mode(net: EMCLNet, config: TrainConfig, trained: nn.Module | None = None) -> None:
    """Put the net into training mode, except BatchNorm layers that use their running statistics.

    With a frozen encoder only ``trained`` is put into it.
    """
    if not config.train_encoder:
        assert trained is not None
        net.eval()
        trained.train()
        return
    net.train()
    if config.batch_norm == "running":
        for norm in _batch_norms(net):
            norm.eval()


def _batch_norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


def _checkpoint_blocks(net: EMCLNet) -> None:
    """Let the towers' blocks and those of the temporal transformer compute their activations again when needed."""
    visual = net.clip.model.visual
    if type(visual).__name__ == "ModifiedResNet":
        raise ValueError(
            "gradient_checkpointing works on the blocks of transformers, and the image tower is a ResNet; leave it "
            "out, and use batch_norm: running with chunk_size to save memory"
        )
    net.clip.model.set_grad_checkpointing(True)
    blocks = getattr(net.temporal, "blocks", None)
    if blocks is not None:
        blocks.grad_checkpointing = True


def start_of(path: Path) -> Path:
    """The checkpoint that ``start_from`` means: ``demo`` is the shipped one."""
    return DEMO_CHECKPOINT if str(path) == "demo" else path


class Trainer:
    """A run between two points in time; ``world`` are the processes that share it."""

    def __init__(self, config: TrainConfig, output: Path, *, device: str = "auto", world: World | None = None) -> None:
        self.config = config
        self.output = output
        self.world = World.alone(device) if world is None else world
        if config.batch_size < self.world.size:
            raise ValueError(
                f"batch_size {config.batch_size} leaves some of the {self.world.size} processes without a clip; raise "
                "it, or start fewer processes"
            )
        torch.manual_seed(config.seed)
        self.net = self._build_net().to(self.world.device)
        prepare_layers(self.net, config, self.world.size)
        self.tokenizer: Tokenizer = build_tokenizer(config.model.tokenizer, config.model.clip)
        self.data = build_data(config, self.net.clip.preprocess)
        if config.keep_best:
            require_selection_data(config)
        self.steps = self._in_steps(config.steps or "epoch") * (config.epochs or 1)
        self.task = build_task(config, self.net, self.tokenizer, self.data)
        if not config.train_encoder:
            self.net.requires_grad_(requires_grad=False)
            self.task.trained.requires_grad_()
        self.net.to(self.world.device)
        self.state = TrainState(
            net=self.net,
            optimiser=build_optimiser(self.net, config.optimiser),
            scaler=torch.amp.GradScaler(self.world.device.type, enabled=config.precision == "fp16"),
            average=None if config.ema_decay is None else WeightAverage(self.net, config.ema_decay),
        )
        self.stepper = Stepper(config, self.state, self.task, self.world, steps=self.steps)

    def _build_net(self) -> EMCLNet:
        net = build_net(self.config.model)
        if self.config.start_from is not None:
            source = load_checkpoint(start_of(self.config.start_from))
            if source.config.caption is not None and source.captioner is not None:
                net.attach_captioner(source.config.caption)
            if source.config.qa is not None and source.answerer is not None:
                net.attach_answerer(source.config.qa)
            state = source.state_dict()
            if source.config.emcl != self.config.model.emcl:  # its EMCL state means nothing under other settings
                state |= {name: value for name, value in net.state_dict().items() if name.startswith("emcl.")}
            load_strictly(net, state, source=str(self.config.start_from))
        return net

    def _in_steps(self, every: int | str) -> int:
        if isinstance(every, int):
            return every
        assert self.data.steps_per_epoch is not None  # the configuration refuses epochs of endless data
        return self.data.steps_per_epoch

    def run(self, start: int, log: RunLog | None) -> Path:
        """Train from ``start`` steps done to the end; returns the path of the finished checkpoint.

        ``log`` is the first process's; the others have none.
        """
        pace = _Pace()
        training_mode(self.net, self.config, self.task.trained)
        coming = batches(self.data, range(start, self.steps), share=self.world.share, workers=self.config.workers)
        with tqdm(total=self.steps, initial=start, desc="train", unit="step", disable=not self.world.is_first) as bar:
            for done, share in enumerate(coming, start=start + 1):
                result = self.step(done - 1, share, with_diagnostics=self._is_due(self.config.log_every, done))
                pace.count(self.config.batch_size)
                bar.update()
                bar.set_postfix_str(f"loss {result.loss:.3f}, {pace.clips_per_second:.0f} clips/s", refresh=False)
                if self._is_due(self.config.checkpoint_every, done) or done % _AGREEMENT_EVERY == 0:
                    self.world.require_agreement(self.net.state_dict().values(), done)
                if log is not None:
                    self.after_step(log, done, result, pace)
        path = self.output / "model.safetensors"
        if log is not None:
            log.close()
            self._finish(path)
        self.world.wait()
        return path

    def _is_due(self, every: int | str, done: int) -> bool:
        return done % self._in_steps(every) == 0 or done == self.steps

    def after_step(self, log: RunLog, done: int, result: StepResult, pace: _Pace) -> None:
        """Log, validate and save, where step ``done`` is due for it."""
        if result.skipped:
            log.write(done, skipped="fp16 overflow", loss_scale=self.state.scaler.get_scale())
        if self._is_due(self.config.log_every, done):
            self._note(log, done, result, pace)
        if self._is_due(self.config.validate_every, done):
            self.validate(log, done)
        if self._is_due(self.config.checkpoint_every, done):
            save_state(self.state, self.output, done)

    def step(self, number: int, share: Batch, *, with_diagnostics: bool = False) -> StepResult:
        """Do step ``number`` (from 0) with this process's share of the batch."""
        wanted = with_diagnostics and self.config.joint_emcl and self.world.is_first
        return self.stepper.step(number, share, with_diagnostics=wanted)

    def _note(self, log: RunLog, done: int, result: StepResult, pace: _Pace) -> None:
        settings = self.config.optimiser
        factor = rate_factor(done - 1, self.steps, settings)
        log.write(
            done,
            steps=self.steps,
            loss=round(result.loss, 5),
            **pace.as_dict(),
            learning_rate=settings.learning_rate * factor,
            encoder_learning_rate=settings.encoder_learning_rate * factor,
            logit_scale=round(float(self.net.clip.logit_scale.detach().exp()), 3),
            **({} if result.emcl is None else {"emcl": result.emcl.as_dict()}),
        )

    def validate(self, log: RunLog, done: int) -> None:
        """Measure the validation clips with the weights that would be saved, and keep these if they are the best."""
        with self._shipped_weights():
            clips = self.data.validation()
            metrics = self.task.validate(clips, self.world.device, lambda: arithmetic(self.config, self.world.device))
            if metrics is None:
                return
            log.write(done, validation=metrics)
            logger.info("step %d: validation %s", done, self.task.summary(metrics))
            if self.config.keep_best:
                self._keep_if_best(done, self.task.score(metrics))

    def _keep_if_best(self, done: int, score: float) -> None:
        best = self.state.progress.best
        if best is None or score > best.score:
            self.state.progress.best = Best(step=done, score=score)
            self._save(self.output / "best.safetensors", done)

    def _shipped_weights(self) -> Any:
        """The averaged weights where there are any; within the context the net has them."""
        return ExitStack() if self.state.average is None else self.state.average.in_place()

    def _finish(self, path: Path) -> None:
        best = self.state.progress.best
        with self._shipped_weights():
            if best is None:
                self._save(path, self.steps)
                return
            self._save(path.with_name("last.safetensors"), self.steps)
        chosen = load_checkpoint(path.with_name("best.safetensors"))
        save_checkpoint(chosen, path, metadata=self._facts(best.step), dtype=self.config.saved_dtype)

    def _save(self, path: Path, step: int) -> None:
        save_checkpoint(self.net, path, metadata=self._facts(step), dtype=self.config.saved_dtype)

    def _facts(self, step: int) -> dict[str, Any]:
        """Describe how a checkpoint was made; ``weights`` and ``selected`` name which of the run's weights it has."""
        config, best = self.config, self.state.progress.best
        facts: dict[str, Any] = {"steps": step, "batch_size": config.batch_size, "seed": config.seed}
        if config.task != "retrieval":
            facts["task"] = config.task
        facts["weights"] = "last" if config.ema_decay is None else f"moving average, decay {config.ema_decay}"
        facts["selected"] = "last step"
        if best is not None and best.step == step:
            facts["selected"] = f"best validation {self.task.chosen_by}: {best.score:.2f} after step {best.step}"
        return facts


class _Pace:
    """Speed of this process only: a resumed run has no memory of its predecessor's."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._clips = 0

    def count(self, clips: int) -> None:
        self._clips += clips

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def clips_per_second(self) -> float:
        return self._clips / self.seconds

    def as_dict(self) -> dict[str, float]:
        return {"examples_per_second": round(self.clips_per_second, 1), "seconds": round(self.seconds, 1)}
