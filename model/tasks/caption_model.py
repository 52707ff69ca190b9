"""A captioner: frame features in, words out. The Transformer captioner of DCD (arXiv 2111.15162), to put EMCL on.

    memory = norm(linear(frames))                              no positions, no mask
    words  = norm(embedding + position) → one post-norm decoder layer → linear without bias
    loss   = Σ of -log p over real words / videos in the batch

Beam search ranks finished captions by log-probability / length^alpha. Released mistakes, only with ``released=True``:
padding, the unknown word and the mask token can be generated; the first word is predicted from padding
instead of ``BEGIN``, which training never shows; and the search stops when enough captions have ended, which short
unlikely ones do before a long likely one.

Shape suffixes: B videos, F frames, C channels of a feature, L words, D channels, W words of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.temporal import REFERENCE_EPSILON

PAD, UNKNOWN, BEGIN, END, MASK_WORD, VISUAL = range(6)
NEVER_WORDS = (PAD, UNKNOWN, BEGIN, MASK_WORD, VISUAL)

_FINISHED = -1e20  # log-probability of going on after the end; the released value


class Captioner(nn.Module):
    """Sizes as released: D 512, 8 heads, ``inner`` 2048, 30 words, dropout 0.5 and 0.1 in attention."""

    def __init__(
        self,
        feature_width: int,
        vocabulary: int,
        dim: int = 512,
        *,
        heads: int = 8,
        inner: int = 2048,
        length: int = 30,
        dropout: float = 0.5,
        attention_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.length = length
        self.encoder = nn.Sequential(nn.Linear(feature_width, dim), nn.LayerNorm(dim), nn.Dropout(dropout))
        self.words = nn.Embedding(vocabulary, dim, padding_idx=PAD)
        self.positions = nn.Embedding(length, dim)
        self.norm = nn.LayerNorm(dim, eps=REFERENCE_EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.layer = nn.TransformerDecoderLayer(
            dim, heads, inner, dropout, layer_norm_eps=REFERENCE_EPSILON, batch_first=True
        )
        for attention in (self.layer.self_attn, self.layer.multihead_attn):
            attention.dropout = attention_dropout
        self.output = nn.Linear(dim, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        with torch.no_grad():
            self.words.weight[PAD].zero_()

    def encode(self, frames_BFC: Tensor) -> Tensor:
        """Return the memory (B, F, D)."""
        memory_BFD: Tensor = self.encoder(frames_BFC)
        return memory_BFD

    def decode(
        self, memory_BFD: Tensor, words_BL: Tensor, mask_BF: Tensor | None = None, *, hide_padding: bool = True
    ) -> Tensor:
        """Return hidden states (B, L, D) after each word of captions that begin with ``BEGIN``.

        ``mask_BF`` is True for real frames; the released code has none, as its videos are equally long.

        Raises ``ValueError`` for more words than there are positions.
        """
        length = words_BL.shape[1]
        if length > self.length:
            raise ValueError(f"the captioner has {self.length} positions, got {length} words")
        tokens_BLD = self.dropout(self.norm(self.words(words_BL) + self.positions.weight[:length]))
        later_LL = torch.ones(length, length, dtype=torch.bool, device=words_BL.device).triu(1)
        padding_BL = words_BL == PAD if hide_padding else None
        hidden_BLD: Tensor = self.layer(
            tokens_BLD,
            memory_BFD,
            tgt_mask=later_LL,
            tgt_key_padding_mask=padding_BL,
            memory_key_padding_mask=None if mask_BF is None else ~mask_BF,
        )
        return hidden_BLD

    def forward(self, frames_BFC: Tensor, words_BL: Tensor) -> Tensor:
        """Return the logits (B, L, W) of the word after each."""
        logits_BLW: Tensor = self.output(self.decode(self.encode(frames_BFC), words_BL))
        return logits_BLW


def caption_loss(logits_BLW: Tensor, labels_BL: Tensor) -> Tensor:
    """Return the sum over real words of -log p, divided by the number of captions and not of words, as released."""
    total = F.cross_entropy(logits_BLW.flatten(0, 1), labels_BL.flatten(), ignore_index=PAD, reduction="sum")
    return total / len(labels_BL)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Word ids, ``END`` included where it was reached, and log-probability / length^alpha."""

    ids: tuple[int, ...]
    score: float


@torch.no_grad()
def beam_search(
    net: Captioner,
    frames_BFC: Tensor,
    *,
    size: int = 5,
    alpha: float = 1.0,
    released: bool = False,
) -> list[Caption]:
    """Return the best caption of each video.

    Search ends when ``size`` captions have ended and no unfinished one can become better than the best of them, or at
    the last position; if none has ended, the unfinished ones count.
    """
    memory_BFD = net.encode(frames_BFC)
    return [_search(net, memory_FD, size, alpha, released=released) for memory_FD in memory_BFD]


def _search(net: Captioner, memory_FD: Tensor, size: int, alpha: float, *, released: bool) -> Caption:
    device = memory_FD.device
    beams_KL = torch.full((1, 1), BEGIN, dtype=torch.long, device=device)
    scores_K = torch.zeros(1, device=device)
    finished: list[tuple[float, Tensor]] = []
    live_K = scores_K
    while beams_KL.shape[1] < net.length and not _is_over(finished, live_K, size, alpha, net.length, released=released):
        first = released and beams_KL.shape[1] == 1
        read_KL = torch.full_like(beams_KL, PAD) if first else beams_KL
        hidden_KLD = net.decode(memory_FD.expand(len(beams_KL), -1, -1), read_KL, hide_padding=not first)
        log_KW = F.log_softmax(net.output(hidden_KLD[:, -1]), dim=-1)
        if not released:
            log_KW[:, list(NEVER_WORDS)] = _FINISHED
        total_KW = (scores_K[:, None] + log_KW).masked_fill((beams_KL[:, -1] == END)[:, None], _FINISHED)
        scores_K, places_K = total_KW.flatten().topk(min(size, total_KW.numel()))
        words_K = places_K % total_KW.shape[1]
        beams_KL = torch.cat([beams_KL[places_K // total_KW.shape[1]], words_K[:, None]], dim=1)
        live_K = scores_K.masked_fill(beams_KL[:, -1] == END, -torch.inf)
        for score, beam_L in zip(scores_K.tolist(), beams_KL, strict=True):
            if int(beam_L[-1]) == END:
                finished.append((score, beam_L))
    found = finished or list(zip(scores_K.tolist(), beams_KL, strict=True))
    best, beam_L = max(_ranked(found, alpha), key=lambda pair: pair[0])
    return Caption(ids=tuple(beam_L[1:].tolist()), score=best)


def _ranked(found: list[tuple[float, Tensor]], alpha: float) -> list[tuple[float, Tensor]]:
    return [(score / (len(beam_L) - 1) ** alpha, beam_L) for score, beam_L in found]


def _is_over(
    finished: list[tuple[float, Tensor]], live_K: Tensor, size: int, alpha: float, length: int, *, released: bool
) -> bool:
    """Whether to stop; an unfinished caption becomes at best as likely as it is, at the greatest length."""
    if released or len(finished) < size:
        return len(finished) >= size
    hoped = float(live_K.max()) / (length - 1) ** alpha
    return bool(hoped <= max(score for score, _ in _ranked(finished, alpha)))
