"""Limits that a process puts on itself before it reads a hostile file. Imports the standard library alone."""

from __future__ import annotations

import os
import resource

_MAX_OPEN_FILES = 64


def limit_process(*, cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Limit processor time, address space and the size of written files; no core dumps, few open files.

    At the soft limit of processor time the kernel sends SIGXCPU; the hard limit, a second later, is final.
    """
    os.chdir("/")
    os.umask(0o777)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    for what, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
