"""MMT with EMCL against the released classes (``golden/rest/mmt_emcl``)."""

import pytest
import torch
import torch.nn.functional as F
from heads_support import relative_error, tensors

from model.heads.experts import ExpertFeatures, ExpertsBatch, ExpertsEMCL, ExpertsHead, Mmt
from model.heads.losses import hard_triplets, max_margin

NAMES = ("face", "rgb", "vggish")


@pytest.fixture
def arrays(golden):
    return tensors(golden("rest/mmt_emcl"))


def mmt_of(arrays):
    widths = {name: int(width) for name, width in zip(NAMES, arrays["dims"], strict=True)}
    net = Mmt(widths, 12, 16, types=arrays["type_ids"].tolist(), heads=2, layers=2, inner=32, positions=8, dropout=0.0)
    state = {}

    def put(ours, theirs):
        state[ours] = arrays[f"state/{theirs}"]

    for name in NAMES:
        for part in ("weight", "bias"):
            put(f"reduce.{name}.{part}", f"video_dim_reduce.{name}.fc.{part}")
            put(f"text_weight.{name}.{part}", f"moe_fc_txt.{name}.{part}")
            for ours, theirs in (("video_gate", "video_GU"), ("text_gate", "text_GU")):
                put(f"{ours}.{name}.linear.{part}", f"{theirs}.{name}.fc.{part}")
                put(f"{ours}.{name}.gate.{part}", f"{theirs}.{name}.cg.fc.{part}")
        for ours, theirs in (("video_gate", "video_GU"), ("text_gate", "text_GU")):
            for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                put(f"{ours}.{name}.norm.{part}", f"{theirs}.{name}.cg.batch_norm.{part}")
    put("position_table.weight", "vid_bert.embeddings.position_embeddings.weight")
    state["type_table.weight"] = arrays["state/vid_bert.embeddings.token_type_embeddings.weight"][
        : int(arrays["type_ids"].max()) + 1
    ]
    for part in ("weight", "bias"):
        put(f"norm.{part}", f"vid_bert.embeddings.layer_norm.{part}")
        for layer in range(2):
            theirs = f"vid_bert.encoder.layer.{layer}"
            packed = [arrays[f"state/{theirs}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            state[f"layers.{layer}.self_attn.in_proj_{part}"] = torch.cat(packed)
            put(f"layers.{layer}.self_attn.out_proj.{part}", f"{theirs}.attention.output.dense.{part}")
            put(f"layers.{layer}.norm1.{part}", f"{theirs}.attention.output.layer_norm.{part}")
            put(f"layers.{layer}.linear1.{part}", f"{theirs}.intermediate.dense.{part}")
            put(f"layers.{layer}.linear2.{part}", f"{theirs}.output.dense.{part}")
            put(f"layers.{layer}.norm2.{part}", f"{theirs}.output.layer_norm.{part}")
    net.load_state_dict(state, strict=True)
    return net


def videos_of(arrays):
    return {
        name: ExpertFeatures(
            features_BLC=arrays[f"feat/{name}"],
            mask_BL=arrays[f"ind/{name}"].bool(),
            seconds_BL=arrays[f"time/{name}"],
            maximum_BC=arrays[f"max/{name}"],
        )
        for name in NAMES
    }


def emcl_of(arrays, *, training=False):
    emcl = ExpertsEMCL(
        3,
        num_bases=int(arrays["K"]),
        iterations=int(arrays["T"]),
        beta=float(arrays["beta"]),
        width=float(arrays["lamd"]),
        momentum=float(arrays["momentum"]),
    )
    emcl.state.copy_(arrays["M_in"])
    return emcl.train(training)


def test_evaluation_with_and_without_emcl(arrays):
    head, net = ExpertsHead(), mmt_of(arrays).eval()
    with torch.no_grad():
        batch = net(videos_of(arrays), arrays["text_cls"])
        torch.testing.assert_close(batch.video_VMD, arrays["eval/vid_embds_plain"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.text_TMD, arrays["eval/text_embds_plain"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.text_weight_TM, arrays["eval/text_weights"][:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(head.similarity(batch), arrays["eval/sims_plain"], atol=1e-5, rtol=1e-5)
        emcl = emcl_of(arrays)
        corrected = head.corrected(batch, emcl)
        torch.testing.assert_close(corrected.video_VMD, arrays["eval/vid_embds_emcl"], atol=1e-5, rtol=0)
        torch.testing.assert_close(head.similarity(corrected), arrays["eval/sims_emcl"], atol=1e-5, rtol=0)
        halves = [head.corrected(batch.take(part, part), emcl) for part in (torch.arange(3), torch.arange(3, 6))]
        cached = ExpertsBatch(
            video_VMD=torch.cat([half.video_VMD for half in halves]),
            text_TMD=torch.cat([half.text_TMD for half in halves]),
            text_weight_TM=batch.text_weight_TM,
        )
        torch.testing.assert_close(head.similarity(cached), arrays["eval/sims_emcl_two_batches"], atol=1e-5, rtol=0)
        torch.testing.assert_close(emcl.state, arrays["M_in"], atol=0, rtol=0)


@pytest.mark.parametrize("name", ["train_plain", "train_emcl"])
def test_losses_and_gradients_in_training(arrays, name):
    head, net = ExpertsHead(), mmt_of(arrays).train()
    emcl = emcl_of(arrays, training=True) if name == "train_emcl" else None
    similarity = head.similarity(head.corrected(net(videos_of(arrays), arrays["text_cls"]), emcl))
    torch.testing.assert_close(similarity, arrays[f"{name}/sims"], atol=1e-5, rtol=1e-5)
    loss = head.loss(similarity, torch.zeros(()))
    assert float(loss.detach()) == pytest.approx(float(arrays[f"{name}/triplet_top1"]), abs=1e-5)
    assert float(hard_triplets(similarity.detach(), negatives=3)) == pytest.approx(
        float(arrays[f"{name}/triplet_top3"]), abs=1e-5
    )
    assert float(max_margin(similarity.detach())) == pytest.approx(float(arrays[f"{name}/max_margin"]), abs=1e-5)
    loss.backward()
    gradients = {
        "video_dim_reduce.rgb.fc.weight": net.reduce["rgb"].weight.grad,
        "text_GU.face.fc.weight": net.text_gate["face"].linear.weight.grad,
        "moe_fc_txt.face.weight": net.text_weight["face"].weight.grad,
    }
    checked = 0
    for theirs, found in gradients.items():
        if f"{name}/grad/{theirs}" in arrays:
            assert relative_error(found, arrays[f"{name}/grad/{theirs}"]) < 1e-3, theirs
            checked += 1
    assert checked
    if emcl is not None:
        torch.testing.assert_close(emcl.state, arrays[f"{name}/M_out"], atol=1e-6, rtol=0)


def test_more_negatives_than_there_are_is_refused_and_the_released_loss_dilutes_itself():
    similarity = F.normalize(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    with pytest.raises(ValueError, match="has 3; lower"):
        hard_triplets(similarity, negatives=4)
    released = hard_triplets(similarity, negatives=4, released=True)
    torch.testing.assert_close(released, hard_triplets(similarity, negatives=3) * 3 / 4)
