"""The CLIP towers: pixels and token ids in, embeddings out, through open_clip.

Any open_clip architecture works, by name with a pretrained tag or a local weights file, or from an open_clip model
dictionary. Embeddings are float32 and raw (not normalised): the scoring of EMCL-Net weighs frames by raw inner
products. Text of the plain CLIP class is encoded at its own length instead of the padded context, which gives the same
features for less work; other classes (CustomTextCLIP, SigLIP, CoCa) run their own ``encode_text`` on the full context.

Shape suffixes: N images, C colour, H height, W width, B texts, L tokens, D channels.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clip.compat import import_open_clip
from model.clip.preprocess import Preprocess
from model.clip.pretrained import ClipError, create_clip, preprocess_of
from model.clip.weights import tensor_digest
from model.config import ClipConfig

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DEFAULT_CONTEXT = 77  # open_clip's default context length


class TowerRunner(Protocol):
    """Who computes the towers: ``ClipTowers`` itself, or another runtime for the same weights
    (``model.runtime.choose``).
    """

    def image_features(self, pixels_NCHW: Tensor) -> Tensor:
        """Embed normalised pixels: (N, D), of any floating dtype."""

    def text_features(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Embed texts: (B, D), of any floating dtype. The first ``lengths_B`` tokens of each are real."""


