"""CLIP2Video's head against the released classes, with and without their mask mistake (``clip2video_head``)."""

import pytest
import torch
from heads_support import golden_emcl, load_renamed, tensors

from model.heads.losses import symmetric_info_nce
from model.heads.mixture import Clip2Video, MixtureHead

NAMES = {
    "weight_center": "centre_weight_CD",
    "emb_center": "centre_CD",
    "frame_position_embeddings.": "positions.",
    "type_position_embeddings.": "types.",
    "frame2t_attention.": "difference_block.",
    "actionClip.": "coarse_block.",
    "trans_layernorm.": "difference_norm.",
    "transformerClip.": "temporal.",
}


def rename(theirs):
    return next((ours + theirs.removeprefix(old) for old, ours in NAMES.items() if theirs.startswith(old)), None)


@pytest.fixture
def arrays(golden):
    return tensors(golden("rest/clip2video_head"))


def net_of(arrays, layout):
    net = Clip2Video(
        16,
        heads=int(arrays["heads"]),
        layers=int(arrays["layers"]),
        centres=int(arrays["centers"]),
        positions=14,
        layout=layout,
    )
    return load_renamed(net, arrays, "state/", rename).eval()


@pytest.mark.parametrize("layout", ["released", "fixed"])
@pytest.mark.parametrize("full", [False, True], ids=["padded", "full"])
def test_both_branches_and_their_mixture(arrays, layout, full):
    prefix = f"full_{layout}" if full else layout
    mask = torch.ones_like(arrays["video_mask"]) if full else arrays["video_mask"]
    net, scale = net_of(arrays, layout), arrays["state/clip.logit_scale"].exp()
    with torch.no_grad():
        tokens, token_mask = net.differences(arrays["video"], mask.bool())
        torch.testing.assert_close(tokens, arrays[f"{prefix}/tdb_tokens"], atol=1e-5, rtol=0)
        assert torch.equal(token_mask.int(), arrays[f"{prefix}/tdb_mask"].int())
        batch = net(arrays["video"], mask, arrays["cls"], arrays["text_hidden"], arrays["text_mask"])
        _, aligned = net.videos(arrays["video"], mask)
        torch.testing.assert_close(aligned, arrays[f"{prefix}/tab_video"], atol=1e-5, rtol=0)
        head = MixtureHead(renormalise=False)
        first = head.first.similarity(batch.pooled)
        torch.testing.assert_close(first * scale, arrays[f"{prefix}/tdb_logits"], atol=5e-5, rtol=0)
        torch.testing.assert_close(head.similarity(batch) * scale, arrays[f"{prefix}/logits"], atol=5e-5, rtol=0)
        emcl = golden_emcl(arrays, "emcl/", 16)
        corrected = head.corrected(batch, emcl)
        first = head.first.similarity(corrected.pooled)
        torch.testing.assert_close(first * scale, arrays[f"{prefix}/tdb_logits_emcl"], atol=5e-5, rtol=1e-5)
        mixed = head.similarity(corrected) * scale
        torch.testing.assert_close(mixed, arrays[f"{prefix}/logits_emcl"], atol=5e-5, rtol=1e-5)
        blocks = torch.empty_like(mixed)
        for t in range(0, 5, 2):
            for v in range(0, 5, 2):
                texts, videos = torch.arange(t, min(t + 2, 5)), torch.arange(v, min(v + 2, 5))
                loaded = net(  # as the released masks depend on the loader's batch
                    arrays["video"][videos],
                    mask[videos],
                    arrays["cls"][texts],
                    arrays["text_hidden"][texts],
                    arrays["text_mask"][texts],
                )
                part = head.similarity(head.corrected(loaded, emcl))
                blocks[t : t + 2, v : v + 2] = part * scale
        torch.testing.assert_close(blocks, arrays[f"{prefix}/logits_emcl_blocks2"], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["released", "fixed"])
def test_losses(arrays, layout):
    scale = arrays["state/clip.logit_scale"]
    with torch.no_grad():
        batch = net_of(arrays, layout)(
            arrays["video"], arrays["video_mask"], arrays["cls"], arrays["text_hidden"], arrays["text_mask"]
        )
        main = symmetric_info_nce(MixtureHead().first.similarity(batch.pooled), scale)
        aligned = symmetric_info_nce(batch.second_TV, scale)
    assert float(main) == pytest.approx(float(arrays[f"{layout}/loss_main"]), abs=1e-5)
    assert float(aligned) == pytest.approx(float(arrays[f"{layout}/loss_tab"]), rel=1e-5)
    assert float((main + aligned) / 2) == pytest.approx(float(arrays[f"{layout}/loss"]), rel=1e-5)


@pytest.mark.parametrize("layout", ["released", "fixed"])
def test_only_the_released_masks_make_a_video_depend_on_others(arrays, layout):
    net, order = net_of(arrays, layout), torch.tensor([4, 0, 3, 1, 2])
    with torch.no_grad():
        one = net.videos(arrays["video"], arrays["video_mask"])[0][order]
        other = net.videos(arrays["video"][order], arrays["video_mask"][order])[0]
    assert torch.allclose(one, other, atol=1e-6) == (layout == "fixed")
