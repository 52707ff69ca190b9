"""The command line: quick to answer, options named as settings, errors in one line, a server that starts and stops."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from service_support import emcl_command
from typer.main import get_command
from typer.testing import CliRunner

from indexer.store.writer import StoreWriter
from model.checkpoint import save_checkpoint
from service.cli import app
from service.http.listener import AddressError, bind
from service.settings import Settings, option_name


@pytest.fixture(scope="module")
def indexed(clip_store, tiny_checkpoint):
    """Options that name the small store and its model."""
    return "--store", str(clip_store / "store"), "--model", str(tiny_checkpoint)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``emcl`` with arguments; returns its exit code, output and errors."""
    return emcl_command(monkeypatch, capsys)


def test_help_lists_every_command_without_loading_a_model():
    code = "import sys, service.cli; print(sorted({'torch', 'open_clip', 'faiss', 'av', 'fastapi'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
    commands = get_command(app).commands
    assert {"serve", "search", "demo", "index", "train", "evaluate"} <= set(commands)
    assert {"build", "add", "remove", "list", "verify", "rebuild"} <= set(commands["index"].commands)


def test_every_setting_is_an_option_of_serve():
    options = {option for parameter in get_command(app).commands["serve"].params for option in parameter.opts}
    assert {option_name(name) for name in Settings.model_fields} <= options


def test_a_public_address_needs_a_key(run, indexed, tmp_path):
    code, _, err = run("serve", *indexed, "--host", "0.0.0.0", "--keys-file", tmp_path / "keys.json")
    assert code == 1
    assert "emcl keys create" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("serve", "--store", "/no/such/store"), "no/such/store"),
        (("search", "words", "--store", "/no/such/store"), "no/such/store"),
        (("serve", "--port", "70000"), "--port (EMCL_PORT)"),
        (("search", "--video", "/no/such/file.mp4", "--store", "STORE", "--model", "MODEL"), "no/such/file.mp4"),
        (("search", "words", "--k", "0", "--store", "STORE", "--model", "MODEL"), "k=0"),
        (("search", "words", "--store", "STORE", "--model", "no-such-model"), "no-such-model"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(run, indexed, arguments, complaint):
    given = [{"STORE": indexed[1], "MODEL": indexed[3]}.get(argument, argument) for argument in arguments]
    code, _, err = run(*given)
    assert code == 1
    assert complaint in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [("search",), ("search", "words", "--video", "x.mp4"), ("serve", "--nonsense")])
def test_wrong_usage_is_exit_code_2(run, arguments):
    assert run(*arguments)[0] == 2


def test_another_model_is_refused_by_name(run, indexed, tiny_config, tmp_path):
    import torch

    from model.net import build_net

    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = save_checkpoint(build_net(tiny_config), tmp_path / "other.safetensors")
    code, _, err = run("search", "words", *indexed[:2], "--model", other)
    assert code == 1
    assert "was built with checkpoint" in err


def test_search_prints_a_table_or_json(run, indexed):
    code, table, _ = run("search", "a red circle", *indexed, "-k", 3)
    assert code == 0
    lines = table.strip().splitlines()
    assert lines[0].split() == ["#", "score", "stage", "1", "fit", "moment", "segment", "video", "tags", "matched"]
    hits_shown = [line for line in lines[1:] if not line.startswith("--")]
    assert len(hits_shown) == 3
    code, text, _ = run("search", "a red circle", *indexed, "-k", 3, "--json")
    hits = json.loads(text)["hits"]
    assert [hit["title"] for hit in hits] == [line.split()[6] for line in hits_shown]
    code, text, _ = run("search", "a red circle", *indexed, "--tag", "odd", "--json", "--rerank", "frozen")
    assert {tag for hit in json.loads(text)["hits"] for tag in hit["tags"] if not tag.startswith("n")} == {"odd"}
    code, text, _ = run("search", "odd", *indexed, "--fusion", "text", "--json")
    assert {hit["title"] for hit in json.loads(text)["hits"]} == {"clip_1", "clip_3", "clip_5"}
    assert {tuple(hit["matched"]) for hit in json.loads(text)["hits"]} == {("tag",)}
    code, text, _ = run("search", "a red circle", *indexed, "--tag", "no such tag")
    assert (code, text.strip()) == (0, "nothing found")


def test_search_with_a_video(run, indexed, clip_store):
    path = clip_store / "clips" / "clip_4.mp4"
    code, text, _ = run("search", "--video", path, *indexed, "--rerank", "frozen", "-k", 2)
    assert code == 0
    assert text.startswith("captions\n#  score")
    assert "similar videos" in text
    code, text, _ = run("search", "--video", path, *indexed, "--rerank", "frozen", "--json")
    answer = json.loads(text)
    assert answer["hits"][0]["title"] == "clip_4"
    assert len(answer["captions"]) == 10


