"""The tasks of a training: the parts of a step that differ between them. Everything else is in the loop.

    encode      the clips of this process → tensors with a row for each, through which gradients flow
    targets     what else the loss needs of each clip, in numbers
    loss        of the whole batch, gathered from all processes; the same on each of them
    validate    figures of the validation clips, and the one that models are chosen by

``retrieval`` trains the net itself; ``captioning`` and ``qa`` a head on its features.

Shape suffixes: B clips, F frames, D channels, L words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.clip.tokenizer import Tokenizer
from model.data.batches import Batch, TrainingData, frames_for, pad_frames
from model.data.msrvtt_qa import read_answers
from model.emcl.em import EMCL
from model.emcl.pairwise_scores import score_all_pairs
from model.evaluate.answering import AnswerFigures, encode_questions
from model.evaluate.captioning import CaptionFigures
from model.evaluate.metrics import evaluate_similarity
from model.heads.losses import known_pairs, symmetric_info_nce
from model.net import EMCLNet
from model.tasks.answering import AnswerHead, frequent_answers
from model.tasks.captioning import CaptionHead, vocabulary
from model.train.config import TrainConfig
from model.train.grad_cache import encode_batch

Metrics = Mapping[str, Mapping[str, float]]
Context = Callable[[], AbstractContextManager[Any]]


def contrastive_loss(
    net: EMCLNet,
    text_BD: Tensor,
    features_BFD: Tensor,
    mask_BF: Tensor,
    *,
    joint_emcl: bool,
    identities_B2: Tensor | None = None,
) -> Tensor:
    """Return the loss of a batch: text-conditioned pooling of all pairs, with the EM pass if ``joint_emcl``, cosine.

    Symmetric InfoNCE over the cosines (EMCL-Net, reference §2.3 and §2.4): text i and video i are a pair, the target of
    their row and column. All others are negatives, except pairs known to belong together: two captions of one video, or
    two videos with one caption (``model.heads.losses.known_pairs``), which are left out of the softmax's denominator,
    neither pulled nor pushed. ``identities_B2`` (int64) marks them; None makes negatives of them all, as the reference
    does. In training mode the EM pass also moves the EMCL state by its momentum, once per call.
    """
    similarity_BB = net.score_matrix(text_BD, features_BFD, mask_BF, rerank="emcl" if joint_emcl else "none")
    known_BB = None if identities_B2 is None else known_pairs(identities_B2)
    return symmetric_info_nce(similarity_BB, net.clip.logit_scale, known_BB)


class Task(ABC):
    """``chosen_by`` names what models are chosen by, for people; more of it is better."""

    chosen_by: str

    def __init__(self, config: TrainConfig, net: EMCLNet, tokenizer: Tokenizer) -> None:
        self.config = config
        self.net = net
        self.tokenizer = tokenizer

    @property
    @abstractmethod
    def emcl(self) -> EMCL:
        """The EM pass of the loss."""

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """What is trained where the encoder is frozen, else a part of it."""

    @abstractmethod
    def encode(self, batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
        """Return features, one row for each clip; other sizes are the same in every process."""

    @abstractmethod
    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the loss compares the features with, one row for each clip."""

    @abstractmethod
    def loss(self, features: tuple[Tensor, ...], targets: tuple[Tensor, ...], identities_B2: Tensor | None) -> Tensor:
        """Return the loss of the whole batch."""

    @abstractmethod
    def validate(self, batches: Iterator[Batch], device: torch.device, encoding: Context) -> Metrics | None:
        """Return figures, None if there are no validation clips. ``encoding`` makes the context of the encoders."""

    @abstractmethod
    def score(self, metrics: Metrics) -> float:
        """Return what models are chosen by."""

    @abstractmethod
    def summary(self, metrics: Metrics) -> str:
        """Describe the figures in a line."""


