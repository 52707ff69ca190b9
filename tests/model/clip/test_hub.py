"""Pretrained weights through open_clip's real download, against a local stand-in for the Hugging Face hub.

The stand-in serves a full-size ViT-B/32 with random weights. Clients run in their own interpreter, because the hub's
address and cache are read when huggingface_hub is imported.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.clip.compat import import_open_clip
from model.clip.weights import tensor_digest

pytestmark = pytest.mark.slow

REPOSITORY = "timm/vit_base_patch32_clip_224.openai"
FILE = "open_clip_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# What a user's process does: load the default model and say what arrived.
CLIENT = """
import json
from model.clip.towers import build_clip
from model.config import ClipConfig
from model.clip.weights import tensor_digest

towers = build_clip(ClipConfig(architecture="ViT-B-32", pretrained="openai"))
print(json.dumps({
    "digests": {name: tensor_digest(tensor).hex() for name, tensor in towers.model.state_dict().items()},
    "dtypes": sorted({str(tensor.dtype) for tensor in towers.model.state_dict().values()}),
    "activations": sorted({type(part).__name__ for part in towers.modules() if "GELU" in type(part).__name__}),
    "sizes": [towers.embed_dim, towers.preprocess.height, towers.context_length],
}))
"""


@dataclass
class Hub:
    """A running stand-in: its address, the file that it serves or None, and the requests it has seen."""

    address: str
    file: Path | None
    requests: list[tuple[str, str]] = field(default_factory=list)


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            file = self.answer()
            if file is not None:
                with file.open("rb") as source:
                    while chunk := source.read(1 << 20):
                        self.wfile.write(chunk)

        def answer(self) -> Path | None:
            hub.requests.append((self.command, self.path))
            known = hub.file is not None and self.path == f"/{REPOSITORY}/resolve/main/{FILE}"
            self.send_response(200 if known else 404)
            if known:
                self.send_header("ETag", '"0f1e2d3c4b5a69788796a5b4c3d2e1f0"')
                self.send_header("X-Repo-Commit", COMMIT)
            else:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(hub.file.stat().st_size) if known else "0")
            self.end_headers()
            return hub.file if known else None

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(address="", file=None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dead_address() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def weights(tmp_path) -> Iterator[Path]:
    """The file that the hub holds for ViT-B-32 `openai`: open_clip's names, all 151 million weights, in fp16."""
    open_clip = import_open_clip()
    with torch.device("meta"):
        shapes = {
            name: value.shape
            for name, value in open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).state_dict().items()
        }
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / FILE
    save_file({name: 0.05 * torch.rand(shape, generator=generator).half() for name, shape in shapes.items()}, path)
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def cache(tmp_path) -> Iterator[Path]:
    """An empty Hugging Face cache, removed afterwards: it may come to hold 300 MB."""
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def start_client(address: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    variables = {**clean, "HF_ENDPOINT": address, "HF_HOME": str(cache), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", CLIENT], env=variables, capture_output=True, text=True, timeout=280
    )


@pytest.mark.timeout(600)  # two processes load 151 million weights
def test_full_size_weights_arrive_bit_for_bit_and_load_again_without_the_hub(hub, weights, cache, dead_address):
    hub.file = weights
    expected = {name: tensor_digest(tensor).hex() for name, tensor in load_file(weights).items()}
    for address in (hub.address, dead_address):
        result = start_client(address, cache)
        assert result.returncode == 0, result.stderr
        arrived = json.loads(result.stdout)
        assert arrived["digests"] == expected
        assert arrived["dtypes"] == ["torch.float32"]
        assert arrived["activations"] == ["QuickGELU"], "OpenAI's weights were trained with quick-gelu"
        assert arrived["sizes"] == [512, 224, 77]
        weights.unlink(missing_ok=True)
    downloads = [path for method, path in hub.requests if method == "GET" and REPOSITORY in path]
    assert downloads == [f"/{REPOSITORY}/resolve/main/{FILE}"]


def check_message(result: subprocess.CompletedProcess[str], address: str) -> None:
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(
        "model.clip.pretrained.DownloadError: the weights 'openai' of ViT-B-32 are not in the local cache"
    )
    assert f"{address}/{REPOSITORY}" in message
    assert "set HF_HOME" in message
    assert "--model ViT-B-32-quickgelu --pretrained /path/to/weights.safetensors" in message


def test_without_network_the_error_comes_at_once_and_says_what_to_do(cache, dead_address):
    result = start_client(dead_address, cache)
    check_message(result, dead_address)
    assert "Connection refused" in result.stderr
    assert "Retrying" not in result.stderr, "huggingface_hub alone retries for most of a minute"


def test_a_hub_that_does_not_have_the_file_is_named(hub, cache):
    check_message(start_client(hub.address, cache), hub.address)


def test_offline_mode_without_the_file_is_explained(hub, cache):
    result = start_client(hub.address, cache, HF_HUB_OFFLINE="1")
    check_message(result, hub.address)
    assert all(REPOSITORY not in path for _, path in hub.requests)


def test_a_damaged_file_is_named(hub, cache, tmp_path):
    hub.file = tmp_path / FILE
    hub.file.write_bytes(b"\0" * 4096)
    result = start_client(hub.address, cache)
    assert result.returncode == 1
    assert "ClipError: open_clip could not build ViT-B-32 with weights 'openai'" in result.stderr
    assert f"delete it from {cache}" in result.stderr