def test_a_server_starts_answers_and_stops_cleanly(start_server, indexed):
    server = start_server(*indexed)
    url = server.url
    assert httpx.get(url + "/health/ready").json()["ready"] is True
    assert "<title>EMCL search</title>" in httpx.get(url).text
    assert httpx.get(url + "/docs").status_code == 200
    assert len(httpx.post(url + "/v1/search", json={"text": "a red circle"}).json()["hits"]) == 6
    assert httpx.get(url, headers={"Host": "elsewhere.example"}).status_code == 421
    assert "6 videos, 12 captions" in "".join(server.said)
    started = time.monotonic()
    assert server.stop() in (0, -signal.SIGTERM)
    assert time.monotonic() - started < 15
    assert "Traceback" not in "".join(server.said)


@pytest.mark.slow
def times_of_files(folder):
    """When each file changed; SQLite's -wal and -shm come and go with each reader of the catalogue."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm")))
    return {path: path.stat().st_mtime_ns for path in files}


def test_the_demo_is_prepared_once(run, clip_store, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(clip_store / "store", folder / "store")  # as if an older version, with another model, had run
    code, _, err = run("demo", "--folder", folder, "--count", 12, "--prepare-only")
    assert code == 0, err
    assert "making 12 short clips" in err
    assert "another version of the shipped model; removing it" in err
    made = times_of_files(folder)
    code, out, err = run("demo", "--folder", folder, "--count", 12, "--prepare-only")
    assert (code, out, err) == (0, "", "")
    assert times_of_files(folder) == made
    code, text, err = run("search", "a circle", "--store", folder / "store", "--json")
    assert code == 0, err
    assert len(json.loads(text)["hits"]) == 10


def test_without_faiss_the_error_names_the_extras(clip_store, tmp_path):
    (tmp_path / "faiss.py").write_text("raise ModuleNotFoundError(\"No module named 'faiss'\", name='faiss')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "service.cli", "search", "a", "--store", str(clip_store / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "emcl-search[cpu]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_reported_before_anything_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = ["--store", tmp_path / "none", "--port", str(port)]
        command = [sys.executable, "-m", "service.cli", "serve", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert f"port {port} of 127.0.0.1 is in use by process {os.getpid()}" in done.stderr
        assert "--port 0" in done.stderr
        assert "none" not in done.stderr, "the missing store is not looked for"


def test_an_address_of_another_machine_and_a_name_of_none_are_refused():
    with pytest.raises(AddressError, match="not an address of this machine"):
        bind("192.0.2.1", 0)
    with pytest.raises(AddressError, match="cannot be resolved"):
        bind("no.such.host.invalid", 0)


def test_a_server_says_where_to_open_it(start_server, clip_store, tiny_checkpoint, tmp_path):
    server = start_server("--store", clip_store / "store", "--model", tiny_checkpoint, "--jobs-folder", tmp_path)
    httpx.get(f"{server.url}/health/ready")
    server.stop()
    assert f"Open {server.url}\n" in server.said
    assert not any("faiss.loader" in line for line in server.said)


def test_the_version_and_the_order_of_commands(monkeypatch):
    def shown(*arguments):
        return CliRunner().invoke(app, arguments).output

    assert re.fullmatch(r"emcl-search \d+\.\d+\.\d+\S*\n", shown("--version"))
    names = list(get_command(app).list_commands(None))
    assert names[:3] == ["search", "serve", "demo"]
    assert len(names) == len(set(names))


def test_the_best_hit_is_opened_in_the_systems_player(clip_store, tiny_checkpoint, monkeypatch):
    opened = []
    monkeypatch.setattr("typer.launch", lambda path: opened.append(path) or 0)
    arguments = ["search", "a red circle", "--store", str(clip_store / "store"), "--model", str(tiny_checkpoint)]
    result = CliRunner().invoke(app, [*arguments, "--open"])
    assert result.exit_code == 0, result.output
    assert len(opened) == 1
    assert opened[0].endswith(".mp4")


def test_titles_cannot_steer_the_terminal_and_home_is_expanded_after_an_equals_sign(
    run, clip_store, tiny_checkpoint, tmp_path, monkeypatch
):
    shutil.copytree(clip_store / "store", tmp_path / "store")
    monkeypatch.setenv("HOME", str(tmp_path))
    with StoreWriter.open(tmp_path / "store") as writer:
        [first, *_] = writer.catalogue.states()
        writer.edit_video(first, title="red\x1b[2J\u202e circle")
    code, out, err = run("search", "circle", "--store=~/store", "--model", tiny_checkpoint)
    assert code == 0, err
    assert "\x1b" not in out
    assert "red\\x1b[2J\\u202e circle" in out


def test_paths_are_printed_for_other_programs(run, indexed):
    code, out, err = run("search", "a red circle", *indexed, "-k", 2, "--print0")
    assert code == 0, err
    assert out.endswith("\0")
    names = [Path(name) for name in out.split("\0")[:-1]]
    _, answer, _ = run("search", "a red circle", *indexed, "-k", 2, "--json")
    assert names == [Path(hit["path"]) for hit in json.loads(answer)["hits"]]
    assert all(name.is_file() for name in names)
    done = subprocess.run(["xargs", "-0", "-n", "1", "test", "-f"], input=out, text=True)
    assert done.returncode == 0
    code, _, err = run("search", "a", *indexed, "--print0", "--json")
    assert code == 2
    assert "--print0" in err
