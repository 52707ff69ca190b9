"""The caption head of a net: frame features in, captions out, and the loss that it is trained by.

    loss = Σ of -log p over real words / captions + weight · InfoNCE of emcl([v; c]), normalised

v is the mean over a video's frames of the encoder's outputs, c the mean over a caption's real words of the decoder's
hidden states. The paper does not say where EMCL acts in captioning: this place follows its own question answering, and
captions are written without a pass.

Shape suffixes: B captions or videos, F frames, C channels of a frame feature, L words, D channels, N rows.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import CaptionConfig
from model.emcl.em import EMCL
from model.heads.losses import symmetric_info_nce
from model.tasks.caption_model import BEGIN, END, PAD, UNKNOWN, VISUAL, Captioner, beam_search, caption_loss

_FIRST_WORD = VISUAL + 1


@dataclass(frozen=True, kw_only=True)
class WrittenCaption:
    """``score`` is the mean log-probability of its words, the end included: at most 0."""

    text: str
    score: float


def words_of(text: str) -> list[str]:
    """Cut a caption: lower case, at white space, without punctuation around words."""
    return [word for part in text.lower().split() if (word := part.strip(string.punctuation))]


def vocabulary(captions: Iterable[str], min_count: int) -> tuple[str, ...]:
    """Return the words that occur ``min_count`` times, the most frequent first. Raises ``ValueError`` for none."""
    counts = Counter(word for text in captions for word in words_of(text))
    words = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    if not words:
        raise ValueError(
            f"no word of the training captions occurs {min_count} times; lower model.caption.min_count or add captions"
        )
    return tuple(words)


def spread_frames(features_BFC: Tensor, mask_BF: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return at most ``most`` real frames of each video: the middles of as many equal parts, and their mask."""
    videos, longest = mask_BF.shape
    if longest <= most:
        return features_BFC, mask_BF
    count_B1 = mask_BF.sum(dim=1, keepdim=True)
    places_1M = torch.arange(most, device=mask_BF.device)[None]
    spread_BM = ((2 * places_1M + 1) * count_B1) // (2 * most)
    index_BM = torch.where(count_B1 > most, spread_BM, places_1M.expand(videos, -1))
    taken_BMC = features_BFC.gather(1, index_BM[..., None].expand(-1, -1, features_BFC.shape[-1]))
    return taken_BMC, mask_BF.gather(1, index_BM)


class CaptionHead(nn.Module):
    """Writes captions from frame features (B, F, ``feature_width``), raw, as a net or an index has them."""

    def __init__(self, feature_width: int, config: CaptionConfig) -> None:
        super().__init__()
        self.config = config
        self.captioner = Captioner(
            feature_width,
            _FIRST_WORD + len(config.words),
            config.dim,
            heads=config.heads,
            inner=config.inner,
            length=config.length,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
        self.emcl = EMCL(config.dim, config.emcl)
        self._ids = {word: number for number, word in enumerate(config.words, start=_FIRST_WORD)}

    def word_ids(self, captions: Sequence[str]) -> Tensor:
        """Return (B, L) of beginning, words, end and padding; longer captions are cut and end all the same."""
        ids_BL = torch.full((len(captions), self.config.length), PAD)
        for row, text in enumerate(captions):
            ids = [self._ids.get(word, UNKNOWN) for word in words_of(text)][: self.config.length - 2]
            ids_BL[row, : len(ids) + 2] = torch.tensor([BEGIN, *ids, END])
        return ids_BL

    def loss(
        self,
        features_BFC: Tensor,
        mask_BF: Tensor,
        ids_BL: Tensor,
        log_scale: Tensor,
        *,
        weight: float,
        joint_emcl: bool,
        known_BB: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch of captions and their videos' features. ``weight`` 0 leaves the contrast out.

        In training mode the EM pass also moves its state. Where ``known_BB`` is True
        (``model.heads.losses.known_pairs``), a caption and a video belong together.
        """
        features_BFC, mask_BF = self.take_frames(features_BFC, mask_BF)
        memory_BFD = self.captioner.encode(features_BFC)
        hidden_BLD = self.captioner.decode(memory_BFD, ids_BL[:, :-1], mask_BF)
        words = caption_loss(self.captioner.output(hidden_BLD), ids_BL[:, 1:])
        if weight == 0:
            return words
        rows_ND = torch.cat([_mean(memory_BFD, mask_BF), _mean(hidden_BLD, ids_BL[:, 1:] != PAD)])
        unit_ND = F.normalize(self.emcl(rows_ND[None])[0] if joint_emcl else rows_ND, dim=-1)
        video_BD, caption_BD = unit_ND.chunk(2)
        return words + weight * symmetric_info_nce(caption_BD @ video_BD.T, log_scale, known_BB)

    def take_frames(self, features_BFC: Tensor, mask_BF: Tensor) -> tuple[Tensor, Tensor]:
        """See ``spread_frames``."""
        return spread_frames(features_BFC, mask_BF, self.config.frames)

    @torch.no_grad()
    def write(
        self, features_BFC: Tensor, mask_BF: Tensor, *, size: int = 5, alpha: float = 1.0
    ) -> list[WrittenCaption]:
        """Return the best caption of each video by beam search; ``mask_BF`` is True for real frames, which come first.

        A caption does not depend on the other videos.
        """
        features_BFC, mask_BF = self.take_frames(features_BFC, mask_BF)
        written = []
        for features_FC, mask_F in zip(features_BFC, mask_BF, strict=True):
            (found,) = beam_search(self.captioner, features_FC[mask_F][None], size=size, alpha=alpha)
            text = " ".join(self.config.words[word - _FIRST_WORD] for word in found.ids if word >= _FIRST_WORD)
            written.append(WrittenCaption(text=text, score=found.score))
        return written


def _mean(tokens_BND: Tensor, mask_BN: Tensor) -> Tensor:
    kept = mask_BN[..., None].to(tokens_BND.dtype)
    return (tokens_BND * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
