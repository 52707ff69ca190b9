"""EMCL-Net: CLIP towers, temporal aggregation, text-conditioned pooling, the EM pass, cosine.

In: token ids and frames. Out: text features (B, D), frame features (B, F, D), and cosine scores of N candidates per
query in both directions. Features stay raw (not normalised): pooling weighs frames by raw inner products, as the
reference does.

Shape suffixes: B batch, Q queries, N candidates, F frames, L tokens, D channels, C colour, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clip.towers import ClipTowers, Precision, build_clip
from model.config import CaptionConfig, EMCLConfig, ModelConfig, QaConfig
from model.emcl.em import EMCL
from model.emcl.fast_pass import Factored, corrected_cosines
from model.emcl.pooling import (
    frame_logits,
    frame_weights,
    mean_pool,
    pool_by_captions,
    pool_stored_videos,
    pool_videos,
    unit_mean_pool,
)
from model.tasks.answering import AnswerHead
from model.tasks.captioning import CaptionHead
from model.temporal import build_temporal

Rerank = Literal["emcl", "none"]

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From texts (Q, N or 1, D), pooled videos (Q, N, D) and their cosines (Q, N) to other scores (Q, N)."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """``scores_QN``: cosines, -inf for masked candidates; ``frame_weights_QNF``: sum to 1 over real frames."""

    scores_QN: Tensor
    frame_weights_QNF: Tensor


class ScoringNet(nn.Module):
    """What scores features, whatever computed them: text-conditioned pooling, the EM pass, cosine. ``dim`` is D."""

    def __init__(self, config: ModelConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.emcl = EMCL(dim, config.emcl)

    @property
    def embed_dim(self) -> int:
        """D, the size of text and frame features."""
        return self.emcl.dim

    def set_emcl(self, config: EMCLConfig) -> None:
        """Score with another strength, kernel width or number of iterations; the state stays.

        Raises ``ValueError`` for a mode, number of bases or seed other than the state was made with.
        """
        own = self.config.emcl
        if (own.mode, own.num_bases, own.seed) != (config.mode, config.num_bases, config.seed):
            raise ValueError(
                f"EMCL's state was made with mode {own.mode}, {own.num_bases} bases and seed {own.seed}, got "
                f"{config.mode}, {config.num_bases} and {config.seed}; build another net for those"
            )
        self.config = self.config.model_copy(update={"emcl": config})
        self.emcl.config = config

    def pool(self, features_BFD: Tensor, mask_BF: Tensor) -> Tensor:
        """Stage-1 video vectors (B, D): masked mean of frame features, not normalised.

        With ``frame_average`` ``unit-mean`` it is the mean of unit frames, at unit norm.
        """
        pool = unit_mean_pool if self.config.frame_average == "unit-mean" else mean_pool
        return pool(features_BFD, mask_BF)

    def score_videos(
        self,
        text_QD: Tensor,
        features_QNFD: Tensor,
        mask_QNF: Tensor,
        candidate_mask_QN: Tensor | None = None,
        rerank: Rerank = "emcl",
        mix: Mix | None = None,
    ) -> Scores:
        """Score each text against its own N candidate videos, one EM pass per query over N + 1 rows.

        ``features_QNFD`` may be of any floating type, such as the half precision that they are stored in.
        ``rerank="none"`` leaves the pass out: cosine after text-conditioned pooling, which ``mix`` may change.
        A query's scores do not depend on the other queries, nor on masked candidates. Without gradients the fast
        equivalents are used (``model.emcl.fast_pass``, ``model.emcl.pooling``).
        """
        if self._is_scoring:
            pooled_QND, weights_QNF = pool_stored_videos(text_QD, features_QNFD, mask_QNF, self.config.pooling)
        else:
            pooled_QND, weights_QNF = pool_videos(text_QD, features_QNFD.float(), mask_QNF, self.config.pooling)
        rows = torch.cat([pooled_QND, text_QD[:, None]], dim=1)
        mask = _append_true(candidate_mask_QN, 1)
        if self._is_scoring:
            scores_QN = self._cosines(rows, mask, rerank, Factored.cosines_to_last)
        else:
            normalised = F.normalize(self._correct(rows, mask, rerank), dim=-1)
            scores_QN = torch.bmm(normalised[:, :-1], normalised[:, -1:].mT)[..., 0]
        if mix is not None:
            scores_QN = mix(text_QD[:, None], pooled_QND, scores_QN)
        return Scores(scores_QN=_mask_scores(scores_QN, candidate_mask_QN), frame_weights_QNF=weights_QNF)

    def score_captions(
        self,
        features_QFD: Tensor,
        mask_QF: Tensor,
        captions_QND: Tensor,
        candidate_mask_QN: Tensor | None = None,
        rerank: Rerank = "emcl",
        mix: Mix | None = None,
    ) -> Scores:
        """Score each video against its own N candidate captions, one EM pass per query over 2 N rows.

        The video is pooled once by each caption, so the pass sees N pooled videos and N captions.
        """
        pooled_QND, weights_QNF = pool_by_captions(captions_QND, features_QFD, mask_QF, self.config.pooling)
        rows = torch.cat([pooled_QND, captions_QND], dim=1)
        mask = None if candidate_mask_QN is None else candidate_mask_QN.repeat(1, 2)
        if self._is_scoring:
            scores_QN = self._cosines(rows, mask, rerank, Factored.cosines_of_halves)
        else:
            videos_QND, texts_QND = F.normalize(self._correct(rows, mask, rerank), dim=-1).chunk(2, dim=1)
            scores_QN = (videos_QND * texts_QND).sum(dim=-1)
        if mix is not None:
            scores_QN = mix(captions_QND, pooled_QND, scores_QN)
        return Scores(scores_QN=_mask_scores(scores_QN, candidate_mask_QN), frame_weights_QNF=weights_QNF)

    @property
    def _is_scoring(self) -> bool:
        """Whether no gradient is wanted and no state moves, so that the fast equivalents may be used."""
        return not self.training and not torch.is_grad_enabled()

    def _cosines(
        self, rows_QND: Tensor, mask_QN: Tensor | None, rerank: Rerank, which: Callable[[Factored], Tensor]
    ) -> Tensor:
        """What ``_correct`` and normalising lead to, without making the corrected rows."""
        return corrected_cosines(self.emcl if self._has_pass(rerank) else None, rows_QND, mask_QN, which)

    def _correct(self, rows_QND: Tensor, mask_QN: Tensor | None, rerank: Rerank) -> Tensor:
        return self.emcl(rows_QND, mask_QN) if self._has_pass(rerank) else rows_QND

    def _has_pass(self, rerank: Rerank) -> bool:
        """Whether there is a pass to run: at strength 0 scores are those of ``none`` to the last bit."""
        return _is_emcl(rerank) and (self.training or self.config.emcl.beta > 0)

    def score_matrix(self, text_TD: Tensor, features_VFD: Tensor, mask_VF: Tensor, rerank: Rerank = "emcl") -> Tensor:
        """Cosines (T, V) of all texts and videos in one pass over T·V + T rows: the reference's block, and training.

        Rows are in the reference's order: pooled videos text by text, then the texts. Memory is T·V·D.
        """
        texts, videos = len(text_TD), len(features_VFD)
        logits_TVF = torch.einsum("td,vfd->tvf", text_TD, features_VFD)
        if self.config.pooling.unit_scale is not None:
            text_norms, frame_norms = text_TD.norm(dim=-1)[:, None, None], features_VFD.norm(dim=-1)[None]
            logits_TVF = frame_logits(logits_TVF, text_norms, frame_norms, self.config.pooling)
        pooled_TVD = self._pool_all(logits_TVF, features_VFD, mask_VF)
        rows = self._correct(torch.cat([pooled_TVD.flatten(0, 1), text_TD])[None], None, rerank)[0]
        pooled_TVD = F.normalize(rows[: texts * videos], dim=-1).view(texts, videos, -1)
        return torch.bmm(pooled_TVD, F.normalize(rows[texts * videos :], dim=-1)[..., None])[..., 0]

    def _pool_all(self, logits_TVF: Tensor, features_VFD: Tensor, mask_VF: Tensor) -> Tensor:
        weights_TVF = frame_weights(logits_TVF, mask_VF[None].expand_as(logits_TVF), self.config.pooling)
        return torch.einsum("tvf,vfd->tvd", weights_TVF, features_VFD)


class EMCLNet(ScoringNet):
    """The whole model around given CLIP towers."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: ModelConfig, clip: ClipTowers) -> None:
        super().__init__(config, clip.embed_dim)
        self.clip = clip
        self.temporal = build_temporal(config.temporal, clip)
        self.register_buffer("image_mean", torch.tensor(clip.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(clip.image_std).view(3, 1, 1), persistent=False)
        self.captioner: CaptionHead | None = None
        if config.caption is not None and config.caption.words:
            self.attach_captioner(config.caption)
        self.answerer: AnswerHead | None = None
        if config.qa is not None and config.qa.answers:
            self.attach_answerer(config.qa)

    def attach_captioner(self, config: CaptionConfig) -> None:
        """Give the net an untrained caption head, in the place of the one that it may have."""
        self.config = self.config.model_copy(update={"caption": config})
        self.captioner = CaptionHead(self.embed_dim, config)

    def attach_answerer(self, config: QaConfig) -> None:
        """Give the net an untrained head that answers questions, in the place of the one that it may have."""
        self.config = self.config.model_copy(update={"qa": config})
        self.answerer = AnswerHead(self.embed_dim, config)

    def encode_text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Text features (B, D), float32, raw, of token ids (B, L) with a mask that is True for real tokens."""
        return self.clip.encode_text(ids_BL, mask_BL).float()

    def encode_video(self, frames_BFCHW: Tensor, mask_BF: Tensor) -> Tensor:
        """Frame features (B, F, D), float32, raw, zero on padding (except with the reference's mask ``after``).

        ``frames_BFCHW`` is uint8 in [0, 255], or floating and then already normalised with ``image_mean`` and
        ``image_std``. ``mask_BF`` is True for real frames, which come first. Raises ``ValueError`` for a video
        without a real frame.
        """
        mask_BF = mask_BF.bool()
        if not bool(mask_BF.any(dim=1).all()):
            raise ValueError("a video in this batch has no real frame in its mask; drop it before encoding")
        features_BFD: Tensor = self.temporal(self._encode_frames(frames_BFCHW, mask_BF), mask_BF).float()
        return features_BFD if self.config.pooling.mask == "after" else features_BFD * mask_BF[..., None]

    def _encode_frames(self, frames_BFCHW: Tensor, mask_BF: Tensor) -> Tensor:
        if self.config.pooling.mask == "after":  # padding has features here, of zeros in normalised space
            pixels = self._normalise(frames_BFCHW.flatten(0, 1)) * mask_BF.flatten()[:, None, None, None]
            return self.clip.encode_image(pixels).float().view(*mask_BF.shape, -1)
        real_RD = self.clip.encode_image(self._normalise(frames_BFCHW[mask_BF])).float()
        features_BFD = real_RD.new_zeros(*mask_BF.shape, real_RD.shape[-1])
        return features_BFD.masked_scatter(mask_BF[..., None], real_RD)

    def _normalise(self, pixels_NCHW: Tensor) -> Tensor:
        if pixels_NCHW.dtype != torch.uint8:
            return pixels_NCHW
        return (pixels_NCHW.float() / 255.0 - self.image_mean) / self.image_std


def _is_emcl(rerank: Rerank) -> bool:
    if rerank not in ("emcl", "none"):
        raise ValueError(f"rerank must be 'emcl' or 'none', got {rerank!r}")
    return rerank == "emcl"


def _append_true(mask_QN: Tensor | None, count: int) -> Tensor | None:
    if mask_QN is None:
        return None
    return F.pad(mask_QN, (0, count), value=True)


def _mask_scores(scores_QN: Tensor, mask_QN: Tensor | None) -> Tensor:
    return scores_QN if mask_QN is None else scores_QN.masked_fill(~mask_QN, -torch.inf)


def build_net(config: ModelConfig, *, precision: Precision = "fp32", device: str | torch.device = "cpu") -> EMCLNet:
    """Build towers and net; CLIP weights are loaded where ``config.clip.pretrained`` names them, else random."""
    net = EMCLNet(config, build_clip(config.clip)).to(device)
    net.clip.set_precision(precision)  # last, so that what starts from CLIP's weights starts from all their digits
    return net
