"""Settings: one name in three spellings, errors that name it, and nothing else that reads the environment."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings, default_text, load_settings, option_name, settings_table, variable_name

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_name(name), raising=False)


def test_an_option_wins_over_the_environment_and_that_over_the_default(monkeypatch):
    assert load_settings().max_batch == 32
    monkeypatch.setenv("EMCL_MAX_BATCH", "7")
    assert load_settings().max_batch == 7
    assert load_settings({"max_batch": None}).max_batch == 7
    assert load_settings({"max_batch": 9}).max_batch == 9


def test_sizes_take_units_and_lists_take_commas(monkeypatch):
    monkeypatch.setenv("EMCL_UPLOAD_MAX_BYTES", "2MiB")
    monkeypatch.setenv("EMCL_ALLOWED_HOSTS", "one.example, two.example")
    settings = load_settings()
    assert settings.upload_max_bytes == 2 * 1024**2
    assert settings.answered_hosts == ("one.example", "two.example")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"port": 70000}, "--port (EMCL_PORT)"),
        ({"upload_max_bytes": "many"}, "--upload-max-bytes (EMCL_UPLOAD_MAX_BYTES)"),
        ({"precision": "fp8"}, "--precision (EMCL_PRECISION)"),
        ({"nonsense": 1}, "--nonsense"),
        ({"max_queue": 3}, "--max-texts is 64"),
    ],
)
def test_a_wrong_setting_is_named_as_the_user_wrote_it(options, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        load_settings(options)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_decision_and_answers_only_for_itself(host):
    settings = load_settings({"host": host})
    assert settings.answered_hosts == ("localhost", "127.0.0.1", "[::1]")
    assert not settings.keys_required


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_public_address_requires_keys(host):
    settings = load_settings({"host": host})
    assert settings.keys_required
    assert settings.answered_hosts is None
    with pytest.raises(ValueError, match="keys cannot be off"):
        load_settings({"host": host, "require_keys": False})


def test_every_setting_is_described():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_module_prints_the_table():
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-m", "service.settings"], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == settings_table()
    assert all(option_name(name) in printed.stdout for name in Settings.model_fields)
    assert default_text("upload_max_bytes") == "100MiB"


def test_nothing_else_reads_the_environment():
    readers = [
        str(path.relative_to(ROOT))
        for package in ("model", "indexer", "service")
        for path in (ROOT / package).rglob("*.py")
        if re.search(
            r"os\.(environ(?!\.setdefault)|getenv)|from os import .*(environ|getenv)", path.read_text(encoding="utf-8")
        )
    ]
    # The language of the commands is needed before there are settings.
    assert set(readers) == {"service/settings.py", "service/language.py"}


def test_every_setting_is_read_somewhere():
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "service").rglob("*.py") if path.name != "settings.py"
    )
    own = (ROOT / "service" / "settings.py").read_text(encoding="utf-8")
    unread = [
        name
        for name in Settings.model_fields
        if not re.search(rf"settings\.{name}\b", text) and not re.search(rf"self\.{name}\b", own)
    ]
    assert unread == []


def test_home_is_expanded_in_paths_of_the_environment_and_of_options(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EMCL_KEYS_FILE", "~/keys.json")
    settings = load_settings({"store": Path("~/mine")})
    assert (settings.store, settings.keys_file) == (tmp_path / "mine", tmp_path / "keys.json")
