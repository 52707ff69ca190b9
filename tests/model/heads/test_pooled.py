"""CLIP4Clip's heads against the released classes (``golden/rest/clip4clip_heads``)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from evaluation_support import build_encoder, random_corpus
from heads_support import golden_emcl, load_renamed, relative_error, tensors

from model.config import TemporalConfig
from model.emcl.pooling import unit_mean_pool
from model.heads.cross import CrossHead
from model.heads.frames import FramesBatch, FramesHead
from model.heads.losses import symmetric_info_nce
from model.heads.pooled import PooledBatch, PooledHead
from model.temporal import LSTMTemporal, MeanTemporal, TransformerTemporal

LOOSE = ("meanP", "seqLSTM", "seqTransf")


@pytest.fixture(scope="module")
def arrays(request):
    import numpy as np

    folder = request.config.rootpath / "tests/data/golden/rest"
    with np.load(folder / "clip4clip_heads.npz") as file:
        return tensors({key: file[key] for key in file.files})


def temporal_of(name, arrays):
    heads, layers, context = (int(arrays[key]) for key in ("heads", "layers", "context"))
    if name == "meanP":
        return MeanTemporal(), {}
    if name == "seqLSTM":
        module, names = LSTMTemporal(16), {"lstm_visual.": "lstm."}
    else:
        module = TransformerTemporal(16, heads, TemporalConfig(layers=layers, max_positions=context), quick_gelu=True)
        names = {"transformerClip.": "blocks.", "frame_position_embeddings.": "positions."}

    def rename(theirs):
        return next((ours + theirs.removeprefix(old) for old, ours in names.items() if theirs.startswith(old)), None)

    return load_renamed(module, arrays, f"{name}/state/", rename), {rename: name}


@pytest.mark.parametrize("name", LOOSE)
def test_similarity_loss_and_gradients(arrays, name):
    temporal, _ = temporal_of(name, arrays)
    text = arrays["text"].clone().requires_grad_()
    video = arrays["video"].clone().requires_grad_()
    mask = arrays["video_mask"].bool()
    frames = temporal(video, mask)
    torch.testing.assert_close(F.normalize(frames, dim=-1), arrays[f"{name}/frames_unit"], atol=1e-5, rtol=0)
    batch = PooledBatch(video_VD=unit_mean_pool(frames, mask), text_TD=F.normalize(text, dim=-1))
    torch.testing.assert_close(batch.video_VD, arrays[f"{name}/video_unit"], atol=1e-5, rtol=0)
    head, scale = PooledHead(), arrays[f"{name}/state/clip.logit_scale"]
    similarity = head.similarity(batch)
    torch.testing.assert_close(similarity * scale.exp(), arrays[f"{name}/logits"], atol=5e-5, rtol=0)
    loss = head.loss(similarity, scale)
    assert float(loss.detach()) == pytest.approx(float(arrays[f"{name}/loss"]), abs=1e-5)
    loss.backward()
    assert relative_error(text.grad, arrays[f"{name}/grad_text"]) < 1e-3
    assert relative_error(video.grad, arrays[f"{name}/grad_video"]) < 1e-3


@pytest.mark.parametrize("name", LOOSE)
@pytest.mark.parametrize("where", ["emcl_infer", "emcl_joint"])
def test_emcl_on_the_pooled_vectors(arrays, name, where):
    temporal, _ = temporal_of(name, arrays)
    mask = arrays["video_mask"].bool()
    with torch.no_grad():
        video = unit_mean_pool(temporal(arrays["video"], mask), mask)
    text = F.normalize(arrays["text"], dim=-1)
    video, text = video.requires_grad_(), text.requires_grad_()
    emcl = golden_emcl(arrays, f"{name}/{where}/", 16, training=where == "emcl_joint")
    scale = arrays[f"{name}/state/clip.logit_scale"]
    batch = PooledBatch(video_VD=video, text_TD=text)
    raw = PooledHead(renormalise=False)
    rows = emcl(raw.rows(batch))
    kept = raw.similarity(raw.replace(batch, rows)) * scale.exp()
    torch.testing.assert_close(kept, arrays[f"{name}/{where}/logits_not_renormalised"], atol=5e-5, rtol=1e-5)
    head = PooledHead()
    similarity = head.similarity(head.replace(batch, rows))
    torch.testing.assert_close(similarity * scale.exp(), arrays[f"{name}/{where}/logits"], atol=5e-5, rtol=0)
    if where == "emcl_joint":
        loss = head.loss(similarity, scale)
        assert float(loss.detach()) == pytest.approx(float(arrays[f"{name}/{where}/loss"]), abs=1e-5)
        loss.backward()
        assert relative_error(video.grad, arrays[f"{name}/{where}/grad_video_unit"]) < 1e-3
        assert relative_error(text.grad, arrays[f"{name}/{where}/grad_text_unit"]) < 1e-3
        torch.testing.assert_close(emcl.state, arrays[f"{name}/{where}/M_out"], atol=1e-6, rtol=0)


def test_tight_transformer(arrays):
    names = {
        "cross.embeddings.position_embeddings.": "positions.",
        "cross.transformer.": "blocks.",
        "cross.pooler.ln_pool.": "norm.",
        "cross.pooler.dense.": "dense.",
        "similarity_dense.": "score.",
    }

    def rename(theirs):
        return next((ours + theirs.removeprefix(old) for old, ours in names.items() if theirs.startswith(old)), None)

    heads, layers, context = (int(arrays[key]) for key in ("heads", "layers", "context"))
    head = CrossHead(16, heads=heads, layers=layers, context=context).eval()
    load_renamed(head, arrays, "tightTransf/state/", rename)
    text, video = (arrays[key].clone().requires_grad_() for key in ("text", "video"))
    batch = FramesBatch(text_TD=text, features_VFD=video, mask_VF=arrays["video_mask"].bool())
    similarity = head.similarity(batch)
    torch.testing.assert_close(similarity, arrays["tightTransf/logits"], atol=5e-5, rtol=0)
    loss = symmetric_info_nce(similarity, torch.zeros(()))
    assert float(loss.detach()) == pytest.approx(float(arrays["tightTransf/loss"]), abs=1e-5)
    loss.backward()
    assert relative_error(text.grad, arrays["tightTransf/grad_text"]) < 1e-3
    assert relative_error(video.grad, arrays["tightTransf/grad_video"]) < 1e-3
    for theirs in ("cross.embeddings.position_embeddings.weight", "cross.pooler.dense.weight"):
        grad = dict(head.named_parameters())[rename(theirs)].grad
        assert relative_error(grad, arrays[f"tightTransf/grad/{theirs}"]) < 1e-3


def test_it_scores_as_the_net_does():
    encoder, corpus = build_encoder(), random_corpus()
    text, features, mask = (torch.from_numpy(part) for part in (corpus.text_TD, corpus.features_VFD, corpus.mask_VF))
    head = FramesHead(encoder.config.pooling)
    batch = FramesBatch(features_VFD=features, mask_VF=mask, text_TD=text)
    with torch.no_grad():
        for correct, rerank in ((None, "none"), (encoder.net.emcl, "emcl")):
            expected = encoder.net.score_matrix(text, features, mask, rerank)
            torch.testing.assert_close(head.similarity(head.corrected(batch, correct)), expected, atol=1e-6, rtol=0)
