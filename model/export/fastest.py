"""The fastest runtime of each tower on this processor, among those that rank as fp32 does; and when it is looked for.

In: a model by name. Out: a ``Fastest`` in the model's ``ExportStore``, which ``--runtime auto`` goes by from then on.
Texts and frames are measured apart, because they are different work: with ViT-B/32 on a processor with AMX, int8 by
onnxruntime was the fastest for texts and bf16 by PyTorch for frames (docs/runtimes.md).

A search for the fastest takes seconds for the demo model and a minute or so for a CLIP of real size, so it happens at
once only where it is short or soon pays, and else in a process of its own in the background.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import torch

from model.encoder import Encoder, export_store, load_encoder
from model.export.export import export, generated_samples
from model.export.guard import SampleFeatures, Samples, encode_samples, judge
from model.runtime.choose import (
    TOWER_CHOICES,
    ExportKind,
    Machine,
    PrecisionWish,
    RuntimeWish,
    Tower,
    TowerKind,
    machine_of,
    processor,
)
from model.runtime.store import ExportError, ExportStore, Fastest, Speed

logger = logging.getLogger(__name__)

VIDEOS = 24
"""Generated scenes to judge by: a few more than the guard needs."""
AT_ONCE_SECONDS = 10.0
"""A measurement that is expected to take longer is made in the background."""
PAYS_AFTER = 4.0
"""Times a measurement's length that indexing must still take for it to be made first."""
WORTH_MS = 5.0
"""A model that encodes a text and a frame faster than this is left as it is: the gain would not be noticeable."""
NOT_SLOWER = 1.1
"""A runtime that rounds less is taken for one that is faster by less than this."""

_BY_EXACTNESS: tuple[TowerKind, ...] = ("torch", "onnx", "torch-bf16", "onnx-int8")
_ROUNDS = 6.0  # how often the samples are encoded, in units of the time that they take now
_TRACE_SECONDS_PER_GB = 30.0  # tracing, quantising and writing, by the bytes of the weights


class MeasuringError(RuntimeError):
    """Another process measures the same model at the moment."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model as ``load_encoder`` names it, on the CPU, and the folder of its exports."""

    model: str | None
    pretrained: str | None
    exports: Path | None

    def load(self, runtime: RuntimeWish | None = None, precision: PrecisionWish = "fp32") -> Encoder:
        """Load it; without ``runtime`` as it can be exported."""
        return load_encoder(
            self.model,
            pretrained=self.pretrained,
            device="cpu",
            precision=precision,
            runtime=runtime,
            exports=self.exports,
        )

    def store(self, fingerprint: str) -> ExportStore:
        """Its exports."""
        return export_store(self.model, fingerprint, pretrained=self.pretrained, folder=self.exports)

    def command(self) -> list[str]:
        """The options of ``emcl export`` that name it."""
        given = {"--model": self.model, "--pretrained": self.pretrained, "--output": self.exports}
        return [part for option, value in given.items() if value is not None for part in (option, str(value))]


def _generated(encoder: Encoder) -> Samples:
    return generated_samples(VIDEOS, preprocess=encoder.preprocess)


