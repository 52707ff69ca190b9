"""Which runtime computes the towers: the choice, from what was asked, what the machine has and what was exported.

In: wishes (``auto``, or a name), facts about the machine, the exports beside the checkpoint, and what was measured on
this processor. Out: a ``RuntimeChoice`` with its reason in words, or an error with the next step. Nothing here computes
or loads anything.

What approximates (``onnx-int8``, bf16) is chosen by ``auto`` only where the guard of ``emcl export`` has passed it for
this very checkpoint, so that ``auto`` never changes a ranking without a measurement. See docs/runtimes.md.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch

from model.clip.towers import Precision

Runtime: TypeAlias = Literal["torch", "torch-compiled", "onnx", "onnx-int8"]
RuntimeWish: TypeAlias = Literal["auto", "torch", "torch-compiled", "onnx", "onnx-int8"]
PrecisionWish: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
ExportKind: TypeAlias = Literal["onnx", "onnx-int8", "torch-bf16"]
"""What ``emcl export`` makes: two exports, and the guard's judgement of bf16, which needs no files."""
Tower: TypeAlias = Literal["text", "image"]
TowerKind: TypeAlias = Literal["torch", "torch-bf16", "onnx", "onnx-int8"]
"""What can compute a tower on a CPU, and is measured for ``auto``; ``torch`` is fp32."""

EXTRA = "pip install 'emcl-search[onnx]'"


class RuntimeUnavailableError(ValueError):
    """A runtime was asked for that cannot run here; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides between runtimes. ``bf16`` and ``int8``: the processor multiplies such matrices in hardware."""

    cuda: bool
    onnxruntime: bool
    bf16: bool
    int8: bool


@dataclass(frozen=True, kw_only=True)
class TowerChoice:
    """What computes one tower."""

    runtime: Runtime
    precision: Literal["fp32", "bf16", "fp16", "int8"]

    @property
    def label(self) -> str:
        """Short name with the precision, such as ``torch bf16``."""
        return f"{self.runtime.removesuffix('-int8')} {self.precision}"


TOWER_CHOICES: Mapping[TowerKind, TowerChoice] = {
    "torch": TowerChoice(runtime="torch", precision="fp32"),
    "torch-bf16": TowerChoice(runtime="torch", precision="bf16"),
    "onnx": TowerChoice(runtime="onnx", precision="fp32"),
    "onnx-int8": TowerChoice(runtime="onnx-int8", precision="int8"),
}


@dataclass(frozen=True, kw_only=True)
class RuntimeChoice:
    """What computes the towers. ``reason``: one readable clause.

    Towers that PyTorch computes have one precision, because ``ClipTowers`` converts both.
    """

    text: TowerChoice
    image: TowerChoice
    reason: str

    @classmethod
    def both(
        cls, runtime: Runtime, precision: Literal["fp32", "bf16", "fp16", "int8"], *, reason: str
    ) -> RuntimeChoice:
        """One runtime for both towers."""
        tower = TowerChoice(runtime=runtime, precision=precision)
        return cls(text=tower, image=tower, reason=reason)

    @property
    def label(self) -> str:
        """``torch bf16``, or ``onnx int8 for texts, torch bf16 for frames``: equal labels mean equal arithmetic."""
        if self.text == self.image:
            return self.text.label
        return f"{self.text.label} for texts, {self.image.label} for frames"

    @property
    def towers(self) -> Mapping[Tower, TowerChoice]:
        """The choice by tower."""
        return {"text": self.text, "image": self.image}

    @property
    def torch_precision(self) -> Precision:
        """What the weights of PyTorch are converted to; those of an export come from fp32."""
        for tower in (self.text, self.image):
            if tower.runtime in ("torch", "torch-compiled") and tower.precision != "int8":
                return tower.precision
        return "fp32"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """An export as the choice sees it. ``problem`` is None where it may be used, else what is wrong, with what to do.

    ``exists`` is False without an export, which ``auto`` does not report.
    """

    exists: bool
    problem: str | None = None


