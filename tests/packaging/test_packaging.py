"""The locked requirements say the same as ``pyproject.toml``, with hashes, and name no place to fetch from."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "requirements").glob("*.txt"))
UNLOCKED = {"torch", "torchvision", "pip"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEV_EXTRAS = re.search(r"^DEV_EXTRAS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[
    1
].split()
WANTED = {
    "base.txt": PROJECT["dependencies"] + EXTRAS["cpu"] + EXTRAS["decord"],
    "gpu.txt": PROJECT["dependencies"] + EXTRAS["gpu"] + EXTRAS["decord"],
    "train.txt": EXTRAS["train"],
    "dev.txt": PROJECT["dependencies"] + [requirement for extra in DEV_EXTRAS for requirement in EXTRAS[extra]],
    "clip-retrieval.txt": ["clip-retrieval"],
}


def entries(path: Path) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a locked file with its hashes."""
    logical = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    parts = [line.split("--hash=") for line in logical if line.strip()]
    return [(Requirement(first), [value.strip() for value in hashes]) for first, *hashes in parts]


def test_every_file_is_checked_here() -> None:
    assert {path.name for path in FILES} == set(WANTED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_one_version_and_its_hashes(path: Path) -> None:
    for requirement, hashes in entries(path):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{requirement} is not one version"
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement
        assert canonicalize_name(requirement.name) not in UNLOCKED
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"://|^\s*--(?!hash)|^-", text, re.MULTILINE), "a locked file names no index and no option"


@pytest.mark.parametrize("name", WANTED)
def test_a_locked_version_is_in_the_range_of_pyproject(name: str) -> None:
    locked: dict[str, list[Requirement]] = {}
    for requirement, _ in entries(ROOT / "requirements" / name):
        locked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    for text in WANTED[name]:
        wanted = Requirement(text)
        if canonicalize_name(wanted.name) in UNLOCKED:
            continue
        found = locked.get(canonicalize_name(wanted.name), [])
        assert found, f"{wanted.name} is in pyproject.toml but not in requirements/{name}: run `make lock`"
        for requirement in found:
            version = str(requirement.specifier).removeprefix("==")
            assert wanted.specifier.contains(version, prereleases=True), f"{requirement}, expected {text}: `make lock`"


def test_one_version_of_a_package_in_all_files() -> None:
    versions: dict[tuple[str, str], set[str]] = {}
    for path in FILES:
        for requirement, _ in entries(path):
            key = (canonicalize_name(requirement.name), str(requirement.marker))
            versions.setdefault(key, set()).add(str(requirement.specifier))
    assert {key: found for key, found in versions.items() if len(found) > 1} == {}


def test_an_extra_is_locked_or_known_to_be_left_out() -> None:
    assert set(EXTRAS) - set(DEV_EXTRAS) == {"gpu", "s3", "gs"}


FILE = Path(__file__).parents[2] / "docker-compose.yml"
SERVICES = yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_a_bound_on_its_memory_and_no_port_beyond_this_machine(name: str) -> None:
    service = SERVICES[name]
    assert service["mem_limit"]
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_redis_is_reached_from_inside_with_a_password_only(tmp_path: Path) -> None:
    redis = SERVICES["redis"]
    assert "ports" not in redis
    assert redis["networks"] == ["backend"]
    assert "requirepass $$REDISCLI_AUTH" in redis["command"][-1]
    for name, service in SERVICES.items():
        if "EMCL_REDIS_URL" in (service.get("environment") or {}):
            assert "redis://:${REDIS_PASSWORD:?" in service["environment"]["EMCL_REDIS_URL"], name


@pytest.mark.parametrize(("password", "starts"), [("", False), ("long and secret", True)])
def test_grafana_does_not_start_without_a_password(password: str, starts: bool, tmp_path: Path) -> None:
    *shell, script = SERVICES["grafana"]["entrypoint"]
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "run.sh").chmod(0o755)
    script = script.replace("$$", "$").replace("/run.sh", str(tmp_path / "run.sh"))
    environment = {"PATH": "/usr/bin:/bin", "GF_SECURITY_ADMIN_PASSWORD": password}
    done = subprocess.run([*shell, script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is starts
    assert ("started" in done.stdout) is starts
    assert ("GRAFANA_PASSWORD is not set" in done.stderr) is not starts


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_asks_for_the_password_of_redis() -> None:
    def config(**environment: str) -> subprocess.CompletedProcess[str]:
        command = ["docker-compose", "--file", str(FILE), "--env-file", "/dev/null", "config", "-q"]
        environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", **environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert config(REDIS_PASSWORD="abc").returncode == 0
    assert "REDIS_PASSWORD" in config().stderr
