"""Checks of the machine and the installation: versions, GPU, disk, limits, keys, Redis. They need no index."""

from __future__ import annotations

import os
import re
import resource
import shutil
import stat
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from service.doctor.checks import Check, Context, Examination, ok, problem, warning

OLDEST_PYTHON = (3, 11)
FEWEST_OPEN_FILES = 1024
GIBIBYTE = 1024**3
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "av", "numpy", "fastapi")


def check_python(context: Context) -> Check:
    """The interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return problem(f"Python {found}", f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    return ok(f"Python {found}")


def check_packages(context: Context) -> Check:
    """The packages of the service are installed, and torchvision was built for this torch."""
    missing = [name for name in _PACKAGES if version_of(name) is None]
    if missing:
        return problem(f"{', '.join(missing)} not installed", "install the project again: pip install '.[cpu]'")
    found = ", ".join(f"{name} {version_of(name)}" for name in _PACKAGES)
    wanted = torch_wanted_by_torchvision()
    if wanted is not None and wanted != _plain(version_of("torch")):
        return problem(
            f"torchvision {version_of('torchvision')} was built for torch {wanted}, but torch {version_of('torch')} is "
            "installed",
            "install both together, from one index: pip install --upgrade torch torchvision",
        )
    return ok(found)


def check_torchvision(context: Context) -> Check:
    """The compiled operators of torchvision load."""
    from model.clip.compat import import_open_clip

    try:
        __import__("torchvision")
    except RuntimeError as error:
        import_open_clip()  # raises what it cannot repair
        return warning(
            f"torchvision's compiled part does not match torch ({str(error).splitlines()[0]}); the model works "
            "without it",
            "install torch and torchvision from one index",
        )
    return ok("torchvision imports with its compiled part")


def check_faiss(context: Context) -> Check:
    """One FAISS, and which."""
    builds = {name: found for name in ("faiss-cpu", "faiss-gpu") if (found := version_of(name))}
    if len(builds) > 1:
        return problem(
            "faiss-cpu and faiss-gpu are both installed and overwrite each other's files",
            "pip uninstall faiss-cpu faiss-gpu, then install one: pip install '.[cpu]' or '.[gpu]'",
        )
    if not builds:
        return problem("FAISS is not installed", "pip install '.[cpu]', or '.[gpu]' on a machine with CUDA")
    import faiss

    ((name, found),) = builds.items()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return ok(f"{name} {found}, compiled for {faiss.get_compile_options().strip() or 'any processor'}, {gpus} GPUs")


def check_gpu(context: Context) -> Check:
    """Whether the device of the settings is there."""
    import torch

    wanted = context.settings.device
    if not torch.cuda.is_available():
        if wanted.startswith("cuda"):
            return problem(
                f"--device is {wanted}, but PyTorch sees no GPU (built for CUDA {torch.version.cuda or 'none'})",
                "use --device auto, or install a driver and a CUDA build of PyTorch",
            )
        return ok("no GPU; everything runs on the processor")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if wanted == "cpu":
        return warning(f"{', '.join(names)} not used: --device is cpu", "use --device auto")
    return ok(f"{', '.join(names)}, CUDA {torch.version.cuda}")


def check_disk(context: Context) -> Check:
    """Free space and permissions where the service writes."""
    settings = context.settings
    places = {
        "store": settings.store,
        "jobs": settings.jobs_folder,
        "uploads": settings.upload_folder or Path(tempfile.gettempdir()),
    }
    needed = {"uploads": settings.upload_slots * int(settings.upload_max_bytes)}
    found, short = [], []
    for name, path in places.items():
        folder = _existing(path)
        if not os.access(folder, os.W_OK):
            return problem(f"{folder} ({name}) cannot be written", "give the service's user the right to, or move it")
        free = shutil.disk_usage(folder).free
        found.append(f"{name} {free / GIBIBYTE:.1f} GiB")
        if free < max(GIBIBYTE, needed.get(name, 0)):
            short.append(name)
    detail = f"free: {', '.join(found)}"
    if short:
        return warning(detail, f"make room for {', '.join(short)}; uploads need slots x largest upload")
    return ok(detail)


def check_open_files(context: Context) -> Check:
    """The limit on open files: each connection, shard and upload takes some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FEWEST_OPEN_FILES:
        return warning(f"at most {soft} open files (hard limit {hard})", "raise it: ulimit -n 65536")
    return ok(f"at most {soft} open files")