class ClipTowers(nn.Module):
    """An image tower and a text tower with one embedding space.

    ``description`` is the open_clip model dictionary that rebuilds the towers without names, tags or network
    (``ClipConfig(custom=description)``).
    """

    def __init__(self, model: nn.Module, description: dict[str, Any]) -> None:
        super().__init__()
        self.model: Any = model
        self.description = description
        self.precision: Precision = "fp32"
        # Digests of the weights as they were before a conversion, which loses them (see model.checkpoint.fingerprint).
        self.original_digests: dict[str, bytes] = {}
        self.trims_text = _is_plain_clip(model, description)
        self._runner: TowerRunner | None = None
        # Convolutional towers train 12 times faster on a CPU in bf16 in this layout; a patch tower has one convolution.
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.get_submodule("visual").modules())
        self._layout = torch.channels_last if convolutions > 1 else torch.contiguous_format

    @property
    def embed_dim(self) -> int:
        """D, the size of both towers' embeddings."""
        return int(self.description["embed_dim"])

    @property
    def preprocess(self) -> Preprocess:
        """How frames become the pictures that the image tower was trained on."""
        size = self.model.visual.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return preprocess_of(self.description, height=int(height), width=int(width))

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Mean per colour, of pixels in [0, 1]."""
        red, green, blue = self.description["preprocess_cfg"]["mean"]
        return (red, green, blue)

    @property
    def image_std(self) -> tuple[float, float, float]:
        """Standard deviation per colour, of pixels in [0, 1]."""
        red, green, blue = self.description["preprocess_cfg"]["std"]
        return (red, green, blue)

    @property
    def context_length(self) -> int:
        """The most tokens that ``encode_text`` takes."""
        return int(self.description["text_cfg"].get("context_length", _DEFAULT_CONTEXT))

    @property
    def logit_scale(self) -> nn.Parameter:
        """Natural logarithm of the scale of the logits, a scalar."""
        parameter: nn.Parameter = self.model.logit_scale
        return parameter

    @property
    def text_blocks(self) -> list[nn.Module]:
        """The residual blocks of the text transformer, empty for a text tower that has none of open_clip's."""
        transformer = getattr(self._text_tower, "transformer", None)
        return list(getattr(transformer, "resblocks", []))

    @property
    def text_positions(self) -> Tensor | None:
        """Positional embedding of the text tower, (context length, width), or None if it has none."""
        positions: Tensor | None = getattr(self._text_tower, "positional_embedding", None)
        return positions

    @property
    def _text_tower(self) -> nn.Module:
        tower: nn.Module = getattr(self.model, "text", self.model)
        return tower

    def encode_image(self, pixels_NCHW: Tensor) -> Tensor:
        """Embed images (N, D), float32, raw, of floating pixels normalised with ``image_mean`` and ``image_std``."""
        return self._computing.image_features(pixels_NCHW).float()

    def encode_text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Embed texts (B, D), float32, raw. ``mask_BL`` is True for real tokens, which come first; the last is EOT.

        L may be anything up to the context length; the width of the padding changes nothing. Raises ``ValueError``
        for a longer L and for a mask that is not such a prefix.
        """
        length = ids_BL.shape[1]
        if length > self.context_length:
            raise ValueError(
                f"the text tower has {self.context_length} positions, got {length} tokens; lower tokenizer.max_words"
            )
        if self.trims_text:
            return self._computing.text_features(ids_BL, _text_lengths(mask_BL)).float()
        pad_id = self.description["text_cfg"].get("pad_id", 0)
        padded = F.pad(ids_BL, (0, self.context_length - length), value=pad_id)
        return self._computing.text_features(padded, mask_BL.sum(dim=1)).float()

    @property
    def _computing(self) -> TowerRunner:
        return self if self._runner is None else self._runner

    def run_by(self, runner: TowerRunner, *, keep_weights: bool) -> None:
        """Let ``runner`` compute the features from now on.

        Without ``keep_weights`` the parameters give their memory back: the towers can then neither be saved nor
        converted, and their fingerprint stays known (see ``original_digests``).
        """
        self._runner = runner
        if not keep_weights:
            self.keep_digests()
            self.model.to("meta")

    def keep_digests(self) -> None:
        """Remember the digests of all weights, before something is done to them that loses digits or the weights."""
        if not self.original_digests:
            self.original_digests = {name: tensor_digest(tensor) for name, tensor in self.state_dict().items()}

    def image_features(self, pixels_NCHW: Tensor) -> Tensor:
        """``encode_image`` by PyTorch, in the towers' precision."""
        pixels_NCHW = pixels_NCHW.to(DTYPES[self.precision], memory_format=self._layout)
        features: Tensor = self.model.encode_image(pixels_NCHW, normalize=False)
        return features

    def text_features(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """``encode_text`` by PyTorch, behind its checks, in the towers' precision."""
        if self.trims_text:
            return self._encode_plain(ids_BL, lengths_B)
        features: Tensor = self.model.encode_text(ids_BL, normalize=False)
        return features

    def _encode_plain(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """``open_clip.CLIP.encode_text`` at the length of the batch, pooled at the last real token (EOT).

        The reference also masks padded keys. Padding comes after EOT, where the causal mask hides it already, so
        every real token comes out the same without.
        """
        states_BLW = self.text_states(ids_BL)
        # Gathered, because indexing by two tensors cannot be exported for any batch.
        last_B1W = (lengths_B - 1)[:, None, None].expand(-1, -1, states_BLW.shape[-1])
        return self.project(self.model.ln_final(states_BLW.gather(1, last_B1W)[:, 0]))

    def text_states(self, ids_BL: Tensor) -> Tensor:
        """States (B, L, W) of all tokens, before the final norm."""
        model, length = self.model, ids_BL.shape[1]
        dtype = DTYPES[self.precision]
        states_BLW = model.token_embedding(ids_BL).to(dtype) + model.positional_embedding[:length].to(dtype)
        states: Tensor = model.transformer(states_BLW, attn_mask=model.attn_mask[:length, :length].contiguous())
        return states

    def text_tokens(self, ids_BL: Tensor) -> Tensor:
        """Embed all tokens of texts: (B, L, D), float32, raw. Raises ``ValueError`` if the tower's are not causal."""
        if not self.trims_text or self._runner is not None:
            raise ValueError(
                "features of single tokens need a CLIP text tower that PyTorch runs, causal, pooled at EOT"
            )
        return self.project(self.model.ln_final(self.text_states(ids_BL))).float()

    def project(self, states: Tensor) -> Tensor:
        """States to the shared space of texts and images."""
        projection = self.model.text_projection
        if projection is None:
            return states
        projected: Tensor = projection(states) if isinstance(projection, nn.Linear) else states @ projection
        return projected

    @torch.no_grad()
    def set_precision(self, precision: Precision) -> None:
        """Convert the weights for inference; outputs stay float32.

        Everything but normalisation layers and the logit scale is converted: OpenAI's and open_clip's mixed precision
        (timm towers as a whole, as open_clip does). All three run on the CPU. Measured for images with ViT-B/32 on one
        core with AVX512-BF16 but no fp16 instructions: bf16 4 times faster than fp32, fp16 4 times slower. Raises
        ``ClipError`` for an unknown name, or for towers that are converted already, whose lost digits cannot come back.
        """
        if precision not in get_args(Precision):
            raise ClipError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
        if precision == self.precision:
            return
        if self.precision != "fp32":
            raise ClipError(f"these towers are {self.precision} already; load them in fp32 to convert to {precision}")
        self.keep_digests()
        _convert(self.model, DTYPES[precision])
        self.precision = precision


def _text_lengths(mask_BL: Tensor) -> Tensor:
    mask_BL = mask_BL.bool()
    lengths_B = mask_BL.sum(dim=1)
    prefix_BL = torch.arange(mask_BL.shape[1], device=mask_BL.device) < lengths_B[:, None]
    if not bool(((mask_BL == prefix_BL).all(dim=1) & (lengths_B > 0)).all()):
        raise ValueError("mask_BL must be True for the first tokens of each text (at least one) and False after them")
    return lengths_B


def _is_plain_clip(model: nn.Module, description: dict[str, Any]) -> bool:
    """Whether the text tower is causal and pooled at EOT, so that what follows EOT cannot matter."""
    if not isinstance(model, import_open_clip().CLIP) or model.attn_mask is None:
        return False
    return model.text_pool_type == "argmax" and "hf_tokenizer_name" not in description["text_cfg"]


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    open_clip = import_open_clip()
    layers = open_clip.transformer
    timm_modules = {
        part
        for tower in model.modules()
        if isinstance(tower, open_clip.timm_model.TimmModel)
        for part in tower.modules()
    }
    for module in model.modules():
        if type(module) is layers.LayerNorm:
            module.__class__ = layers.LayerNormFp32  # same parameters, computes in float32 whatever the input
        if isinstance(module, (layers.LayerNormFp32, nn.BatchNorm2d)) and module not in timm_modules:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if module is not model or name not in ("logit_scale", "logit_bias"):
                parameter.data = parameter.data.to(dtype)
        if module in timm_modules:
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(dtype) if buffer.is_floating_point() else buffer)


def build_clip(
    config: ClipConfig,
    *,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    load_weights: bool = True,
) -> ClipTowers:
    """Build the towers that ``config`` describes, in evaluation mode.

    Without ``config.pretrained``, or with ``load_weights=False``, the weights are random. Raises what
    ``model.clip.pretrained.create_clip`` does.
    """
    model, description = create_clip(config, load_weights=load_weights)
    towers = ClipTowers(model, description).eval().to(device)
    towers.set_precision(precision)
    return towers