def find_fastest(
    named: NamedModel, say: Callable[[str], None], samples_for: Callable[[Encoder], Samples] = _generated
) -> Fastest:
    """Export what this processor can run, judge it, measure each tower, and keep the result.

    ``samples_for`` makes the samples to judge by for the loaded model. Existing exports are not made again. Raises
    ``MeasuringError`` while another process does the same, and ``OSError`` for a folder that cannot be written.
    """
    encoder = named.load()
    store = named.store(encoder.fingerprint)
    with _alone(store):
        samples = samples_for(encoder)
        plain = encode_samples(encoder, samples)
        machine = machine_of(torch.device("cpu"))
        for kind in _missing(machine, store):
            try:
                report = export(encoder, store, kind, samples, plain)
            except ExportError as error:
                say(f"{kind}: {error}")
                continue
            say(f"{kind}: " + ("passed the guard" if report.passed else f"REFUSED: {'; '.join(report.failures)}"))
        del encoder
        features = {kind: _encode(named, kind, samples) for kind in _usable(machine, store)}
        fastest, failures = _best(features, plain, samples)
        found = Fastest(
            fingerprint=store.fingerprint,
            processor=processor(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            measured={kind: item.speed for kind, item in features.items()},
            fastest=dict(fastest),
            failures=failures,
        )
        store.publish_fastest(found)
    return found


def _missing(machine: Machine, store: ExportStore) -> Iterator[ExportKind]:
    """What should be exported and judged first. bf16 comes last, because it takes the weights' digits.

    fp32 by onnxruntime is about as fast as PyTorch, whose weights are laid out once: it is measured if it was
    exported.
    """
    if machine.int8 and machine.onnxruntime and find_spec("onnx") is not None and not store.offer("onnx-int8").exists:
        yield "onnx-int8"
    if machine.bf16 and not store.offer("torch-bf16").exists:
        yield "torch-bf16"


def _usable(machine: Machine, store: ExportStore) -> Iterator[TowerKind]:
    yield "torch"
    if machine.bf16 and store.offer("torch-bf16").problem is None:
        yield "torch-bf16"
    if machine.onnxruntime and store.offer("onnx").problem is None:
        yield "onnx"
    if machine.onnxruntime and machine.int8 and store.offer("onnx-int8").problem is None:
        yield "onnx-int8"


def _encode(named: NamedModel, kind: TowerKind, samples: Samples) -> SampleFeatures:
    """The samples by one runtime, loaded as it will be used."""
    choice = TOWER_CHOICES[kind]
    precision: PrecisionWish = "auto" if choice.precision == "int8" else choice.precision
    return encode_samples(named.load(choice.runtime, precision), samples)


def _best(
    features: Mapping[TowerKind, SampleFeatures], plain: SampleFeatures, samples: Samples
) -> tuple[Mapping[Tower, TowerKind], tuple[str, ...]]:
    """The fastest kind for each tower; one kind for both where the two do not go together."""
    speeds = {kind: features[kind].speed for kind in _BY_EXACTNESS if kind in features}
    text = _quickest({kind: speed.text_ms for kind, speed in speeds.items()})
    image = _quickest({kind: speed.image_ms for kind, speed in speeds.items()})
    if {text, image} == {"torch", "torch-bf16"}:
        text = image = "torch-bf16"  # PyTorch's towers have one precision
    if text == image:
        return {"text": text, "image": image}, ()
    mixed = replace(features[image], text_TD=features[text].text_TD)
    # The limits of the coarser of the two: each has passed by itself.
    report = judge("onnx-int8" if "onnx-int8" in (text, image) else "torch-bf16", samples, plain, mixed)
    if report.passed:
        return {"text": text, "image": image}, ()
    both = _quickest({kind: speed.text_ms + speed.image_ms for kind, speed in speeds.items()})
    return {"text": both, "image": both}, report.failures


def _quickest(milliseconds: Mapping[TowerKind, float]) -> TowerKind:
    """The first that takes at most ``NOT_SLOWER`` times the least, so that what is gained is worth the rounding."""
    least = min(milliseconds.values())
    return next(kind for kind, found in milliseconds.items() if found <= NOT_SLOWER * least)


@contextmanager
def _alone(store: ExportStore) -> Iterator[None]:
    store.folder.mkdir(parents=True, exist_ok=True)
    with (store.folder / f"{store.fingerprint[:16]}-fastest.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeasuringError(
                f"another process measures the runtimes of this model at the moment (it holds {lock.name}); "
                "wait until it has finished"
            ) from None
        yield


def at_first_use(
    named: NamedModel,
    encoder: Encoder,
    *,
    wish: RuntimeWish,
    precision: PrecisionWish,
    say: Callable[[str], None],
    frames_ahead: Callable[[], int] = lambda: 0,
) -> Encoder:
    """Find the fastest runtime unless it was measured on this processor before; return the encoder to use now.

    Does nothing if a runtime or a precision was requested, on a GPU, where nothing else can run, and for models that
    are fast anyway. A measurement that takes longer than ``AT_ONCE_SECONDS`` is left to a background process, whose
    result counts from the next start on, unless ``frames_ahead()`` frames are to be encoded and waiting pays. Failures
    are reported through ``say`` and are never fatal.
    """
    machine = machine_of(encoder.device)
    if wish != "auto" or precision != "auto" or machine.cuda or not (machine.bf16 or machine.int8):
        return encoder
    store = named.store(encoder.fingerprint)
    if store.fastest_of(processor()) is not None:
        return encoder
    seconds, speed = _expected(encoder, machine)
    if max(speed.text_ms, speed.image_ms) < WORTH_MS:
        return encoder
    off = "`--runtime torch` does without"
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        if seconds > AT_ONCE_SECONDS and frames_ahead() * speed.image_ms / 1000 < PAYS_AFTER * seconds:
            log = _start_in_background(named, store)
            say(
                f"measuring in the background which runtime is the fastest for this model (about {seconds:.0f} s, log "
                f"in {log}); it is used from the next start on; {off}"
            )
            return encoder
        say(f"measuring which runtime is the fastest for this model, once (about {seconds:.0f} s; {off})")
        found = find_fastest(named, lambda line: logger.info("%s", line))
    except (OSError, ValueError, RuntimeError) as error:  # a full disk, a folder of another user, a broken package
        say(f"the fastest runtime was not measured: {error}")
        return encoder
    if set(found.fastest.values()) == {"torch"}:
        return encoder
    return named.load(wish, precision)


def _expected(encoder: Encoder, machine: Machine) -> tuple[float, Speed]:
    """Seconds that a measurement will take, and how fast the encoder is now."""
    samples = generated_samples(1, preprocess=encoder.preprocess)
    encode_samples(encoder, samples)  # prepares shapes
    speed = encode_samples(encoder, samples).speed
    seconds = _ROUNDS * VIDEOS * (speed.text_ms + len(samples.frames[0]) * speed.image_ms) / 1000
    if machine.onnxruntime and machine.int8:
        weights = sum(parameter.nbytes for parameter in encoder.net.clip.parameters())
        seconds += _TRACE_SECONDS_PER_GB * weights / 1e9
    return seconds, speed


def _start_in_background(named: NamedModel, store: ExportStore) -> Path:
    """Run ``emcl export`` with low priority in a process of its own. Returns the path of its log."""
    log = store.folder / f"{store.fingerprint[:16]}-fastest.log"
    command = [sys.executable, "-c", "from model.cli import export_app; export_app()", *named.command()]
    if (nice := shutil.which("nice")) is not None:
        command = [nice, "-n", "10", *command]
    # A shell starts it and exits, so that it is not a child of this process. Reaping a child would take a thread, and
    # the workers of a service are forked from a process that may have only one.
    with log.open("wb") as output:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" </dev/null &', "sh", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return log
