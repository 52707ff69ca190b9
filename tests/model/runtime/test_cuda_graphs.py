"""Scoring by captured graphs: what is staged, padded and kept (on any machine), and the graph itself (on a GPU)."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from model.config import EMCLConfig
from model.net import build_net
from model.runtime import cuda_graphs
from model.runtime.cuda_graphs import KEPT_SHAPES, GraphScorer, Staging

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def net(tiny_config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_net(tiny_config.model_copy(update={"emcl": EMCLConfig(num_bases=8, beta=0.3)})).eval()


def arrays_of(net, queries, candidates=10, frames=3, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "text_QD": generator.standard_normal((queries, net.embed_dim)).astype(np.float32),
        "features_QNFD": generator.standard_normal((queries, candidates, frames, net.embed_dim)).astype(np.float16),
        "mask_QNF": generator.random((queries, candidates, frames)) < 0.8,
        "candidate_mask_QN": generator.random((queries, candidates)) < 0.8,
    }


def assert_equals_the_net(net, scorer, arrays, rerank="emcl", device=CPU):
    given = {name: None if value is None else torch.from_numpy(value).to(device) for name, value in arrays.items()}
    with torch.inference_mode():
        expected = net.score_videos(*given.values(), rerank)
    scores, weights = scorer.score(*arrays.values(), rerank)
    np.testing.assert_allclose(scores, expected.scores_QN.cpu(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(weights, expected.frame_weights_QNF.cpu(), rtol=0, atol=1e-6)


def test_what_is_staged_arrives_whole():
    shapes = {"a": ((3, 5), torch.float16), "b": ((7,), torch.bool), "c": ((2, 2), torch.float32)}
    staging = Staging(shapes, CPU)
    staging.here["a"][:] = np.arange(15).reshape(3, 5)
    staging.here["b"][::2] = True
    staging.here["c"][:] = [[1, 2], [3, 4]]
    assert not any(part.any() for part in staging.there.values())
    staging.send()
    for name, part in staging.there.items():
        assert (tuple(part.shape), part.dtype) == shapes[name]
        np.testing.assert_array_equal(part.numpy(), staging.here[name])


@pytest.mark.parametrize("rerank", ["emcl", "none"])
def test_padded_queries_change_nothing(net, rerank):
    captured = []
    scorer = GraphScorer(net, CPU, capture=lambda run: captured.append(run) or run)
    for queries, seed in ((5, 1), (8, 2), (6, 3), (1, 4)):
        assert_equals_the_net(net, scorer, arrays_of(net, queries, seed=seed), rerank)
    assert (len(captured), len(scorer)) == (1, 2)  # that of eight queries came again, that of one did not
    assert_equals_the_net(net, scorer, {**arrays_of(net, 7), "candidate_mask_QN": None}, rerank)


def test_the_shapes_used_last_are_kept(net):
    scorer = GraphScorer(net, CPU, capture=lambda run: run)
    for candidates in range(1, KEPT_SHAPES + 5):  # none twice, so none is captured
        scorer.score(*arrays_of(net, 1, candidates=candidates).values(), "emcl")
    assert len(scorer) == KEPT_SHAPES


def test_computing_and_capturing_happen_on_the_scorers_own_device(net, monkeypatch):
    """The card is played by the CPU, and which of two is the current one by a list."""
    current, seen = [], []

    @contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.pop()

    def capture(run):
        seen.append(("capture", *current))
        return lambda: seen.append(("replay", *current)) or run()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(
        cuda_graphs, "Staging", lambda shapes, _: seen.append(("stage", *current)) or Staging(shapes, CPU)
    )
    second = torch.device("cuda:1")
    scorer = GraphScorer(net, second, capture)
    for _ in range(3):
        assert_equals_the_net(net, scorer, arrays_of(net, 2))
    assert seen == [(what, second) for what in ("stage", "capture", "replay", "replay")]
    assert current == []


def test_a_capture_leaves_other_threads_alone_and_uses_a_stream_of_the_current_device(monkeypatch):
    calls = []

    class Stream:
        def wait_stream(self, other):
            calls.append((self, other))

    class Graph:
        def replay(self):
            calls.append("replay")

    @contextmanager
    def graph(made, **options):
        calls.append(options)
        yield

    present = Stream()
    for name, value in (
        ("Stream", Stream), ("current_stream", lambda: present), ("stream", nullcontext), ("CUDAGraph", Graph),
        ("graph", graph),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    runs = []
    replay = cuda_graphs.capture_graph(lambda: runs.append(None) or "outputs")
    captured = len(runs)
    assert replay() == "outputs"
    assert len(runs) == captured
    side = calls[0][0]
    assert calls == [(side, present), (present, side), {"stream": side, "capture_error_mode": "thread_local"}, "replay"]
    assert side is not present


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_graph_scores_as_the_net_does(net):
    device = torch.device("cuda")
    net = net.to(device)
    try:
        scorer = GraphScorer(net, device)
        for queries, seed in ((64, 1), (50, 2), (64, 3), (1, 4)):
            arrays = arrays_of(net, queries, candidates=100, frames=12, seed=seed)
            assert_equals_the_net(net, scorer, arrays, device=device)
    finally:
        net.to("cpu")
