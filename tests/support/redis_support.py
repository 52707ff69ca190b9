"""A real redis-server for tests, started on a free port in a folder of its own, that can be made slow, full or gone."""

import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest

PASSWORD = "the-redis-password"


class RedisServer:
    """One redis-server. ``client`` is a synchronous client for looking inside."""

    def __init__(self, folder, *options):
        self.folder = folder
        self.options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self.process = None
        self.start()

    def start(self):
        """Start it (again), and wait until it answers."""
        self.process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD),
                *("--save", "", "--appendonly", "no", "--dir", str(self.folder), *self.options),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(600):
            try:
                with self.client() as client:
                    client.ping()
                return
            except Exception:
                assert self.process.poll() is None, "redis-server did not start"
                time.sleep(0.05)
        raise AssertionError("redis-server does not answer")

    @contextmanager
    def client(self):
        """A client of its own, with patience."""
        import redis

        made = redis.Redis(port=self.port, password=PASSWORD, socket_timeout=30)
        try:
            yield made
        finally:
            made.close()

    def kill(self):
        """End it without a word; a second time does nothing."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(30)

    @contextmanager
    def held(self):
        """Alive and accepting connections, but answering nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def keys(self, pattern="*"):
        """The keys that it holds."""
        with self.client() as client:
            return sorted(client.keys(pattern))


@contextmanager
def running_redis(folder, *options):
    """A server for as long as the context lasts; the test is skipped where redis-server is not installed."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian package redis-server)")
    server = RedisServer(folder, *options)
    try:
        yield server
    finally:
        server.kill()