Offers: TypeAlias = Callable[[ExportKind], Offer]


def machine_of(device: torch.device) -> Machine:
    """Look at this machine, for a model on ``device``.

    bf16 on a CPU means AVX512-BF16 or AMX, as PyTorch sees them: without, PyTorch computes bf16 in a roundabout
    way that is slower than fp32. int8 means VNNI (or AMX): without, onnxruntime's products of bytes saturate.
    """
    cuda = device.type == "cuda"
    amx = _cpu_has("_is_amx_tile_supported")
    return Machine(
        cuda=cuda,
        onnxruntime=has_onnxruntime(),
        bf16=torch.cuda.is_bf16_supported() if cuda else amx or _cpu_has("_is_avx512_bf16_supported"),
        int8=amx or _cpu_has("_is_vnni_supported"),
    )


def processor() -> str:
    """What measured speeds belong to: the processor, and the packages that compute on it.

    Another of these may rank the runtimes otherwise, so that what was measured with it does not count.
    """
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    sets = [name for name in ("amx_tile", "avx512_bf16", "vnni") if _cpu_has(f"_is_{name}_supported")]
    packages = [f"torch {version('torch')}"]
    if has_onnxruntime():
        packages.append(f"onnxruntime {version('onnxruntime')}")
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join([name or platform.machine(), capability, *sets, *packages])


def _cpu_has(question: str) -> bool:
    """Ask PyTorch about an instruction set; a question that another release has not counts as no."""
    ask = getattr(torch.cpu, question, None)
    return bool(ask()) if ask is not None else False


def choose(
    wish: RuntimeWish,
    precision: PrecisionWish,
    machine: Machine,
    offers: Offers,
    fastest: Mapping[Tower, TowerKind] | None = None,
) -> RuntimeChoice:
    """Choose a runtime and its precision. ``fastest``: what was found for each tower on this processor, if anything.

    Raises ``RuntimeUnavailableError`` for a runtime by name that cannot run here, and for wishes that contradict each
    other.
    """
    if wish not in get_args(RuntimeWish):
        raise RuntimeUnavailableError(f"unknown runtime {wish!r}; expected one of {', '.join(get_args(RuntimeWish))}")
    if precision not in get_args(PrecisionWish):
        raise RuntimeUnavailableError(f"unknown precision {precision!r}; expected {', '.join(get_args(PrecisionWish))}")
    if wish == "auto":
        return _automatic(precision, machine, offers, fastest)
    if wish in ("torch", "torch-compiled"):
        named: Literal["fp32", "bf16", "fp16"] = "fp32" if precision == "auto" else precision
        return RuntimeChoice.both(wish, named, reason="asked for")
    kind: Literal["onnx", "onnx-int8"] = "onnx" if wish == "onnx" else "onnx-int8"
    _check_onnx(kind, precision, machine, offers)
    return RuntimeChoice.both(kind, "fp32" if kind == "onnx" else "int8", reason="asked for")


def _automatic(
    precision: PrecisionWish, machine: Machine, offers: Offers, fastest: Mapping[Tower, TowerKind] | None
) -> RuntimeChoice:
    if precision in ("bf16", "fp16"):
        return RuntimeChoice.both("torch", precision, reason=f"precision {precision} was asked for")
    if machine.cuda:
        if precision == "auto" and machine.bf16 and _usable("torch-bf16", offers):
            return RuntimeChoice.both("torch", "bf16", reason="on CUDA, and the guard passed bf16")
        return RuntimeChoice.both("torch", "fp32", reason="on CUDA" + _missed(machine, offers))
    if fastest is not None and precision == "auto" and all(_can(kind, machine, offers) for kind in fastest.values()):
        return RuntimeChoice(
            text=TOWER_CHOICES[fastest["text"]],
            image=TOWER_CHOICES[fastest["image"]],
            reason="the fastest measured on this processor that the guard passed",
        )
    if precision == "auto" and machine.int8 and machine.onnxruntime and _usable("onnx-int8", offers):
        return RuntimeChoice.both("onnx-int8", "int8", reason="exported, and the guard passed it")
    if precision == "auto" and machine.bf16 and _usable("torch-bf16", offers):
        return RuntimeChoice.both("torch", "bf16", reason="the CPU has it, and the guard passed bf16")
    if machine.onnxruntime and _usable("onnx", offers):
        return RuntimeChoice.both("onnx", "fp32", reason="exported, and the guard passed it")
    return RuntimeChoice.both("torch", "fp32", reason=_why_plain(machine, offers))


