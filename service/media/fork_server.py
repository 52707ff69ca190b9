"""A process that has imported the decoders, and forks a child of its own for each file: milliseconds, not 0.4 s.

In: the name of a worker, its job as JSON, and the three descriptors that become the child's standard streams. Out: the
exit code of the child, negative for the signal that ended it. ``multiprocessing``'s fork server would not do: it passes
the whole environment on, imports the main module in every child, and gives each child a pipe to its resource tracker.

The server has one thread, an empty environment and no descriptor of the service but its socket; it reads no file.
A child starts with its three streams and nothing else open, in a session of its own; the worker sets the limits before
it reads. Closing the socket of a job kills its child, and closing the server's kills all of them: a service that is
killed leaves nothing running. All children share the layout of their memory, as those of any fork server do.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

Worker = Callable[[Any], int | None]
"""Does a job with standard input, output and error; returns the exit code."""

SERVER = ("-m", "service.media.fork_server")
_MESSAGE_BYTES = 65536  # bound of a job and of an answer
_MAX_OPEN_FILES = 1024  # of the server: four for each child that starts, one for each that runs
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_END_SECONDS = 10


class ForkServerLostError(RuntimeError):
    """The fork server ended while a child ran; the child was killed with it."""


_LOST = "the process that starts decoders ended unexpectedly; see its message in the log"


class Child:
    """A child that runs. Use it as a context manager: what still runs at the end is killed."""

    def __init__(self, status: socket.socket) -> None:
        self._status = status

    def kill(self) -> None:
        """Kill the child with SIGKILL; has no effect on one that has ended. May be called from any thread."""
        with suppress(OSError):  # the server has ended, or the child and this object with it
            self._status.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        """The exit code, once the child has ended; negative for the signal that it died of.

        Raises ``ForkServerLostError`` if the server died, and ``RuntimeError`` if it could not fork.
        """
        try:
            answer = self._status.recv(_MESSAGE_BYTES)
        except ConnectionError:
            answer = b""
        if not answer:
            raise ForkServerLostError(_LOST)
        status: dict[str, Any] = json.loads(answer)
        if "error" in status:
            raise RuntimeError(f"no process could be started to decode in: {status['error']}")
        return int(status["code"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._status.close()


class ForkServer:
    """Starts children through a server process, which it starts with the first of them, and again if it died.

    May be used from several threads. The server ends with ``close``, with this object, or with this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Any] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the server, if it was started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the server now, so that the first child need not wait until it has imported the decoders."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._launch()

    def child(self, worker: str, job: Mapping[str, Any], *, stdin: int, stdout: int, stderr: int) -> Child:
        """Start a child that does ``job`` with these descriptors; the caller closes its own copies."""
        message = json.dumps({"worker": worker, "job": job}).encode()
        if len(message) > _MESSAGE_BYTES:
            raise ValueError(f"a job must have at most {_MESSAGE_BYTES} bytes as JSON, got {len(message)}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._send(message, [theirs.fileno(), stdin, stdout, stderr])
        except BaseException:
            ours.close()
            raise
        return Child(ours)

    def close(self) -> None:
        """End the server and all its children. A child that is started later starts it again."""
        with self._lock:
            if self._end is not None:
                self._end()
            self._requests = self._process = self._end = None

    def _send(self, message: bytes, descriptors: list[int]) -> None:
        with self._lock:
            if self._requests is not None:
                try:
                    socket.send_fds(self._requests, [message], descriptors)
                    return
                except ConnectionError:
                    pass  # it died since
            try:
                socket.send_fds(self._launch(), [message], descriptors)
            except ConnectionError as error:
                raise ForkServerLostError(_LOST) from error

    def _launch(self) -> socket.socket:
        if self._end is not None:
            self._end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *SERVER],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._requests, self._process = ours, process
        self._end = weakref.finalize(self, _end, ours, process)
        return ours


def _end(requests: socket.socket, process: subprocess.Popen[bytes]) -> None:
    requests.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# The server's side.


@dataclass(eq=False)
class _Server:
    requests: socket.socket
    workers: Mapping[str, Worker]
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    running: dict[int, socket.socket] = field(default_factory=dict)  # by process id, until the child is reaped

    def run(self) -> None:
        """Serve until the other side closes."""
        awake, wake = socket.socketpair()
        awake.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(self.requests, selectors.EVENT_READ)
        self.selector.register(awake, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is awake:
                    awake.recv(4096)
                    self._reap()
                elif key.fileobj is not self.requests:
                    self._kill(key.data)
                elif not self._start_next():
                    return

    def _start_next(self) -> bool:
        """Start the child that was asked for; false when nobody can ask any more."""
        message, descriptors, _, _ = socket.recv_fds(self.requests, _MESSAGE_BYTES, 4)
        if not message:
            for pid in self.running:
                os.kill(pid, signal.SIGKILL)
            return False
        if len(descriptors) == 4:
            status = socket.socket(fileno=descriptors.pop(0))
            try:
                server = os.getpid()
                pid = os.fork()
            except OSError as error:
                status.send(json.dumps({"error": str(error)}).encode())
                status.close()
            else:
                if pid == 0:
                    _become_child(self.workers, message, descriptors, server)
                self.running[pid] = status
                self.selector.register(status, selectors.EVENT_READ, data=pid)
        for number in descriptors:
            os.close(number)
        return True

    def _kill(self, pid: int) -> None:
        """The other side has closed the socket of this child, or its sending half; nothing else is ever sent."""
        status = self.running.get(pid)
        if status is not None:  # not reaped, so the number is still its own
            self.selector.unregister(status)
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while self.running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with self.running.pop(pid) as answer:
                with suppress(KeyError):  # where it was killed
                    self.selector.unregister(answer)
                with suppress(OSError):  # nobody waits for it any more
                    answer.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def _become_child(workers: Mapping[str, Worker], message: bytes, descriptors: list[int], server: int) -> None:
    """Do one job and exit; never returns."""
    code: int | None = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)  # the server died before it could be said
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, _MAX_OPEN_FILES)
        asked = json.loads(message)
        code = workers[asked["worker"]](asked["job"])
    except BaseException:  # as at the end of any Python process; the other side reads it as the complaint
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code or 0)


def serve(workers: Mapping[str, Worker]) -> None:
    """Fork children that do jobs with ``workers``, as asked through standard input, a socket, until it is closed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        raise RuntimeError(f"a fork server must have one thread, this one has {threads}: a library started some")
    gc.freeze()  # pages that the collector does not touch stay shared
    with socket.socket(fileno=os.dup(0)) as requests:
        _Server(requests, workers).run()


def main() -> None:
    """Import what the workers need, then serve."""
    import av  # noqa: F401
    from PIL import Image

    from service.media import preview_worker, sandbox_worker

    Image.preinit()
    serve({"decode": sandbox_worker.main, "preview": preview_worker.main})


if __name__ == "__main__":
    main()
