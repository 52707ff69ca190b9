"""Configuration of a model: what a checkpoint's JSON file holds.

Every class is frozen and rejects unknown keys, so that a misspelt option is an error, not a silent default.
The numbers are those of EMCL-Net (NeurIPS 2022) unless a comment gives another reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class Config(BaseModel):
    """Base of all configuration values: immutable, keyword-only, unknown keys fail."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClipConfig(Config):
    """The CLIP towers, built through open_clip.

    ``architecture`` is an open_clip model name (``ViT-B-32-quickgelu``); ``pretrained`` a tag of open_clip's table
    or the path of a local weights file. ``custom`` replaces the named architecture by an open_clip model dictionary
    (``embed_dim``, ``vision_cfg``, ``text_cfg``, …), as the demo model and the tests need it.
    """

    architecture: str = "ViT-B-32-quickgelu"
    pretrained: str | None = None
    custom: dict[str, Any] | None = None


class TokenizerConfig(Config):
    """Text as the reference cuts it: SOT, at most ``max_words - 2`` pieces, EOT, padding masked."""

    max_words: int = Field(32, ge=3, le=1024)
    # None: the whole CLIP vocabulary. A number keeps only the first merges of CLIP's BPE, which still encodes every
    # text (bytes are in the vocabulary) and keeps the demo model's embedding table small.
    merges: int | None = Field(None, ge=0, le=48894)


class TemporalConfig(Config):
    """How frame embeddings become frame features (reference: ``seqTransf``, 4 layers)."""

    kind: Literal["mean", "transformer", "lstm"] = "transformer"
    layers: int = Field(4, ge=1)
    max_positions: int = Field(77, ge=1)


class PoolingConfig(Config):
    """Text-conditioned frame pooling: softmax over frames of ``text . frame / temperature``.

    Trained models learn the size of their features with it. For CLIPs as they were trained on pictures it is arbitrary,
    so they have ``unit_scale``: the softmax is over ``unit_scale * cosine(text, frame)``, whatever the features' size.
    """

    temperature: float = Field(3.0, gt=0)
    # A third of the model's own logit scale: for OpenAI's ViT-B/32, whose features have norms of about 10 and whose
    # logit scale is 100, that is about text . frame / 3, the reference's.
    unit_scale: float | None = Field(None, gt=0)
    # "before" masks padded frames before the softmax. "after" is the reference, in which padding keeps its share of
    # the denominator (reference behaviour 5).
    mask: Literal["before", "after"] = "before"


class EMCLConfig(Config):
    """The EM pass (paper, section 3; supplementary, table 2 for the values).

    ``beta`` is the weight of the reconstruction. In ``reference`` mode it multiplies the raw reconstruction; in
    ``channel`` mode it is *relative*: the ratio of the correction's mean row norm to the features'. ``sigma`` divides
    the inner product of a channel and a base. In ``channel`` mode channels are scaled to unit RMS norm first, so
    that one ``sigma`` means the same for 100 rows and for 100,000. With ``sigma`` 1 the EM melts all bases into two
    there as well: a distinct start is not enough, the kernel must be narrow (measured: 2 of 32 at 0.3, 19 at 0.1).
    """

    mode: Literal["reference", "channel"] = "channel"
    num_bases: int = Field(32, ge=1)
    iterations: int = Field(9, ge=1)
    sigma: float = Field(0.1, gt=0)
    beta: float = Field(0.1, ge=0)
    momentum: float = Field(0.9, ge=0, le=1)
    seed: int = 0

    @classmethod
    def reference(cls, **changes: Any) -> EMCLConfig:
        """The released EMCL-Net values: K 32, 9 iterations, sigma 1, beta 3, momentum 0.9."""
        return cls(**{"mode": "reference", "sigma": 1.0, "beta": 3.0, **changes})


SampleFps = Annotated[float, Field(gt=0, le=240)]
MaxFrames = Annotated[int, Field(ge=1, le=512)]
Strategy = Literal["uniform", "keyframes"]


class SamplingConfig(Config):
    """Which frames of a window are taken (see ``model.video.sampling``)."""

    sample_fps: SampleFps = 1.0
    max_frames: MaxFrames = 12
    strategy: Strategy = "uniform"


