"""Whatever moment a writer is killed at: nothing lost but the videos in flight, nothing doubled, verify clean."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from index_support import FakeEncoder, contents, fill, make_clip, settings

from indexer.store.catalogue import Catalogue
from indexer.store.reader import StoreReader
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter

SUPPORT = Path(__file__).parents[2] / "support" / "index_support.py"
KILLS = 19
SEED = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(24):
        make_clip(folder / f"{number:02d}.mp4", number, seconds=2.5 if number % 5 == 0 else 0.5)
    (folder / "twin.mp4").write_bytes((folder / "03.mp4").read_bytes())
    (folder / "broken.mp4").write_bytes(b"this is no video")
    rows = [{"video": f"{n:02d}.mp4", "captions": [f"first {n}", f"second {n}"], "tags": ["t"]} for n in range(24)]
    rows.append({"video": None, "captions": ["on its own"], "tags": []})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def start(store: Path, corpus: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(SUPPORT), "build", str(store), str(corpus)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_and_kill(store: Path, corpus: Path, events: int, delay_seconds: float) -> set[str]:
    """Start indexing, kill -9 after so many events and a little time; returns the videos that it had committed."""
    committed = set()
    with start(store, corpus) as process:
        assert process.stdout is not None
        for _ in range(events):
            line = process.stdout.readline().split()
            if not line:
                break
            if line[0] == "committed":
                committed.add(line[1])
        time.sleep(delay_seconds)
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
    committed |= {line.split()[1] for line in output.splitlines() if line.startswith("committed ")}
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, "decode workers must not outlive the indexer"
    return committed


def states(store: Path) -> dict[str, str]:
    catalogue = Catalogue.open_readonly(store / "catalogue.db")
    try:
        return dict(catalogue.states())
    finally:
        catalogue.close()


def test_killed_at_random_moments_and_continued(tmp_path: Path, corpus: Path) -> None:
    chance = random.Random(SEED)
    store = tmp_path / "killed"
    committed: set[str] = set()
    for _ in range(KILLS):
        committed |= run_and_kill(store, corpus, events=chance.randint(1, 14), delay_seconds=chance.uniform(0, 0.03))
        if (store / "catalogue.db").exists():
            found = verify(store)
            assert found.problems == []
            if committed:
                assert {v for v, state in states(store).items() if state == "indexed"} >= committed
    # One that is not disturbed at the same time, to be compared with.
    undisturbed = tmp_path / "undisturbed"
    with start(store, corpus) as process, start(undisturbed, corpus) as other:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        _, errors = other.communicate(timeout=200)
        assert other.returncode == 0, errors
    found = verify(store)
    assert found.problems == []
    assert found.notes == []
    assert found.recall == {"videos": 1.0, "captions": 1.0}
    assert contents(store) == contents(undisturbed)
    assert len([p for p in (store / "generations").iterdir() if p.name.startswith(".tmp-")]) == 0


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    subprocess.run([sys.executable, str(SUPPORT), "steps", str(folder)], check=True, timeout=250)
    return folder


def stores(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir(), key=lambda path: int(path.name)))


def test_killed_before_every_step_that_makes_something_durable(stepped: Path) -> None:
    *killed, whole = stores(stepped)
    assert len(killed) > 25
    expected = contents(whole)
    for store in killed:
        if (store / "catalogue.db").exists():
            assert verify(store).problems == [], store.name
        before = states(store) if (store / "catalogue.db").exists() else {}
        with StoreWriter.open(store, settings=settings()) as writer:
            fill(writer, range(3))
            writer.publish(FakeEncoder())
        after = states(store)
        assert {v for v, s in before.items() if s == "indexed"} <= {v for v, s in after.items() if s == "indexed"}
        assert verify(store).problems == [], store.name
        assert contents(store) == expected, store.name


def test_a_reader_works_on_whatever_a_killed_writer_left(stepped: Path) -> None:
    for store in stores(stepped):
        if (store / "CURRENT").exists():
            with StoreReader.open(store) as reader:
                assert reader.manifest.counts.videos in (2, 3)
                features, mask = reader.segment_features(reader.segment_ids())
                assert np.isfinite(features).all()
                assert mask.any(axis=1).all()


def test_a_hanging_decode_worker_ends_with_a_killed_indexer(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, str(SUPPORT), "hang", str(tmp_path)]) as process:
        try:
            started = tmp_path / "started"
            while not (started.exists() and started.read_text()):
                assert process.poll() is None
                time.sleep(0.05)
            worker = psutil.Process(int(started.read_text()))
        finally:
            process.kill()
    _, alive = psutil.wait_procs([worker], timeout=20)
    for survivor in alive:
        survivor.kill()
    assert not alive
