"""The model behind a NumPy façade: what indexer and service use, so that neither handles tensors or devices.

In: texts, uint8 frames, features. Out: float32 arrays. Every call runs without autograd and may be made from
several threads. Shape suffixes as in ``model.net``.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.arrays import row_blocks
from model.checkpoint import fingerprint as net_fingerprint
from model.checkpoint import former_fingerprints, load_checkpoint, read_metadata
from model.clip import presets
from model.clip.compat import import_open_clip
from model.clip.preprocess import Preprocess
from model.clip.tokenizer import Tokenizer, build_tokenizer, rounded_up, text_buckets
from model.config import ClipConfig, EMCLConfig, ModelConfig, PoolingConfig, TemporalConfig
from model.emcl.correction import Correction, CorrectionSettings, load_settings
from model.emcl.em import EMCL, FrozenMap
from model.net import EMCLNet, Mix, Rerank, ScoringNet, build_net
from model.runtime.choose import PrecisionWish, RuntimeChoice, RuntimeWish
from model.runtime.cuda_graphs import GraphScorer
from model.runtime.install import install_runtime
from model.runtime.store import ExportStore, default_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bools = NDArray[np.bool_]

DEMO_CHECKPOINT = Path(__file__).parent / "assets" / "demo.safetensors"
# ViT-B-32 with the activation that OpenAI's weights want, also where they come from a local file that cannot say so.
DEFAULT_ARCHITECTURE, DEFAULT_PRETRAINED = "ViT-B-32-quickgelu", "openai"
TEXT_BATCH = 256  # texts encoded at once; bounds memory for callers that pass a whole corpus
TEXTS_AT_ONCE = 1 << 14  # texts cut into tokens and sorted at once
SCORE_ELEMENTS = 1 << 26  # frame features of one scoring call, 256 MiB in float32; more queries are scored in turns


@dataclass(frozen=True, kw_only=True)
class ScoreArrays:
    """``scores_QN``: cosines, -inf for masked candidates; ``frame_weights_QNF``: sum to 1 over real frames. float32."""

    scores_QN: Floats
    frame_weights_QNF: Floats


class Scorer:
    """Scores features on a device: fits and applies frozen maps, pools, scores candidates. Needs no towers."""

    def __init__(
        self,
        net: ScoringNet,
        *,
        fingerprint: str,
        device: torch.device,
        runtime: RuntimeChoice,
        calibrated: CorrectionSettings | None = None,
    ) -> None:
        """``calibrated`` is what `emcl calibrate` chose for hub and paired bases."""
        self.net = net.eval()
        self.calibrated = calibrated
        self.fingerprint = fingerprint
        self.device = device
        self.runtime = runtime
        self._graphs = GraphScorer(self.net, device) if device.type == "cuda" else None

    def with_emcl(self, config: EMCLConfig) -> Self:
        """Return the same model with another EMCL; its own state is kept if the configuration is its own."""
        if config == self.config.emcl:
            return self
        net = copy(self.net)
        # A module keeps its parts in this dictionary: without a copy of it the assignment would change both nets.
        net._modules = dict(self.net._modules)
        net.config = self.config.model_copy(update={"emcl": config})
        net.emcl = EMCL(self.dim, config).to(self.device)
        other = copy(self)
        other.net = net.eval()
        other._graphs = GraphScorer(net, self.device) if self._graphs is not None else None
        return other

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.net.config

    @property
    def dim(self) -> int:
        """D, the size of every feature."""
        return self.net.embed_dim

    @property
    def pooling(self) -> PoolingConfig:
        """How frames are pooled by a text."""
        return self.config.pooling

    @torch.inference_mode()
    def pool(self, features_BFD: NDArray[Any], mask_BF: Bools) -> Floats:
        """Stage-1 video vectors (B, D): masked mean of frame features, not normalised.

        A video's vector is the same to the last bit whatever the batch and its padding.
        """
        return self.net.pool(self._floats(features_BFD), self._tensor(mask_BF)).cpu().numpy()

    @torch.inference_mode()
    def fit_frozen_map(self, rows_ND: NDArray[Any]) -> FrozenMap:
        """Fit the frozen EMCL map on a reference corpus of pooled videos and captions (N, D).

        The rows are taken in an order of their own contents, so that the map does not depend on the order in which a
        corpus was indexed.
        """
        rows_ND = np.ascontiguousarray(rows_ND, dtype=np.float32)
        order_N = np.argsort(rows_ND.view(np.dtype((np.void, rows_ND.itemsize * rows_ND.shape[1]))).ravel())
        frozen = self.net.emcl.freeze(self._floats(rows_ND[order_N]))
        return FrozenMap.from_arrays(frozen.to_arrays())  # on the CPU, whatever the device

    @torch.inference_mode()
    def map_rows(self, frozen_map: FrozenMap, rows_ND: NDArray[Any]) -> Floats:
        """Apply a frozen map to rows (N, D) of any norm; returns L2-normalised rows, ready for FAISS."""
        return frozen_map.apply(torch.from_numpy(np.array(rows_ND, dtype=np.float32))).numpy()

    @torch.inference_mode()
    def score_videos(
        self,
        text_QD: NDArray[Any],
        features_QNFD: NDArray[Any],
        mask_QNF: Bools,
        candidate_mask_QN: Bools | None = None,
        rerank: Rerank = "emcl",
        *,
        correction: Correction | None = None,
    ) -> ScoreArrays:
        """Score each text against its own N candidate videos; see ``ScoringNet.score_videos``.

        A ``correction`` with a pass of its own mixes in its paired bases in the place of the published pass; hubs are
        left to the caller, who knows the candidates' numbers.
        """
        rerank, mix = _pass_of(rerank, correction)
        chunks = []
        for rows in row_blocks(features_QNFD.shape, SCORE_ELEMENTS):
            if self._graphs is not None and features_QNFD.size and mix is None:
                there_QN = None if candidate_mask_QN is None else candidate_mask_QN[rows]
                chunks.append(self._graphs.score(text_QD[rows], features_QNFD[rows], mask_QNF[rows], there_QN, rerank))
                continue
            scores = self.net.score_videos(
                self._floats(text_QD[rows]),
                self._tensor(features_QNFD[rows]),
                self._tensor(mask_QNF[rows]),
                None if candidate_mask_QN is None else self._tensor(candidate_mask_QN[rows]),
                rerank,
                mix,
            )
            chunks.append((scores.scores_QN.cpu().numpy(), scores.frame_weights_QNF.cpu().numpy()))
        return _join(chunks, features_QNFD.shape[:3])

    @torch.inference_mode()
    def score_captions(
        self,
        features_QFD: NDArray[Any],
        mask_QF: Bools,
        captions_QND: NDArray[Any],
        candidate_mask_QN: Bools | None = None,
        rerank: Rerank = "emcl",
        *,
        correction: Correction | None = None,
    ) -> ScoreArrays:
        """Score each video against its own N candidate captions; see ``score_videos``."""
        rerank, mix = _pass_of(rerank, correction)
        chunks = []
        for rows in row_blocks(captions_QND.shape, SCORE_ELEMENTS):
            scores = self.net.score_captions(
                self._floats(features_QFD[rows]),
                self._tensor(mask_QF[rows]),
                self._floats(captions_QND[rows]),
                None if candidate_mask_QN is None else self._tensor(candidate_mask_QN[rows]),
                rerank,
                mix,
            )
            chunks.append((scores.scores_QN.cpu().numpy(), scores.frame_weights_QNF.cpu().numpy()))
        return _join(chunks, (*captions_QND.shape[:2], mask_QF.shape[1]))

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # torch refuses to wrap arrays that are read-only, as memory-mapped ones are.
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)

    def _floats(self, array: NDArray[Any]) -> Tensor:
        return self._tensor(array).float()


class Encoder(Scorer):
    """A loaded model: a scorer that also encodes texts and frames."""

    net: EMCLNet

    def __init__(
        self,
        net: EMCLNet,
        tokenizer: Tokenizer,
        *,
        fingerprint: str,
        device: torch.device,
        runtime: RuntimeChoice | None = None,
        calibrated: CorrectionSettings | None = None,
    ) -> None:
        """``fingerprint`` is the checkpoint's, whatever ``runtime`` computes the towers of ``net``."""
        runtime = runtime or RuntimeChoice.both("torch", net.clip.precision, reason="by default")
        super().__init__(net, fingerprint=fingerprint, device=device, runtime=runtime, calibrated=calibrated)
        self.tokenizer = tokenizer

    def truncates(self, text: str) -> bool:
        """Whether the model reads only the beginning of ``text``, because it is longer than its context."""
        return self.tokenizer.truncates(text)

    def unknown_script(self, text: str) -> str | None:
        """The script in ``text`` that the model's tokenizer does not know (``Cyrillic``); None if it knows all."""
        return self.tokenizer.unknown_script(text)

    def former_fingerprints(self) -> frozenset[str]:
        """See ``model.checkpoint.former_fingerprints``; computed when asked, because it reads all weights."""
        return former_fingerprints(self.net)

    @property
    def preprocess(self) -> Preprocess:
        """How frames of any shape become the (H, W, 3) pictures that the model takes; call it with frames."""
        return self.net.clip.preprocess

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Raw text features (N, D). Texts of about the same number of tokens go together, whatever their order.

        A text costs what its own tokens cost (see ``model.clip.tokenizer``), and its features do not depend on the
        others beyond the rounding of floats.
        """
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            ids_BL, mask_BL = self.tokenizer(texts[start : start + TEXTS_AT_ONCE])
            lengths = mask_BL.sum(dim=1).tolist()
            for rows in text_buckets(lengths, most=TEXT_BATCH):
                ids, mask = ids_BL[rows], mask_BL[rows]
                if self.net.clip.trims_text:
                    length = min(rounded_up(max(lengths[row] for row in rows)), self.net.clip.context_length)
                    ids, mask = (F.pad(part, (0, length - part.shape[1])) for part in (ids, mask))  # or cut
                ids, mask = ids.to(self.device), mask.to(self.device)
                out[[start + row for row in rows]] = self.net.encode_text(ids, mask).cpu().numpy()
        return out

    @torch.inference_mode()
    def encode_videos(self, frames_BFHWC: NDArray[np.uint8], mask_BF: Bools) -> Floats:
        """Raw frame features (B, F, D) of uint8 RGB frames (B, F, H, W, 3); zero where the mask is False.

        On a CPU a video's features are the same to the last bit whatever others are in the batch: each is encoded at
        its own number of frames (with the reference's mask ``after``, at F), because the kernels that multiply matrices
        round by the whole shape. That is also no slower (ViT-B/32, 8 videos of 12 frames: 9.1 s of one core, 10.9 s
        together). A GPU takes the batch as a whole. Raises ``ValueError`` for another shape or dtype.
        """
        shape = self.preprocess.shape
        if frames_BFHWC.dtype != np.uint8 or frames_BFHWC.ndim != 5 or frames_BFHWC.shape[2:] != shape:
            raise ValueError(
                f"encode_videos expects uint8 frames (B, F, {shape[0]}, {shape[1]}, 3), got {frames_BFHWC.dtype} "
                f"{frames_BFHWC.shape}; make them with encoder.preprocess(frames)"
            )
        if self.device.type != "cpu":
            return self._encode_videos(frames_BFHWC, mask_BF)
        features_BFD = np.zeros((*mask_BF.shape, self.dim), dtype=np.float32)
        for row, mask_F in enumerate(mask_BF):
            count = len(mask_F) if self.config.pooling.mask == "after" else int(np.count_nonzero(mask_F))
            features_BFD[row, :count] = self._encode_videos(frames_BFHWC[row, None, :count], mask_F[None, :count])[0]
        return features_BFD

    def _encode_videos(self, frames_BFHWC: NDArray[np.uint8], mask_BF: Bools) -> Floats:
        frames_BFCHW = self._tensor(frames_BFHWC).permute(0, 1, 4, 2, 3)
        return self.net.encode_video(frames_BFCHW, self._tensor(mask_BF)).cpu().numpy()


def _pass_of(rerank: Rerank, correction: Correction | None) -> tuple[Rerank, Mix | None]:
    """What the net does: the published pass, none, or the mixture with paired bases."""
    if rerank == "none" or correction is None or not correction.has_own_pass:
        return rerank, None
    return "none", None if correction.paired is None else correction.mix


def _join(chunks: list[tuple[Floats, Floats]], shape_QNF: tuple[int, ...]) -> ScoreArrays:
    if not chunks:
        return ScoreArrays(
            scores_QN=np.empty(shape_QNF[:2], np.float32), frame_weights_QNF=np.empty(shape_QNF, np.float32)
        )
    return ScoreArrays(
        scores_QN=np.concatenate([scores for scores, _ in chunks]),
        frame_weights_QNF=np.concatenate([weights for _, weights in chunks]),
    )


def resolve_device(device: Literal["auto", "cpu", "cuda"] | str) -> torch.device:
    """Turn ``auto`` into CUDA where there is one, else the CPU. Raises ``ValueError`` for a device that is absent."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}, expected auto, cpu or cuda[:N]") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} was asked for, but this machine has {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return resolved


def load_encoder(
    spec: str | None = None,
    *,
    pretrained: str | None = None,
    device: str = "auto",
    precision: PrecisionWish = "fp32",
    runtime: RuntimeWish | None = None,
    exports: Path | None = None,
    emcl: Literal["calibrated", "configured"] = "calibrated",
) -> Encoder:
    """Load a model for indexing and serving.

    ``spec`` is ``demo`` (the shipped checkpoint), a preset (``small``, ``base``, ``large``, ``clip``), the path of a
    checkpoint or of a folder that `emcl models fetch` made, or an open_clip model name with its ``pretrained`` tag or
    weights file; ``None`` is CLIP ViT-B-32 with OpenAI's weights, frames averaged.
    With ``emcl="calibrated"`` EMCL has strength 0 unless `emcl calibrate` chose the checkpoint's setting on labelled
    pairs: on real CLIP features an uncalibrated one costs several points of R@1 (docs/method.md). ``"configured"``
    keeps the checkpoint's strength, for measuring it. ``runtime`` and ``precision`` say what computes the towers
    (``model.runtime.choose``), of exports in the folder ``exports`` (default: beside the checkpoint); without
    ``runtime`` PyTorch does, with the weights as they are, so that the net can be saved again. Raises ``ValueError``
    that says what is unknown, damaged, unreachable or impossible here, and ``FileNotFoundError`` for a path that leads
    nowhere.
    """
    target = resolve_device(device)
    spec, pretrained = presets.resolve(spec, pretrained)
    net = _load_net(spec, pretrained, target)
    if emcl == "calibrated" and not _is_calibrated(spec, net.config.emcl):
        net.set_emcl(net.config.emcl.model_copy(update={"beta": 0.0}))
    tokenizer = build_tokenizer(net.config.tokenizer, net.config.clip)
    fingerprint = net_fingerprint(net)
    chosen = calibrated_of(spec, fingerprint)
    if runtime is None:
        net.clip.set_precision("fp32" if precision == "auto" else precision)
        return Encoder(net, tokenizer, fingerprint=fingerprint, device=target, calibrated=chosen)
    store = export_store(spec, fingerprint, pretrained=pretrained, folder=exports)
    choice = install_runtime(net, store, wish=runtime, precision=precision, device=target)
    return Encoder(net, tokenizer, fingerprint=fingerprint, device=target, runtime=choice, calibrated=chosen)


def export_store(
    spec: str | None, fingerprint: str, *, pretrained: str | None = None, folder: Path | None = None
) -> ExportStore:
    """Return the store of a model's exports: in ``folder``, else beside its checkpoint, else in ``var/exports``."""
    is_checkpoint = spec is not None and spec != "demo" and _names_a_file(spec) and not presets.is_model_folder(spec)
    named = spec or f"{DEFAULT_ARCHITECTURE} --pretrained {pretrained or DEFAULT_PRETRAINED}"
    if spec is not None and pretrained is not None:
        named = f"{spec} --pretrained {pretrained}"
    return ExportStore(folder or default_folder(spec, is_checkpoint=is_checkpoint), fingerprint, model=named)


def _load_net(spec: str | None, pretrained: str | None, target: torch.device) -> EMCLNet:
    if spec is not None and presets.is_model_folder(spec):
        if pretrained is not None:
            raise ValueError(f"the folder {spec} has weights of its own; drop --pretrained")
        return _build_untrained(Path(spec).name, presets.config_of_folder(Path(spec)), target)
    if spec != "demo" and (spec is None or not _names_a_file(spec)):
        clip = _open_clip_config(spec, pretrained)
        return _build_untrained(f"{clip.architecture}/{clip.pretrained}", clip, target)
    if pretrained is not None:
        raise ValueError(f"--pretrained goes with an open_clip model name, not with the checkpoint {spec!r}; drop it")
    return load_checkpoint(DEMO_CHECKPOINT if spec == "demo" else Path(spec), device=target)


def calibrated_of(spec: str | None, fingerprint: str) -> CorrectionSettings | None:
    """What `emcl calibrate` wrote beside a checkpoint for hub and paired bases; None where it did not.

    Raises ``ValueError`` for a damaged file, or one of another model.
    """
    if spec is None or spec == "demo" or not _names_a_file(spec):
        return None
    path = correction_path(Path(spec))
    found = load_settings(path)
    if found is not None and found.fingerprint != fingerprint:
        raise ValueError(
            f"{path} was calibrated for checkpoint {found.fingerprint[:12]}, not {fingerprint[:12]}; "
            "run `emcl calibrate` again, or delete it"
        )
    return found


def correction_path(checkpoint: Path) -> Path:
    """Where the calibrated hub and paired bases of NAME.safetensors are: NAME.correction.npz."""
    stem = checkpoint.with_suffix("") if checkpoint.suffix in (".safetensors", ".json") else checkpoint
    return stem.with_name(f"{stem.name}.correction.npz")


def _is_calibrated(spec: str | None, config: EMCLConfig) -> bool:
    """Whether `emcl calibrate` chose this very setting for the checkpoint; named open_clip models never were."""
    if spec != "demo" and (spec is None or not _names_a_file(spec) or presets.is_model_folder(spec)):
        return False
    record = read_metadata(DEMO_CHECKPOINT if spec == "demo" else Path(spec)).get("calibration")
    return isinstance(record, dict) and record.get("emcl") == config.model_dump(mode="json")


def _names_a_file(spec: str) -> bool:
    return spec.endswith(".safetensors") or "/" in spec or Path(spec).exists()


def _open_clip_config(name: str | None, pretrained: str | None) -> ClipConfig:
    if name is None:
        name, pretrained = DEFAULT_ARCHITECTURE, pretrained or DEFAULT_PRETRAINED
    open_clip = import_open_clip()
    if name not in open_clip.list_models():
        raise ValueError(
            f"unknown model {name!r}: expected 'demo', a preset ({', '.join(presets.PRESETS)}), a checkpoint's path "
            "(NAME.safetensors) or an open_clip model name such as ViT-B-32; `emcl models` lists them"
        )
    if pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none on the hub"
        raise ValueError(f"model {name!r} needs weights: pass --pretrained with a tag ({tags}) or a local weights file")
    return ClipConfig(architecture=name, pretrained=pretrained)


def _build_untrained(name: str, clip: ClipConfig, target: torch.device) -> EMCLNet:
    """CLIP as it was trained on pictures: frames are averaged, or weighted at a third of its own logit scale."""
    net = build_net(ModelConfig(name=name, clip=clip, temporal=TemporalConfig(kind="mean")), device=target)
    pooling = net.config.pooling
    scale = float(net.clip.logit_scale.detach().exp()) / pooling.temperature
    net.config = net.config.model_copy(update={"pooling": pooling.model_copy(update={"unit_scale": scale})})
    return net
