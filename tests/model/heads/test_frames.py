"""EMCL-Net's scoring as a head is that of the net."""

import torch
from evaluation_support import build_encoder, random_corpus

from model.heads.frames import FramesBatch, FramesHead


def test_it_scores_as_the_net_does():
    encoder, corpus = build_encoder(), random_corpus()
    text, features, mask = (torch.from_numpy(part) for part in (corpus.text_TD, corpus.features_VFD, corpus.mask_VF))
    head = FramesHead(encoder.config.pooling)
    batch = FramesBatch(features_VFD=features, mask_VF=mask, text_TD=text)
    with torch.no_grad():
        for correct, rerank in ((None, "none"), (encoder.net.emcl, "emcl")):
            expected = encoder.net.score_matrix(text, features, mask, rerank)
            torch.testing.assert_close(head.similarity(head.corrected(batch, correct)), expected, atol=1e-6, rtol=0)
