"""``emcl doctor`` finds what is broken, says what to do, and goes on where other checks have failed."""

import fcntl
import json
import os
import resource
import shutil
import sys

import pytest

from indexer.store.writer import LOCK, LOCK_HOLDER, acquire_lock
from service.cli import main
from service.doctor import index_checks, machine_checks
from service.doctor.checks import Check, Context, examine, failed, line_of
from service.doctor.cli import all_examinations
from service.jobs.store import JobStore
from service.settings import Settings, load_settings, variable_name


@pytest.fixture
def settings(tmp_path, clip_store, tiny_checkpoint):
    """Settings that name the small store and its model, and a working environment."""

    def made(**options):
        here = {"jobs_folder": tmp_path / "jobs", "keys_file": tmp_path / "keys.json", "upload_folder": tmp_path}
        return load_settings({"store": clip_store / "store", "model": str(tiny_checkpoint), **here, **options})

    return made


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_name(name), raising=False)


def look(check, settings):
    (found,) = examine(Context(settings=settings), [("it", check)])
    if found.state != "ok":
        assert found.next_step, "what is not well needs a next step"
    return found


def test_a_sound_installation_has_no_problem(settings):
    checks = list(examine(Context(settings=settings()), all_examinations()))
    assert [check for check in checks if check.state == "problem"] == []
    assert len({check.name for check in checks}) == len(checks) >= 16
    found = {check.name: check for check in checks}
    assert "6 videos, 12 captions" in found["index"].detail
    assert found["fingerprint"].state == found["search"].state == found["decoding"].state == "ok"
    assert not failed(checks)


def test_every_check_runs_when_half_of_it_is_broken(settings, tmp_path):
    (tmp_path / "keys.json").write_text("{broken")
    broken = settings(
        store=tmp_path / "nothing",
        model="no-such-model",
        redis_url="redis://:secret@127.0.0.1:1/0",
        require_keys=True,
    )
    checks = {check.name: check for check in examine(Context(settings=broken), all_examinations())}
    assert set(checks) == {name for name, _ in all_examinations()}
    for name in ("model", "index", "redis", "keys"):
        assert checks[name].state == "problem", name
    for name in ("fingerprint", "search"):
        assert checks[name].state == "warning"
        assert "not checked" in checks[name].detail
    assert checks["decoding"].state == "ok"
    assert all(check.next_step for check in checks.values() if check.state != "ok")
    assert "secret" not in repr(checks)


def test_a_check_that_raises_is_a_problem_of_its_own():
    def fails(context):
        raise OSError("disk on fire")

    first, second = examine(Context(settings=load_settings()), [("a", fails), ("b", machine_checks.check_python)])
    assert (first.state, first.name) == ("problem", "a")
    assert "disk on fire" in first.detail
    assert second.state == "ok"


def test_a_damaged_index_is_found(settings, clip_store, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(clip_store / "store", store)
    assert look(index_checks.check_index, settings(store=store)).state == "ok"
    (index,) = (store / "generations").glob("*/videos.faiss")
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    found = look(index_checks.check_index, settings(store=store))
    assert found.state == "problem"
    assert "emcl index rebuild" in found.detail


def test_another_model_than_the_index_was_built_with(settings, clip_store, tiny_encoder):
    context = Context(settings=settings(model="demo"))
    looks = [("model", index_checks.check_model), ("index", index_checks.check_index)]
    model, index, fingerprint = examine(context, [*looks, ("fingerprint", index_checks.check_fingerprint)])
    assert (model.state, index.state, fingerprint.state) == ("ok", "ok", "problem")
    assert tiny_encoder.fingerprint[:12] in fingerprint.detail


def test_two_builds_of_faiss_or_none_are_problems(settings, monkeypatch):
    monkeypatch.setattr(machine_checks, "version_of", lambda name: "1.15.1")
    found = look(machine_checks.check_faiss, settings())
    assert found.state == "problem"
    assert "uninstall" in found.next_step
    monkeypatch.setattr(machine_checks, "version_of", lambda name: None)
    assert look(machine_checks.check_faiss, settings()).state == "problem"
    monkeypatch.undo()
    assert look(machine_checks.check_faiss, settings()).state == "ok"


def test_torchvision_for_another_torch_is_a_problem(settings, monkeypatch):
    monkeypatch.setattr(machine_checks, "torch_wanted_by_torchvision", lambda: "1.0.0")
    assert look(machine_checks.check_packages, settings()).state == "problem"
    monkeypatch.undo()
    assert look(machine_checks.check_packages, settings()).state == "ok"
    monkeypatch.setattr(machine_checks, "version_of", lambda name: None if name == "av" else "1")
    assert "av not installed" in look(machine_checks.check_packages, settings()).detail


def test_a_gpu_that_was_asked_for_and_is_not_there(settings):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert look(machine_checks.check_gpu, settings(device="cuda")).state == "problem"
    assert look(machine_checks.check_gpu, settings()).state == "ok"


def test_a_full_or_closed_disk(settings, monkeypatch):
    assert look(machine_checks.check_disk, settings(upload_max_bytes="900TB")).state == "warning"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert look(machine_checks.check_disk, settings()).state == "problem"


def test_few_open_files_and_many_threads_are_warned_of(settings):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (900, hard))
        assert look(machine_checks.check_open_files, settings()).state == "warning"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert look(machine_checks.check_threads, settings(threads=256)).state == "warning"