class Retrieval(Task):
    """Texts and videos that belong together are near."""

    chosen_by = "R@1, text to video"

    @property
    def emcl(self) -> EMCL:
        """See ``Task``."""
        return self.net.emcl

    @property
    def trained(self) -> nn.Module:
        """See ``Task``."""
        return self.net

    def encode(self, batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
        """Return texts (B, D) and frame features (B, F, D)."""
        text_BD, features_BFD, _ = encode_batch(self.net, self.tokenizer, batch, device)
        return text_BD, features_BFD

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the mask of frames (B, F)."""
        return (torch.from_numpy(batch.mask_BF),)

    def loss(self, features: tuple[Tensor, ...], targets: tuple[Tensor, ...], identities_B2: Tensor | None) -> Tensor:
        """See ``contrastive_loss``."""
        return contrastive_loss(
            self.net, *features, *targets, joint_emcl=self.config.joint_emcl, identities_B2=identities_B2
        )

    def validate(self, batches: Iterator[Batch], device: torch.device, encoding: Context) -> Metrics | None:
        """See ``model.train.tasks``."""
        return validate(self.net, self.tokenizer, batches, device, encoding)

    def score(self, metrics: Metrics) -> float:
        """See ``Task``."""
        return metrics["text_to_video"]["R@1"]

    def summary(self, metrics: Metrics) -> str:
        """See ``Task``."""
        both = [metrics[way]["R@1"] for way in ("text_to_video", "video_to_text")]
        return "R@1 {:.1f} text to video, {:.1f} video to text".format(*both)


def encode_frames(net: EMCLNet, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Encode the videos of a batch alone: frame features (B, F, D) and mask (B, F)."""
    batch = pad_frames(batch, frames_for(net.config, batch.mask_BF.shape[1]))
    frames_BFCHW = torch.from_numpy(batch.frames_BFHWC).to(device).permute(0, 1, 4, 2, 3)
    mask_BF = torch.from_numpy(batch.mask_BF).to(device)
    return net.encode_video(frames_BFCHW, mask_BF), mask_BF


class HeadTask(Task):
    """A task with a head of its own on top of the net's features."""

    @property
    @abstractmethod
    def head(self) -> CaptionHead | AnswerHead:
        """The head that is trained."""

    @property
    def emcl(self) -> EMCL:
        """See ``Task``."""
        return self.head.emcl

    @property
    def trained(self) -> nn.Module:
        """See ``Task``."""
        return self.head


class Captioning(HeadTask):
    """The words of a clip's caption, one after the other, from its frame features."""

    chosen_by = "BLEU-4 + ROUGE-L + CIDEr"

    @property
    def head(self) -> CaptionHead:
        """The head that is trained."""
        assert self.net.captioner is not None  # build_task made it
        return self.net.captioner

    def encode(self, batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
        """Return frame features (B, F, D)."""
        return (encode_frames(self.net, batch, device)[0],)

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the mask of frames (B, F) and word ids (B, L)."""
        return torch.from_numpy(batch.mask_BF), self.head.word_ids(batch.captions)

    def loss(self, features: tuple[Tensor, ...], targets: tuple[Tensor, ...], identities_B2: Tensor | None) -> Tensor:
        """See ``CaptionHead.loss``."""
        (features_BFD,), (mask_BF, ids_BL) = features, targets
        return self.head.loss(
            features_BFD,
            mask_BF,
            ids_BL,
            self.net.clip.logit_scale,
            weight=self.config.contrast_weight_or_default,
            joint_emcl=self.config.joint_emcl,
            known_BB=None if identities_B2 is None else known_pairs(identities_B2),
        )

    @torch.no_grad()
    def validate(self, batches: Iterator[Batch], device: torch.device, encoding: Context) -> Metrics | None:
        """Write a caption for each clip and compare it with all of the clip's own."""
        figures = CaptionFigures()
        with evaluating(self.net):
            for batch in batches:
                with encoding():
                    features_BFD, mask_BF = encode_frames(self.net, batch, device)
                figures.add([caption.text for caption in self.head.write(features_BFD, mask_BF)], batch.references)
        return figures.metrics()

    def score(self, metrics: Metrics) -> float:
        """The sum of the published selection without METEOR, which needs Java."""
        return sum(metrics["captions"][name] for name in ("BLEU-4", "ROUGE-L", "CIDEr")) / 100

    def summary(self, metrics: Metrics) -> str:
        """See ``Task``."""
        return ", ".join(f"{name} {metrics['captions'][name]:.1f}" for name in ("BLEU-4", "ROUGE-L", "CIDEr"))


class Answering(HeadTask):
    """The answers of questions about a clip, from its frame features and the question's tokens."""

    chosen_by = "top-1"

    @property
    def head(self) -> AnswerHead:
        """The head that is trained."""
        assert self.net.answerer is not None  # build_task made it
        return self.net.answerer

    def encode(self, batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
        """Return frame features (B, F, D) and the questions' token features (B, L, D)."""
        words_BLD, _ = encode_questions(self.net, self.tokenizer, batch.captions, device)
        return encode_frames(self.net, batch, device)[0], words_BLD

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the masks of frames (B, F) and tokens (B, L), and answers' numbers (B)."""
        word_mask_BL = self.tokenizer(batch.captions, pad_to="max")[1]
        return torch.from_numpy(batch.mask_BF), word_mask_BL, self.head.labels([q.answer for (q,) in batch.questions])

    def loss(self, features: tuple[Tensor, ...], targets: tuple[Tensor, ...], identities_B2: Tensor | None) -> Tensor:
        """See ``AnswerHead.loss``."""
        (features_BFD, words_BLD), (mask_BF, word_mask_BL, labels_B) = features, targets
        return self.head.loss(
            features_BFD,
            mask_BF,
            words_BLD,
            word_mask_BL,
            labels_B,
            self.net.clip.logit_scale,
            weight=self.config.contrast_weight_or_default,
            joint_emcl=self.config.joint_emcl,
            known_BB=None if identities_B2 is None else known_pairs(identities_B2),
        )

    @torch.no_grad()
    def validate(self, batches: Iterator[Batch], device: torch.device, encoding: Context) -> Metrics | None:
        """Answer all questions about each clip."""
        figures = AnswerFigures(self.head)
        with evaluating(self.net):
            for batch in batches:
                rows = torch.tensor([row for row, asked in enumerate(batch.questions) for _ in asked])
                questions = [question for asked in batch.questions for question in asked]
                with encoding():
                    features_BFD, mask_BF = encode_frames(self.net, batch, device)
                    words_QLD, word_mask_QL = encode_questions(
                        self.net, self.tokenizer, [question.text for question in questions], device
                    )
                rows = rows.to(device)
                figures.add(questions, self.head.logits(features_BFD[rows], mask_BF[rows], words_QLD, word_mask_QL)[0])
        return figures.metrics()

    def score(self, metrics: Metrics) -> float:
        """Percent of all questions; those whose answer is not in the list count as wrong."""
        return metrics["questions"]["top-1"]

    def summary(self, metrics: Metrics) -> str:
        """See ``Task``."""
        found = metrics["questions"]
        return f"top-1 {found['top-1']:.1f}, top-5 {found['top-5']:.1f}, most frequent answer {found['floor']:.1f}"


def build_task(config: TrainConfig, net: EMCLNet, tokenizer: Tokenizer, data: TrainingData) -> Task:
    """Build the task of a run, and the head that it trains, with a vocabulary from the training captions."""
    if config.task == "retrieval":
        return Retrieval(config, net, tokenizer)
    if config.task == "qa":
        assert config.model.qa is not None  # the configuration refuses a task without its head
        files = config.questions
        if files is not None and files.answers is not None:
            answers = read_answers(files.answers)
        else:
            answers = frequent_answers(data.answers(), config.model.qa.most_answers)
        net.attach_answerer(config.model.qa.model_copy(update={"answers": answers}))
        return Answering(config, net, tokenizer)
    assert config.model.caption is not None
    words = vocabulary(data.texts(), config.model.caption.min_count)
    net.attach_captioner(config.model.caption.model_copy(update={"words": words}))
    return Captioning(config, net, tokenizer)


def join_padded(parts: list[Tensor]) -> Tensor:
    """Concatenate tensors (B, F, …) of different F, padded with zeros to the longest."""
    longest = max(part.shape[1] for part in parts)
    padded = []
    for part in parts:
        filler = part.new_zeros(part.shape[0], longest - part.shape[1], *part.shape[2:])
        padded.append(torch.cat([part, filler], dim=1))
    return torch.cat(padded)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put the net into evaluation mode within the block, and every module of it back into its own mode after it."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def validate(
    net: EMCLNet,
    tokenizer: Tokenizer,
    batches: Iterator[Batch],
    device: torch.device,
    encoding: Callable[[], AbstractContextManager[Any]],
) -> dict[str, dict[str, float]] | None:
    """Return the metrics of both directions, None if there are no validation clips. Leaves the net's mode as it was.

    ``encoding`` makes the context of the encoders, such as autocast. Scores are float32: in bf16 they would tie.
    """
    with evaluating(net):
        with encoding():
            encoded = [encode_batch(net, tokenizer, batch, device) for batch in batches]
        if not encoded:
            return None
        text_TD = torch.cat([text for text, _, _ in encoded])
        features_VFD = join_padded([features for _, features, _ in encoded])
        mask_VF = join_padded([mask for _, _, mask in encoded])
    similarity = score_all_pairs(text_TD, features_VFD, mask_VF, net.config.pooling).numpy()
    return {
        "text_to_video": evaluate_similarity(similarity).as_dict(),
        "video_to_text": evaluate_similarity(similarity.T).as_dict(),
    }
