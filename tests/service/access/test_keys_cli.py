"""API keys in their file: made, hashed, listed, revoked, expired, shared by processes, and noticed by a reader."""

import json
import multiprocessing
import os
import re
import stat

import pytest
from service_support import emcl_command

from service.access import keys as keys_module
from service.access.keys import SCOPES, KeyStore, includes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys" / "keys.json"


@pytest.fixture
def run(monkeypatch, capsys, path):
    """Run ``emcl keys …`` on the file; returns exit code, output and errors."""
    made = emcl_command(monkeypatch, capsys, "keys")
    monkeypatch.setenv("EMCL_KEYS_FILE", str(path))
    return made


def test_a_key_is_shown_once_and_kept_hashed(run, path):
    code, out, err = run("create", "--name", "page", "--scope", "write", "--expires", "30")
    assert code == 0, err
    token = out.strip()
    assert re.fullmatch(r"emcl_[0-9a-f]{12}_[0-9a-f]{64}", token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_text()
    assert token not in content
    assert token.rsplit("_", 1)[1] not in content
    assert KeyStore(path).check(token).scope == "write"
    code, out, _ = run("list")
    assert token.split("_")[1] in out
    assert "page" in out
    assert json.loads(content)["keys"][0]["digest"] not in out
    entry = json.loads(run("list", "--json")[1])[0]
    assert (entry["name"], entry["scope"], entry["state"]) == ("page", "write", "valid")
    assert entry["expires"] > entry["created"]


def test_a_revoked_key_is_listed_and_worth_nothing(run, path):
    token = run("create", "--name", "page", "--scope", "search")[1].strip()
    assert run("create", "--name", "page", "--scope", "search")[0] == 1  # the name is taken
    code, out, _ = run("revoke", "page")
    assert (code, "is revoked" in out) == (0, True)
    assert KeyStore(path).check(token) is None
    assert "revoked" in run("list")[1]
    code, _, err = run("revoke", "page")
    assert code == 1
    assert "emcl keys list" in err
    assert run("create", "--name", "page", "--scope", "search")[0] == 0
    assert run("revoke", token.split("_")[1])[0] == 1  # the old one of the same name


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "--name", "a/b", "--scope", "search"),
        ("create", "--name", "", "--scope", "search"),
        ("create", "--name", "x" * 65, "--scope", "search"),
        ("create", "--name", "a\nb", "--scope", "search"),
        ("create", "--name", "a", "--scope", "search", "--expires", "0"),
        ("create", "--name", "a", "--scope", "search", "--expires", "nan"),
        ("revoke", "nobody"),
    ],
)
def test_wrong_arguments_are_one_line(run, path, arguments):
    code, _, err = run(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert not path.exists() or json.loads(path.read_text())["keys"] == []


def test_a_wrong_scope_is_wrong_usage(run):
    assert run("create", "--name", "a", "--scope", "everything")[0] == 2


def test_no_keys_says_how_to_make_one(run):
    assert "emcl keys create" in run("list")[1]


def test_only_whole_valid_tokens_are_keys(path):
    key_store = KeyStore(path)
    key, token = key_store.create("a", "search")
    assert key_store.check(token).key_id == key.key_id
    last = "0" if token[-1] != "0" else "1"
    other = key_store.create("b", "search")[1]
    swapped = token[:18] + other[18:]
    for wrong in (token[:-1] + last, token[:-1], token + "0", token.upper(), "", "emcl_", swapped, " " + token):
        assert key_store.check(wrong) is None, wrong


def test_every_check_compares_one_hash_in_constant_time(path, monkeypatch):
    key_store = KeyStore(path)
    tokens = [key_store.create(f"key {number}", "search")[1] for number in range(5)]
    compared = []
    straight = keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or straight(a, b))
    assert key_store.check(tokens[3]) is not None
    assert key_store.check(tokens[3][:-4] + "0000") is None
    assert key_store.check("emcl_" + "0" * 12 + "_" + "0" * 64) is None  # unknown: compared all the same
    assert len(compared) == 3
    assert all(len(a) == len(b) == 64 for a, b in compared)


def test_a_key_expires(path, monkeypatch):
    key_store = KeyStore(path)
    token = key_store.create("a", "search", expires_days=1)[1]
    now = keys_module.time.time()
    assert key_store.check(token) is not None
    monkeypatch.setattr(keys_module.time, "time", lambda: now + 86_399)
    assert key_store.check(token) is not None
    monkeypatch.setattr(keys_module.time, "time", lambda: now + 86_401)
    assert key_store.check(token) is None
    assert not key_store.has_valid()
    assert [key.state(keys_module.time.time()) for key in key_store.all_keys()] == ["expired"]


def test_scopes_include_lower_ones():
    table = [[includes(held, wanted) for wanted in SCOPES] for held in SCOPES]
    assert SCOPES == ("search", "write", "admin")
    assert table == [[True, False, False], [True, True, False], [True, True, True]]


def test_another_process_change_is_noticed_and_an_unchanged_file_is_not_read_again(path, monkeypatch):
    reader, writer = KeyStore(path), KeyStore(path)
    assert not reader.has_valid()
    token = writer.create("a", "search")[1]
    reads = []
    straight = keys_module.read_keys
    monkeypatch.setattr(keys_module, "read_keys", lambda file: reads.append(file) or straight(file))
    assert all(reader.check(token) for _ in range(50))
    assert len(reads) == 1
    KeyStore(path).revoke("a")
    reads.clear()
    assert reader.check(token) is None
    assert len(reads) == 1
    path.unlink()
    assert reader.check(token) is None


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format": 9}', b"\xff\xfe", b'{"format": 1, "session_secret": "", "keys": [{}]}']
)
def test_a_damaged_file_is_told_and_lets_nobody_in(path, content):
    key_store = KeyStore(path)
    token = key_store.create("a", "search")[1]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a keys file"):
        key_store.check(token)
    with pytest.raises(ValueError, match="is not a keys file"):
        KeyStore(path).create("b", "search")
    assert path.read_bytes() == content


def test_a_file_that_others_can_read_is_told(path, caplog):
    key_store = KeyStore(path)
    token = key_store.create("a", "search")[1]
    path.chmod(0o644)
    os.utime(path, ns=(1, 1))
    assert key_store.check(token) is not None
    assert "chmod 600" in caplog.text


def _create_some(path, start):
    key_store = KeyStore(path)
    for number in range(5):
        key_store.create(f"key-{start}-{number}", "search")


def test_several_processes_lose_no_key(path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_create_some, args=(path, start)) for start in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(KeyStore(path).all_keys()) == 15
