"""Log lines: one for each request, with its id, as text or JSON; and nothing that forges or betrays."""

import io
import json
import logging
import re
import sys
import threading
import time

import httpx
import pytest
from service_support import assert_problem, serving

from service.observe.logs import JsonFormatter, TextFormatter, logging_to_stderr
from service.observe.request import Observation, observing, request_id_of

NASTY = "a\nERROR forged\r\x1b[31m\u2028\u202e\x00\ud800b"


def record(message, *args, error=None):
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    return logging.LogRecord("service.test", logging.WARNING, __file__, 1, message, args, info)


@pytest.fixture(scope="module")
def client(clip_store, tiny_encoder, tmp_path_factory):
    with serving(clip_store, tiny_encoder, tmp_path_factory.mktemp("service")) as made:
        yield made


@pytest.fixture
def access_records(client, caplog):
    caplog.clear()
    caplog.set_level(logging.INFO, logger="service.access")

    return lambda: [made for made in caplog.records if made.name == "service.access"]


@pytest.fixture
def accessed(access_records):
    return lambda: [made.fields for made in access_records()]


def test_text_cannot_forge_a_line():
    line = TextFormatter().format(record("sent %s", NASTY))
    assert line.isprintable()
    assert "\\nERROR forged\\r\\x1b" in line
    line.encode()


def test_a_traceback_is_indented_and_cannot_forge_a_line_either():
    first, *rest = TextFormatter().format(record("failed", error=ValueError(NASTY))).split("\n")
    assert first.endswith("failed")
    assert len(rest) > 2
    assert all(line.startswith("    | ") and line.isprintable() for line in rest)


def test_json_is_one_object_a_line_with_the_request():
    with observing(Observation(request_id="abc")):
        line = JsonFormatter().format(record("sent %s", NASTY, error=ValueError(NASTY)))
    assert "\n" not in line
    assert line.isascii()
    entry = json.loads(line)
    assert entry["message"] == f"sent {NASTY}"
    assert (entry["level"], entry["logger"], entry["request_id"]) == ("warning", "service.test", "abc")
    assert "ValueError" in entry["exception"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}\+00:00", entry["time"])


@pytest.mark.parametrize("offered", ["7f3a-9", "a.b_c:d-E", "x" * 128])
def test_a_sane_request_id_is_kept_in_header_log_and_problem(client, accessed, offered):
    response = client.get("/v1/videos/x", headers={"X-Request-ID": offered})
    assert response.headers["x-request-id"] == offered
    assert assert_problem(response, 422)["request_id"] == offered


@pytest.mark.parametrize("offered", ["", "x" * 129, "a b", 'a"b', "a\tb", "ä", "<script>"])
def test_any_other_is_replaced(client, offered):
    response = client.get("/health/live", headers={"X-Request-ID": offered.encode()})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


def test_new_ids_differ():
    assert len({request_id_of(None) for _ in range(100)}) == 100


def test_refusals_before_routing_carry_the_id_too(client):
    refused = client.get("/v1/videos", headers={"Host": "evil.example", "X-Request-ID": "abc"})
    assert assert_problem(refused, 421)["request_id"] == "abc"
    assert refused.headers["x-request-id"] == "abc"


def test_the_access_line_says_what_was_answered_and_not_what_was_asked(client, accessed):
    response = client.post("/v1/search?secret=1", json={"text": "a very private wish"})
    (fields,) = accessed()
    assert fields["method"] == "POST"
    assert fields["route"] == fields["path"] == "/v1/search"
    assert fields["status"] == 200
    assert fields["bytes"] == len(response.content)
    assert fields["duration_ms"] > 0
    assert fields["key"] == "-"
    assert fields["problem"] is None
    assert {"queue", "encode", "candidates", "rerank"} <= set(fields["stage_ms"])
    assert "private" not in repr(fields)
    assert "secret" not in repr(fields)


def test_the_route_is_a_template_and_the_problem_is_named(client, accessed):
    client.get(f"/v1/videos/{'0' * 64}")
    client.get("/nothing")
    client.get("/web/style.css")
    client.get("/v1/search")
    assert [(fields["route"], fields["status"], fields["problem"]) for fields in accessed()] == [
        ("/v1/videos/{video_id}", 404, "not-found"),
        ("unrouted", 404, "not-found"),
        ("/web/*", 200, None),
        ("/v1/search", 405, "method-not-allowed"),
    ]


def test_a_path_with_line_ends_stays_one_line(client, access_records):
    client.get("/nothing%0aERROR%20forged")
    (made,) = access_records()
    assert "\n" in made.fields["path"]
    assert TextFormatter().format(made).isprintable()
    assert "\n" not in JsonFormatter().format(made)


def test_lines_are_written_in_order_and_the_last_ones_at_the_end(capsys):
    with logging_to_stderr("text", "info"):
        for number in range(50):
            with observing(Observation(request_id=f"id-{number}")):
                logging.getLogger("service.test").info("line %d", number)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines] == [f"line {number} [id-{number}]" for number in range(50)]


def test_a_standard_error_that_takes_no_lines_blocks_no_request_and_drops_are_reported(monkeypatch):
    monkeypatch.setattr("service.observe.logs.MOST_WAITING", 5)
    taking, begun, written = threading.Event(), threading.Event(), []

    class Stuck(io.StringIO):
        def write(self, text):
            begun.set()
            assert taking.wait(30)
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Stuck())
    with logging_to_stderr("text", "info"):
        log = logging.getLogger("service.test")
        log.info("line")
        assert begun.wait(30)
        started = time.monotonic()
        for _ in range(9):
            log.info("line")
        assert time.monotonic() - started < 5
        taking.set()
    said = "".join(written).splitlines()
    assert len(said) == 1 + 5 + 1
    assert sum("4 lines were dropped" in line for line in said) == 1


def test_a_standard_error_that_never_takes_lines_does_not_keep_the_process(monkeypatch):
    monkeypatch.setattr("service.observe.logs.CLOSE_SECONDS", 0.1)
    taking = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text):
            taking.wait(30)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Stuck())
    started = time.monotonic()
    with logging_to_stderr("text", "info"):
        logging.getLogger("service.test").info("line")
    assert time.monotonic() - started < 20
    taking.set()


def test_a_fault_is_logged_with_the_request(client, caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken inside")

    monkeypatch.setattr(client.app.state.services.engine, "embed", fail)
    response = client.post("/v1/embeddings", json={"texts": ["a"]}, headers={"X-Request-ID": "abc"})
    problem = assert_problem(response, 500, slug="internal")
    assert problem["request_id"] == "abc"
    assert "broken inside" in caplog.text


def test_what_was_set_up_before_is_back_afterwards(capsys):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with logging_to_stderr("json", "info"):
        logging.getLogger("service.test").info("hello")
    assert (root.handlers, root.level) == before
    assert json.loads(capsys.readouterr().err)["message"] == "hello"


def test_a_server_writes_only_json_and_uvicorn_too(start_server, clip_store, tiny_checkpoint):
    server = start_server("--store", clip_store / "store", "--model", tiny_checkpoint, "--log-format", "json")
    httpx.post(server.url + "/v1/search", json={"text": "a private wish"}, headers={"X-Request-ID": "abc"})
    server.stop()
    lines = [json.loads(line) for line in server.said]
    assert {"uvicorn.error", "service.cli", "service.access"} <= {line["logger"] for line in lines}
    (line,) = [line for line in lines if line["logger"] == "service.access"]
    assert (line["request_id"], line["status"], line["route"]) == ("abc", 200, "/v1/search")
    assert "private" not in "".join(server.said)