class SearchConfig(Config):
    """Ranking settings besides EMCL, which ``emcl calibrate`` chooses. Not part of the fingerprint.

    ``candidates`` is the number of candidates for reranking if a query has none. ``dual_softmax_temperature`` is
    that of the evaluation's dual softmax, the reference's 0.01 unless calibrated.
    """

    candidates: int = Field(100, ge=1)
    dual_softmax_temperature: float = Field(0.01, gt=0)


class CaptionConfig(Config):
    """A captioner over the model's frame features (``model.tasks.captioning``); sizes as released by DCD's authors.

    ``words`` is what it can write. A training takes them from its captions: those that occur ``min_count`` times.
    ``emcl`` acts in the training's contrast only, on a video and a caption at a time; its K, iterations, sigma and beta
    are those of the paper's retrieval, as no source states them for captions.
    """

    words: tuple[str, ...] = ()
    min_count: int = Field(3, ge=1)
    dim: int = Field(512, ge=1)
    heads: int = Field(8, ge=1)
    inner: int = Field(2048, ge=1)
    # Most words of a caption, its beginning and its end included.
    length: int = Field(30, ge=3, le=512)
    # Most frames that are read, evenly spread over a video.
    frames: int = Field(28, ge=1, le=512)
    dropout: float = Field(0.5, ge=0, lt=1)
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    emcl: EMCLConfig = EMCLConfig.reference()

    @model_validator(mode="after")
    def _heads_divide(self) -> CaptionConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of the {self.heads} heads of the captioner")
        return self


class QaConfig(Config):
    """A head that answers questions (``model.tasks.answering``); sizes as released, for CLIP's 512 channels.

    ``answers`` is what it can answer. A training takes them from its questions, the ``most_answers`` most frequent, or
    from the file that it names. ``emcl`` acts in the training's contrast only; its values are the released defaults.
    """

    answers: tuple[str, ...] = ()
    most_answers: int = Field(1500, ge=2)
    layers: int = Field(4, ge=1)
    # None: one head for 64 channels.
    heads: int | None = Field(None, ge=1)
    projected: int = Field(2048, ge=1)
    hidden: int = Field(8192, ge=1)
    # Most frames that are read, evenly spread over a video.
    frames: int = Field(12, ge=1, le=512)
    dropout: float = Field(0.1, ge=0, lt=1)
    emcl: EMCLConfig = EMCLConfig.reference(num_bases=16, iterations=5, beta=1.0)


class ModelConfig(Config):
    """Everything that is needed to rebuild a model around its weights."""

    name: str = "emcl-net"
    clip: ClipConfig = ClipConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    temporal: TemporalConfig = TemporalConfig()
    pooling: PoolingConfig = PoolingConfig()
    # How stage 1 averages frames: as they are, or each at unit norm, as CLIP4Clip was trained.
    frame_average: Literal["mean", "unit-mean"] = "mean"
    emcl: EMCLConfig = EMCLConfig()
    sampling: SamplingConfig = SamplingConfig()
    search: SearchConfig = SearchConfig()
    # Heads for other tasks than retrieval. They read stored features and change none: no part of the fingerprint.
    caption: CaptionConfig | None = None
    qa: QaConfig | None = None

    @model_validator(mode="after")
    def _frames_have_positions(self) -> ModelConfig:
        if self.temporal.kind == "transformer" and self.sampling.max_frames > self.temporal.max_positions:
            raise ValueError(
                f"sampling.max_frames is {self.sampling.max_frames}, but the temporal transformer has "
                f"{self.temporal.max_positions} frame positions; lower max_frames or raise temporal.max_positions"
            )
        return self


def problems_of(error: ValidationError) -> str:
    """Describe every wrong key and its problem in one line."""
    return "; ".join(": ".join(filter(None, (".".join(map(str, p["loc"])), p["msg"]))) for p in error.errors())


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file whose top level is a mapping.

    Raises ``FileNotFoundError`` or ``ValueError`` that names the file.
    """
    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not readable as {path.suffix.lstrip('.') or 'YAML'}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a mapping of settings, got {type(value).__name__}")
    return value
