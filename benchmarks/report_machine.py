"""Facts about the machine and the program that a report was made with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from benchmarks.report_rows import Machine

TOLD_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd")
"""Flags of the processor that the libraries choose their code by."""
TOLD_VERSIONS = (
    "torch",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "onnxruntime",
    "av",
    "open_clip_torch",
    "fastapi",
    "uvicorn",
)


def describe() -> Machine:
    """This machine now."""
    import torch

    processor, flags = _processor()
    return Machine(
        processor=processor,
        cores=len(os.sched_getaffinity(0)),
        instructions=tuple(flag for flag in TOLD_INSTRUCTIONS if flag in flags),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        versions={"python": platform.python_version(), **_versions()},
        commit=commit(),
        load_start=os.getloadavg(),
    )


def commit() -> str:
    """The commit that is checked out, with ``+`` if files were changed since; empty where that cannot be known."""
    folder = Path(__file__).parent
    try:
        name, changed = (
            subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
            for command in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name}+" if changed else name


def _processor() -> tuple[str, frozenset[str]]:
    """Model and flags, as the kernel names them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    name = model[1].strip() if model else platform.machine()
    return name, frozenset(flags[1].split()) if flags else frozenset()


def _versions() -> dict[str, str]:
    found = {}
    for name in TOLD_VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # one of several builds, or an extra that is not installed
    return found
