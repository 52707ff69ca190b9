"""Several processes behind one port and one store: each sees every change, any may be killed, none is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest
from service_support import make_keys

from service import workers
from service.observe.worker_metrics import merged
from service.workers import ChangeCounter, WorkerPlace, count_workers

PATIENCE_SECONDS = 60
CLIENTS = 16  # connections: the kernel gives each to one of two workers, all to one of them once in 32,768 times


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def eventually(is_so, seconds=PATIENCE_SECONDS):
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def titles(client, tag=None):
    videos = client.get("/v1/videos", params={} if tag is None else {"tag": tag}).json()["videos"]
    return {video["title"] for video in videos}


def succeeded(client, job_url):
    return client.get(job_url).json()["state"] == "succeeded"


def found(client):
    answer = client.post("/v1/search", json={"text": "a", "k": 50})
    assert answer.status_code == 200, answer.text
    return {hit["video_id"] for hit in answer.json()["hits"]}


def requests_by_worker(url):
    """How many searches each worker has answered."""
    page = httpx.get(f"{url}/metrics").text
    counts = re.findall(r'emcl_http_request_seconds_count\{.*route="/v1/search".*worker="(\d)"\} ([\d.]+)', page)
    return {int(worker): float(count) for worker, count in counts}


@pytest.fixture(scope="module")
def folder(clip_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    shutil.copytree(clip_store / "store", folder / "store")
    return folder


@pytest.fixture(scope="module")
def options(folder, tiny_checkpoint):
    places = ("--store", folder / "store", "--model", tiny_checkpoint, "--jobs-folder", folder / "jobs")
    return (*places, "--workers", 2, "--embedded-worker", "off", "--preview-folder", folder / "previews")


@pytest.fixture(scope="module")
def server(start_server, options):
    return start_server(*options, "--watch-seconds", 0)  # what a worker sees, it has not found by looking


@pytest.fixture
def clients(server):
    """Connections that both workers have, kept open."""
    with ExitStack() as stack:
        made = [stack.enter_context(httpx.Client(base_url=server.url, timeout=60)) for _ in range(CLIENTS)]
        before = requests_by_worker(server.url)
        for client in made:
            found(client)
        after = requests_by_worker(server.url)
        assert all(after[number] > before.get(number, 0) for number in (0, 1)), after
        yield made


def test_a_video_that_was_added_through_any_worker_is_found_by_the_next_search_of_each(server, clients, clips):
    for number, sender in enumerate((clients[0], clients[-1], *clients[1:4])):
        content = clips[number % 2] + b"\0\0\0\x10free" + bytes(7) + bytes([number])  # other bytes, the same pictures
        answer = sender.post("/v1/videos", files={"file": content}, data={"title": f"added {number}"})
        assert answer.status_code == 202, answer.text
        video_id = answer.json()["video_id"]
        assert all(client.get(f"/v1/videos/{video_id}").status_code == 200 for client in clients)  # pending, or indexed
        eventually(partial(succeeded, clients[2], answer.json()["job_url"]))
        assert all(video_id in found(client) for client in clients)


def test_changes_through_any_worker_are_seen_by_each_at_once(server, clients):
    video_id = sorted(found(clients[0]))[0]
    for number, sender in enumerate(clients):
        answer = sender.patch(f"/v1/videos/{video_id}", json={"title": f"name {number}", "tags": [f"tag-{number}"]})
        assert answer.status_code == 200
        assert answer.json()["title"] == f"name {number}"
        assert all(titles(client, f"tag-{number}") == {f"name {number}"} for client in clients)
    captions = clients[0].post("/v1/captions", json={"captions": [{"text": "of all workers"}]}).json()["captions"]
    for client in clients:
        assert "of all workers" in str(client.get("/v1/captions?limit=1000").json())
    assert clients[5].delete(f"/v1/captions/{captions[0]['caption_id']}").status_code == 204
    assert all("of all workers" not in str(client.get("/v1/captions?limit=1000").json()) for client in clients)
    for client in clients:
        problem = client.patch(f"/v1/videos/{'0' * 64}", json={"title": "nobody"})
        assert (problem.status_code, problem.json()["type"]) == (404, "/docs#problem-not-found")
        assert len(problem.headers.get_list("x-request-id")) == 1


def test_a_reload_reaches_all_and_another_index_is_refused(server, clients):
    assert all(client.post("/v1/index/reload").status_code == 200 for client in clients)
    versions = {client.get("/v1/index").json()["version"] for client in clients}
    assert len(versions) == 1
    for client in clients:
        refused = client.post("/v1/index/reload", json={"index": "configured"})
        assert refused.status_code == 409
        assert "--workers 1" in refused.text


def test_metrics_of_all_workers_are_on_the_page_of_each(server, clients):
    for client in clients:
        page = client.get("/metrics").text
        assert 'emcl_worker_up{worker="0"} 1.0' in page
        assert 'emcl_worker_up{worker="1"} 1.0' in page
        assert page.count('emcl_index_rows{kind="videos",worker=') == 2
        assert page.count('emcl_library_pending{worker="0"}') == 1
        assert 'emcl_library_pending{worker="1"}' not in page
    before = requests_by_worker(server.url)
    for client in clients:
        found(client)
    after = requests_by_worker(server.url)
    assert sum(after.values()) - sum(before.values()) == CLIENTS


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_worker_comes_back_while_the_others_answer(server, victim, clips):
    """Only requests that the victim had are lost; what was accepted before is there afterwards."""
    accepted: list[str] = []
    answered, lost, refused = [0], [0], [0]
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                with httpx.Client(base_url=server.url, timeout=60) as client:
                    for _ in range(10):
                        assert found(client)
                        answered[0] += 1
            except httpx.TransportError:
                lost[0] += 1

    def add() -> None:
        for number in range(40):
            if stop.is_set():
                return
            content = clips[2] + b"\0\0\0\x10free" + bytes(6) + bytes([1 + victim, number])
            try:
                answer = httpx.post(f"{server.url}/v1/videos", files={"file": content}, timeout=60)
            except httpx.TransportError:
                lost[0] += 1
                continue
            if answer.status_code == 202:
                accepted.append(answer.json()["video_id"])
            else:
                assert answer.status_code in (429, 503), answer.text
                refused[0] += 1
            time.sleep(0.1)

    threads = [threading.Thread(target=work) for work in (ask, ask, ask, add)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: answered[0] > 20 and len(accepted) > 1)
        before = children(server.process.pid)
        pids = sorted(before)  # they were forked in the order of their numbers, unless one was started again
        os.kill(pids[victim] if victim == 1 else pids[0], signal.SIGKILL)
        at = answered[0]
        eventually(lambda: len(children(server.process.pid)) == 2 and set(children(server.process.pid)) != set(before))
        eventually(lambda: answered[0] > at + 40)
        eventually(lambda: httpx.get(f"{server.url}/metrics").text.count("emcl_worker_up{") == 2)
        eventually(lambda: f'emcl_worker_up{{worker="{victim}"}} 1.0' in httpx.get(f"{server.url}/metrics").text)
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)
    assert lost[0] <= 8  # at most one for each thread and kill, and connections that were being made
    with httpx.Client(base_url=server.url, timeout=60) as client:
        eventually(lambda: client.get("/v1/index").json()["overlay"]["waiting"] == 0)
        assert set(accepted) <= found_all(client)
    said = "".join(server.said)
    assert "incident" not in said  # no request was answered with 500
    assert " failed" not in said


def found_all(client):
    hits = client.post("/v1/search", json={"text": "a", "k": 1000, "candidates": 1000}).json()["hits"]
    return {hit["video_id"] for hit in hits}


def test_rates_hold_for_all_workers_together(start_server, options, tmp_path):
    token = make_keys(tmp_path)[1]["search"]
    keys = ("--require-keys", "--keys-file", tmp_path / "keys.json", "--rate-limit", 0.01, "--rate-burst", 9)
    server = start_server(*options, *keys)
    answers = []
    for _ in range(24):  # each over a connection of its own
        answers.append(httpx.get(f"{server.url}/v1/videos", headers={"X-API-Key": token}).status_code)
    assert sorted(answers) == [200] * 9 + [429] * 15
    assert httpx.get(f"{server.url}/v1/videos").status_code == 401
    server.stop()


def slowly(content, begun):
    """A body in two parts, the second of which comes when the service has been told to end."""
    yield content[:1000]
    begun.set()
    time.sleep(1.0)
    yield content[1000:]


def test_it_drains_when_it_is_stopped_and_leaves_nothing(start_server, options, clips, clip_store, tmp_path):
    """Requests under way are answered, also those that one worker sent to the other."""
    shutil.copytree(clip_store / "store", tmp_path / "store")
    own = ("--store", tmp_path / "store", "--jobs-folder", tmp_path / "jobs")
    server = start_server(*options, *own, "--upload-slots", 16)
    pids = children(server.process.pid)
    assert len(pids) == 2
    statuses = []

    def send(path, number, begun):
        content = clips[4] + b"\0\0\0\x10free" + bytes(7) + bytes([number])
        request = httpx.Request("POST", server.url + path, files={"file": content})
        body = slowly(request.read(), begun)
        headers = {"Content-Type": request.headers["Content-Type"], "Content-Length": request.headers["Content-Length"]}
        answer = httpx.post(server.url + path, content=body, headers=headers, timeout=60)
        statuses.append(f"{answer.status_code} {answer.text if answer.status_code > 202 else ''}")

    begun = [threading.Event() for _ in range(8)]
    paths = ("/v1/videos", "/v1/search/video")
    threads = [
        threading.Thread(target=send, args=(paths[number % 2], number, event)) for number, event in enumerate(begun)
    ]
    for thread in threads:
        thread.start()
    assert all(event.wait(30) for event in begun)
    time.sleep(0.3)
    assert server.stop() in (0, -signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == ["200 "] * 4 + ["202 "] * 4
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert "Traceback" not in "".join(server.said)
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_workers_end_with_a_supervisor_that_is_killed(start_server, options):
    server = start_server(*options)
    pids = children(server.process.pid)
    server.process.kill()
    eventually(lambda: not any(is_running(pid) for pid in pids), 30)
    server.kill()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_port_of_a_service_with_workers_is_in_use(server, options, run_serve):
    code, err = run_serve(*options, "--port", server.port)
    assert code == 1
    assert f"port {server.port}" in err
    assert "in use" in err


@pytest.fixture
def run_serve(monkeypatch, capsys):
    from service_support import emcl_command

    run = emcl_command(monkeypatch, capsys)

    def serve(*arguments):
        code, _, err = run("serve", *map(str, arguments))
        return code, err

    return serve


def test_auto_is_what_cores_and_memory_bear(monkeypatch):
    assert count_workers("3") == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert 1 <= count_workers("auto") <= 6
    monkeypatch.setattr(workers, "_BYTES_OF_A_WORKER", 1)
    assert count_workers("auto") == 6
    monkeypatch.setattr(workers, "_BYTES_OF_A_WORKER", 1 << 60)
    assert count_workers("auto") == 1


def test_a_change_counted_by_one_is_seen_by_another(tmp_path):
    place = WorkerPlace(number=1, count=3, folder=tmp_path)
    assert (place.leads, place.others) == (False, [0, 2])
    leader, other = ChangeCounter(place.shared("changes")), ChangeCounter(place.shared("changes"))
    assert other.value == 0
    leader.increase()
    leader.increase()
    assert other.value == 2


def test_pages_of_workers_become_one():
    page = (
        b"# HELP emcl_problems_total Error answers.\n# TYPE emcl_problems_total counter\n"
        b'emcl_problems_total{problem="conflict"} %d\n'
        b"# HELP emcl_s Seconds.\n# TYPE emcl_s histogram\n"
        b'emcl_s_bucket{le="1.0"} 2\nemcl_s_bucket{le="+Inf"} 3\nemcl_s_count 3\nemcl_s_sum 4.5\n'
    )
    text = merged({1: page % 7, 0: page % 5, 2: None}).decode()
    assert text.count("# TYPE emcl_problems_total counter") == 1
    assert 'emcl_problems_total{problem="conflict",worker="0"} 5.0' in text
    assert 'emcl_problems_total{problem="conflict",worker="1"} 7.0' in text
    assert 'emcl_s_bucket{le="+Inf",worker="1"} 3.0' in text
    assert re.findall(r"emcl_worker_up\{worker=\"(\d)\"\} ([\d.]+)", text) == [("0", "1.0"), ("1", "1.0"), ("2", "0.0")]