def check_threads(context: Context) -> Check:
    """Threads that compute at the same time, against the cores there are."""
    settings, cores = context.settings, len(os.sched_getaffinity(0))
    if max(settings.threads, settings.faiss_threads) > cores:
        return warning(
            f"--threads {settings.threads}, --faiss-threads {settings.faiss_threads}, but {cores} cores",
            f"use at most {cores} of each",
        )
    if cores >= 4 and settings.threads == 1:
        return warning(f"--threads 1 on {cores} cores", f"try --threads {cores // 2} and measure")
    return ok(f"--threads {settings.threads}, --faiss-threads {settings.faiss_threads}, {cores} cores")


def check_keys(context: Context) -> Check:
    """Other users cannot read the keys file, and it holds a key if one is required."""
    from service.access.gate import open_keys

    settings = context.settings
    if not settings.keys_file.exists() and not settings.keys_required:
        return ok(f"no keys, and none needed on {settings.host}")
    open_keys(settings)  # raises with what to do where keys are needed and there is none
    mode = stat.S_IMODE(settings.keys_file.stat().st_mode)
    if mode & 0o077:
        return problem(
            f"{settings.keys_file} can be read or changed by others (mode {mode:o})",
            f"chmod 600 {settings.keys_file}",
        )
    return ok(f"{settings.keys_file}, mode {mode:o}, keys {'required' if settings.keys_required else 'not required'}")


def check_redis(context: Context) -> Check:
    """Redis answers, and its eviction policy is right."""
    settings = context.settings
    if settings.redis_url is None:
        return ok("not configured; caches, rates and jobs stay in this process")
    from redis import Redis
    from redis.exceptions import RedisError

    from service.redis_link import build_redis_link

    where = build_redis_link(settings).where
    client = Redis.from_url(settings.redis_url, socket_timeout=2, socket_connect_timeout=2)
    try:
        memory, server = client.info("memory"), client.info("server")
    except (RedisError, OSError) as error:
        return problem(
            f"Redis at {where} does not answer ({type(error).__name__})",
            "start it, or correct --redis-url (EMCL_REDIS_URL); search works without it",
        )
    finally:
        client.close()
    limit, policy = int(memory["maxmemory"]), memory["maxmemory_policy"]
    detail = f"Redis {server['redis_version']} at {where}, {limit / GIBIBYTE:.2f} GiB, {policy}"
    if limit == 0:
        return warning(f"{detail}: its memory has no limit", "set maxmemory, with maxmemory-policy volatile-lru")
    if policy == "noeviction":
        return warning(f"{detail}: it refuses to cache when it is full", "set maxmemory-policy volatile-lru")
    return ok(detail)


EXAMINATIONS: tuple[tuple[str, Examination], ...] = (
    ("python", check_python),
    ("packages", check_packages),
    ("torchvision", check_torchvision),
    ("faiss", check_faiss),
    ("gpu", check_gpu),
    ("disk", check_disk),
    ("open files", check_open_files),
    ("threads", check_threads),
    ("keys", check_keys),
    ("redis", check_redis),
)


def version_of(package: str) -> str | None:
    """The installed version of a package, ``None`` without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plain(found: str | None) -> str | None:
    """``2.13.0+cpu`` is ``2.13.0``."""
    return None if found is None else found.split("+")[0]


def torch_wanted_by_torchvision() -> str | None:
    """The one torch that this torchvision says it was built for, if it says so."""
    for requirement in requires("torchvision") or []:
        if match := re.match(r"torch\s*\(?==\s*([0-9.]+)", requirement):
            return match[1]
    return None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
