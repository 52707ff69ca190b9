"""``docker-compose.yml``: nothing reachable that need not be, no default password, a bound on every container."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

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
