"""Start a job's command so that it cannot outlive its worker. Run as a script; imports the standard library alone.

    launch.py PIPE NICE MEMORY COMMAND…

It is the leader of its own process group. A small watcher forked off into that group reads from PIPE, whose other end
only the worker has: when the worker ends, even by ``kill -9``, or closes it after the job, the kernel ends the read
and the watcher kills the whole group, data workers and all. Then the command replaces this process.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess


def main() -> None:
    """Limit this process, start the watcher, become the command."""
    pipe, nice, memory = (int(argument) for argument in sys.argv[1:4])
    if os.fork() == 0:
        watch(pipe)
    os.close(pipe)
    # A worker in the background of a shell ignores SIGINT, and the command would inherit that but must react to it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.nice(nice)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    os.execv(sys.argv[4], sys.argv[4:])  # noqa: S606 - a list, from our worker


def watch(pipe: int) -> None:
    """Wait until the other end of the pipe is closed, then kill the group, this process included."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def start(
    command: list[str], *, nice: int, memory_bytes: int = 0, pass_fds: tuple[int, ...] = (), **options: Any
) -> tuple[subprocess.Popen[Any], int]:
    """Start ``command`` through this script; the process, and the end of the pipe to close after it has ended.

    ``options`` are those of ``subprocess.Popen``.
    """
    import subprocess

    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(theirs), str(nice), str(memory_bytes), *command],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(theirs, *pass_fds),
            **options,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, ours


if __name__ == "__main__":
    main()