def test_keys_that_others_can_read(settings, tmp_path):
    from service.access.keys import KeyStore

    assert look(machine_checks.check_keys, settings()).state == "ok"
    missing = look(machine_checks.check_keys, settings(require_keys=True))
    assert missing.state == "problem"
    assert "emcl keys create" in missing.detail
    KeyStore(tmp_path / "keys.json").create("me", "search")
    assert look(machine_checks.check_keys, settings(require_keys=True)).state == "ok"
    (tmp_path / "keys.json").chmod(0o644)
    found = look(machine_checks.check_keys, settings(require_keys=True))
    assert (found.state, found.next_step) == ("problem", f"chmod 600 {tmp_path / 'keys.json'}")


@pytest.mark.parametrize(
    ("limit", "policy", "state", "why"),
    [
        (2**28, "volatile-lru", "ok", ""),
        (2**28, "allkeys-lru", "ok", "allkeys-lru"),
        (2**28, "noeviction", "warning", "refuses to cache"),
        (0, "volatile-lru", "warning", "no limit"),
    ],
)
def test_the_memory_policy_of_redis(settings, monkeypatch, limit, policy, state, why):
    from redis import Redis

    answers = {"memory": {"maxmemory": limit, "maxmemory_policy": policy}, "server": {"redis_version": "7"}}
    monkeypatch.setattr(Redis, "info", lambda self, section: answers[section])
    found = look(machine_checks.check_redis, settings(redis_url="redis://127.0.0.1:1/0"))
    assert found.state == state
    assert why in found.detail


def test_who_writes_the_store(settings, clip_store, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(clip_store / "store", store)
    assert "no process" in look(index_checks.check_writer, settings(store=store)).detail
    lock = acquire_lock(store)
    try:
        found = look(index_checks.check_writer, settings(store=store))
        assert f"process {os.getpid()} on" in found.detail
        assert found.state == "ok"
        (store / LOCK_HOLDER).unlink()
        assert "another process" in look(index_checks.check_writer, settings(store=store)).detail
    finally:
        lock.release()
    with (store / LOCK).open() as file:  # and it holds nothing itself
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_jobs_that_nobody_runs(settings, monkeypatch):
    made = settings()
    assert "no job" in look(index_checks.check_jobs, made).detail
    job_store = JobStore(made.jobs_folder)
    job_store.create("index", {})
    assert look(index_checks.check_jobs, made).state == "ok"  # it has just come
    monkeypatch.setattr(index_checks, "WAITING_TOO_LONG_SECONDS", -1.0)
    found = look(index_checks.check_jobs, made)
    assert (found.state, found.next_step) == ("problem", "start a worker: emcl worker")
    job_store.close()


def test_the_command_prints_a_line_each_or_json_and_its_exit_code(monkeypatch, capsys, settings, tmp_path):
    made = settings()
    options = ["--store", made.store, "--model", made.model, "--jobs-folder", made.jobs_folder]
    options += ["--keys-file", made.keys_file, "--upload-folder", tmp_path]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["emcl", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, capsys.readouterr().out

    code, text = run(*options)
    assert code == 0
    assert "search: 1 hit" in text
    code, text = run("--json", "--store", tmp_path / "nothing", *options[2:])
    report = json.loads(text)
    assert code == 1
    assert report["ok"] is False
    assert {"name", "state", "detail", "next_step", "seconds"} == set(report["checks"][0])
    monkeypatch.setenv("EMCL_DEVICE", "cpu")
    monkeypatch.setenv("EMCL_THREADS", "many")
    code, text = run("--json")
    assert code == 1
    assert "EMCL_THREADS" in json.loads(text)["checks"][0]["detail"]


def test_a_line_shows_the_next_step():
    check = Check(name="disk", state="problem", detail="full", next_step="make room")
    assert line_of(check) == "PROBLEM  disk: full\n         → make room"