def _can(kind: TowerKind, machine: Machine, offers: Offers) -> bool:
    if kind == "torch":
        return True
    runs = machine.bf16 if kind == "torch-bf16" else machine.onnxruntime and (kind == "onnx" or machine.int8)
    return runs and _usable(kind, offers)


def _usable(kind: ExportKind, offers: Offers) -> bool:
    offer = offers(kind)
    return offer.exists and offer.problem is None


def _why_plain(machine: Machine, offers: Offers) -> str:
    missed = _missed(machine, offers)
    return "nothing faster is exported for this model" + (missed or "; `emcl export` looks for something faster")


def _missed(machine: Machine, offers: Offers) -> str:
    """Name the existing exports that could not be chosen, and why."""
    kinds: tuple[ExportKind, ...] = ("torch-bf16",) if machine.cuda else ("onnx-int8", "torch-bf16", "onnx")
    found = {kind: offers(kind) for kind in kinds}
    reasons = [f"{kind}: {_obstacle(kind, offer, machine)}" for kind, offer in found.items() if offer.exists]
    return f" that can run here ({'; '.join(reasons)})" if reasons else ""


def _obstacle(kind: ExportKind, offer: Offer, machine: Machine) -> str:
    if offer.problem is not None:
        return offer.problem
    if kind.startswith("onnx") and not machine.onnxruntime:
        return f"onnxruntime is not installed ({EXTRA})"
    if (kind == "onnx-int8" and not machine.int8) or (kind == "torch-bf16" and not machine.bf16):
        return "the processor has no instructions for it"
    return "another precision was asked for"


def _check_onnx(wish: Literal["onnx", "onnx-int8"], precision: PrecisionWish, machine: Machine, offers: Offers) -> None:
    own = "fp32" if wish == "onnx" else "int8"
    if precision not in ("auto", own):
        raise RuntimeUnavailableError(
            f"runtime {wish} computes in {own}, but precision {precision} was asked for; leave out --precision "
            f"(EMCL_PRECISION), or take --runtime torch --precision {precision}"
        )
    if machine.cuda:
        raise RuntimeUnavailableError(f"runtime {wish} runs on the CPU; add --device cpu, or take --runtime torch")
    if not machine.onnxruntime:
        raise missing_onnxruntime(f"runtime {wish}")
    if wish == "onnx-int8" and not machine.int8:
        raise RuntimeUnavailableError(
            "runtime onnx-int8 needs a processor with VNNI or AMX: without, its products of bytes saturate and "
            "features are wrong; take --runtime onnx or torch"
        )
    offer = offers(wish)
    if not offer.exists or offer.problem is not None:
        raise RuntimeUnavailableError(f"runtime {wish} cannot be used: {offer.problem or 'nothing was exported'}")


def has_onnxruntime() -> bool:
    """Whether the extra is installed."""
    return find_spec("onnxruntime") is not None


def missing_onnxruntime(who: str) -> RuntimeUnavailableError:
    """The error to raise where ``who`` needs the extra and it is not installed."""
    return RuntimeUnavailableError(f"{who} needs the package onnxruntime, which is not installed: {EXTRA}")
