"""Exports of the towers for onnxruntime: trace, write, compare with fp32 (the guard), activate.

In: a checkpoint as ``load_encoder`` names it. Out: files in an ``ExportStore``, or a report that says why not. The
image and the text tower are exported, each for any number of inputs and texts of any length; temporal aggregation,
pooling and EMCL stay with PyTorch.

The guard compares on generated scenes, or on the user's own videos and captions (``--samples``). Generated scenes are
the demo corpus. The demo model was trained on it; for another CLIP they are simple pictures and sentences, which show
whether a runtime computes the same, but hardly whether it ranks the user's videos as well. Judge an int8 export for
production with ``--samples``.

Exported towers take plain tensors, with attention spelt out: PyTorch's own attention takes another path in inference
than in training, and its tracer fixes batch and length to those of the sample. So each one is replaced for the time of
an export, weights shared, by the same arithmetic in a few operations whose shapes follow the input.

Shape suffixes: B texts, L tokens, N images, C colour, H height, W width, D channels.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.clip.compat import import_open_clip
from model.clip.preprocess import Preprocess
from model.clip.towers import ClipTowers
from model.config import SamplingConfig
from model.durable import TEMPORARY_PREFIX
from model.encoder import Encoder
from model.export.guard import SampleFeatures, Samples, encode_samples, judge
from model.runtime.choose import EXTRA, ExportKind, RuntimeUnavailableError, Tower, has_onnxruntime, missing_onnxruntime
from model.runtime.onnx import OnnxTowers
from model.runtime.packed import can_pack, pack
from model.runtime.store import Export, ExportedFile, ExportError, ExportStore, GuardReport

OPSET = 17  # the first with layer normalisation as one operation
MAX_TOWER_BYTES = 2_000_000_000  # protocol buffers end at 2 GiB
_QUANTISED = ["MatMul", "Gemm"]  # convolutions and tables stay as they are: bytes make those slower, or far coarser
GENERATED_FRAMES = 4  # of each scene: enough to see it move, few enough for a real CLIP on one core
_DRAWN_SIZE = 128


def export(
    encoder: Encoder, store: ExportStore, kind: ExportKind, samples: Samples, plain: SampleFeatures | None = None
) -> GuardReport:
    """Make an export and judge it; it is put in force if the guard passes it, and else only the refusal is kept.

    ``encoder`` must compute in fp32 by PyTorch on the CPU; it must not be used afterwards. ``plain``: the samples as it
    encodes them, if they are at hand. Raises ``ExportError`` if these towers cannot be exported, and
    ``RuntimeUnavailableError`` without the extra.
    """
    plain = plain or encode_samples(encoder, samples)
    if kind == "torch-bf16":
        encoder.net.clip.set_precision("bf16")
        if can_pack(encoder.net.clip):
            pack(encoder.net.clip)
        return _conclude(store, kind, judge(kind, samples, plain, encode_samples(encoder, samples)), {})
    require_exporter(kind)
    store.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.folder, prefix=TEMPORARY_PREFIX) as folder:
        files = write_towers(encoder.net.clip, Path(folder), kind)
        runner = OnnxTowers(files, trims_text=encoder.net.clip.trims_text, one_by_one=kind == "onnx-int8")
        encoder.net.clip.run_by(runner, keep_weights=True)
        report = judge(kind, samples, plain, encode_samples(encoder, samples))
        return _conclude(store, kind, report, files if report.passed else {})


def require_exporter(kind: ExportKind) -> None:
    """Raise ``RuntimeUnavailableError`` if a package is missing that this export needs."""
    if kind == "torch-bf16":
        return
    if not has_onnxruntime():
        raise missing_onnxruntime(f"emcl export --runtime {kind}")
    if find_spec("onnx") is None:
        raise RuntimeUnavailableError(f"emcl export needs the package onnx, which is not installed: {EXTRA}")


def write_towers(towers: ClipTowers, folder: Path, kind: ExportKind) -> dict[Tower, Path]:
    """Trace both towers into ``folder``, as bytes for ``onnx-int8``. Raises ``ExportError``."""
    modules: dict[Tower, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "text": (TextTower(towers), _sample_text(towers)),
        "image": (ImageTower(towers), (torch.zeros(2, 3, *towers.preprocess.shape[:2]),)),
    }
    files = {}
    for tower, (module, sample) in modules.items():
        check_size(towers, tower)
        files[tower] = folder / f"{tower}.onnx"
        _trace(towers, module, sample, files[tower], trims=towers.trims_text)
        if kind == "onnx-int8":
            files[tower] = _quantise(files[tower])
    return files


def _sample_text(towers: ClipTowers) -> tuple[Tensor, Tensor]:
    # Neither batch nor length may look special: 1 would be broadcast, and the context length would be a constant.
    length = max(2, towers.context_length - 3) if towers.trims_text else towers.context_length
    return torch.ones(3, length, dtype=torch.int64), torch.tensor([length, 1, 2])


def check_size(towers: ClipTowers, tower: Tower) -> None:
    """Raise ``ExportError`` for a tower that is too large to be exported."""
    visual = towers.model.visual
    in_image = {id(parameter) for parameter in visual.parameters()}
    size = sum(
        parameter.nbytes for parameter in towers.model.parameters() if (id(parameter) in in_image) == (tower == "image")
    )
    if size > MAX_TOWER_BYTES:
        raise ExportError(
            f"the {tower} tower has {size / 1e9:.1f} GB of weights, an ONNX file holds at most "
            f"{MAX_TOWER_BYTES / 1e9:.0f} GB; use PyTorch for this model, with --precision bf16 if the processor has it"
        )


def _trace(towers: ClipTowers, module: nn.Module, sample: tuple[Tensor, ...], path: Path, *, trims: bool) -> None:
    names = ["ids", "lengths"] if len(sample) == 2 else ["pixels"]
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in [*names, "features"]}
    if "ids" in axes and trims:
        axes["ids"][1] = "length"
    try:
        # With gradients, as PyTorch traces other operations in inference mode, which ONNX has not.
        with torch.inference_mode(False), torch.enable_grad(), traceable(towers), _quiet():
            torch.onnx.export(
                module.eval(),
                sample,
                str(path),
                dynamo=False,  # the newer exporter needs a package more and fixes sizes that it sees twice
                input_names=names,
                output_names=["features"],
                dynamic_axes=axes,
                opset_version=OPSET,
            )
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportError(
            f"the {path.stem} tower of this model cannot be exported ({_first_line(error)}); use --runtime torch"
        ) from error


def _quantise(path: Path) -> Path:
    """Weights of matrix products as bytes, one scale per column; activations are scaled when they are there."""
    # Of an extra: they may not be here when types are checked.
    onnx, quantization = import_module("onnx"), import_module("onnxruntime.quantization")
    target = path.with_name(f"{path.stem}-int8.onnx")
    model = onnx.load(path)
    # Else it warns through the root logger that a graph can be simplified first, which onnxruntime does when loading.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with _quiet():
        quantization.quantize_dynamic(
            model, target, weight_type=quantization.QuantType.QInt8, per_channel=True, op_types_to_quantize=_QUANTISED
        )
    path.unlink()
    return target


def _conclude(store: ExportStore, kind: ExportKind, report: GuardReport, files: Mapping[Tower, Path]) -> GuardReport:
    taken: dict[Tower, ExportedFile] = {tower: store.take(kind, tower, path) for tower, path in files.items()}
    store.publish(
        Export(
            fingerprint=store.fingerprint,
            kind=kind,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            files=taken,
            guard=report,
        )
    )
    return report


def _versions() -> dict[str, str]:
    found = {}
    for package in ("emcl-search", "torch", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's warnings about Python values: the guard looks whether the trace is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def generated_samples(count: int, *, preprocess: Preprocess, seed: int = 1) -> Samples:
    """``count`` scenes of the demo corpus's test split with one caption each, drawn in memory."""
    from model.demo.captions import captions_of
    from model.demo.render import render
    from model.demo.scene import make_scene

    frames, texts = [], []
    for index in range(count):
        scene = make_scene(seed, "test", index)
        times = (np.arange(GENERATED_FRAMES) + 0.5) / GENERATED_FRAMES * scene.duration_seconds
        frames.append(preprocess(render(scene, times, _DRAWN_SIZE)))
        texts.append(captions_of(scene, seed, index)[0])
    return Samples(source="generated scenes", frames=frames, texts=texts, video_of_text_T=np.arange(count))


def samples_of(manifest: Path, count: int, *, preprocess: Preprocess, sampling: SamplingConfig) -> Samples:
    """The first ``count`` videos of a manifest (JSON lines of ``{video, captions}``) with all their captions.

    Raises ``ValueError`` or ``OSError`` for a manifest or a video that cannot be read.
    """
    from model.data.clips import Clip, load_frames
    from model.data.registry import open_for_evaluation

    clips: Sequence[Clip] = open_for_evaluation(manifest, "test", allow_missing=False).clips[:count]

    def load(clip: Clip) -> NDArray[np.uint8]:
        return load_frames(clip, preprocess=preprocess, sampling=sampling)

    with ThreadPoolExecutor(2) as pool:
        frames = list(pool.map(load, clips))
    texts = [text for clip in clips for text in clip.captions]
    owners = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    return Samples(source=str(manifest), frames=frames, texts=texts, video_of_text_T=owners)


class TextTower(nn.Module):
    """``ClipTowers.encode_text`` behind its checks: ids (B, L) and lengths (B,) to features (B, D)."""

    def __init__(self, towers: ClipTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Embed texts whose first ``lengths_B`` tokens are real."""
        return self.towers.text_features(ids_BL, lengths_B)


class ImageTower(nn.Module):
    """``ClipTowers.encode_image``: normalised pixels (N, C, H, W) to features (N, D)."""

    def __init__(self, towers: ClipTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Embed images."""
        return self.towers.image_features(pixels_NCHW)


class _SelfAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes for one input that is query, key and value, batch first."""

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.original = original

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        own = self.original
        packed = F.linear(query, own.in_proj_weight, own.in_proj_bias)
        queries, keys, values = (_heads(part, own.num_heads) for part in torch.split(packed, own.embed_dim, dim=-1))
        logits = queries @ (keys.transpose(-2, -1) * own.head_dim**-0.5)
        if attn_mask is not None:
            logits = logits + attn_mask
        mixed = logits.softmax(dim=-1) @ values
        return F.linear(_joined(mixed, own.embed_dim), own.out_proj.weight, own.out_proj.bias), None


class _AttentionPool(nn.Module):
    """What open_clip's ``AttentionPool2d`` computes: the mean of a map attends to the map."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.original = original

    def forward(self, map_NCHW: Tensor) -> Tensor:
        own = self.original
        rows = map_NCHW.flatten(2).transpose(1, 2)
        rows = torch.cat([rows.mean(dim=1, keepdim=True), rows], dim=1) + own.positional_embedding
        heads = own.num_heads
        query, keys, values = (
            _heads(projection(part), heads)
            for projection, part in ((own.q_proj, rows[:, :1]), (own.k_proj, rows), (own.v_proj, rows))
        )
        weights = (query @ (keys.transpose(-2, -1) * keys.shape[-1] ** -0.5)).softmax(dim=-1)
        pooled: Tensor = own.c_proj(_joined(weights @ values, own.c_proj.in_features))
        return pooled[:, 0]


def _heads(rows_BLD: Tensor, heads: int) -> Tensor:
    """(B, L, D) to (B, heads, L, D / heads). Written so that onnxruntime finds one operation in it."""
    return rows_BLD.reshape(rows_BLD.shape[0], rows_BLD.shape[1], heads, int(rows_BLD.shape[-1]) // heads).transpose(
        1, 2
    )


def _joined(mixed_BHLD: Tensor, width: int) -> Tensor:
    """The opposite of ``_heads``."""
    rows = mixed_BHLD.transpose(1, 2)
    return rows.reshape(rows.shape[0], rows.shape[1], width)


@contextmanager
def traceable(towers: ClipTowers) -> Iterator[None]:
    """Put the attention above in place of PyTorch's while the context lasts."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(towers.modules()):
        for name, child in list(parent.named_children()):
            if (plain := _plain(parent, child)) is not None:
                replaced.append((parent, name, child))
                setattr(parent, name, plain)
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def _plain(parent: nn.Module, child: nn.Module) -> nn.Module | None:
    open_clip = import_open_clip()
    if isinstance(child, open_clip.modified_resnet.AttentionPool2d):
        return _AttentionPool(child)
    is_block = isinstance(parent, open_clip.transformer.ResidualAttentionBlock) and not hasattr(parent, "ln_1_kv")
    if is_block and isinstance(child, nn.MultiheadAttention) and child.batch_first:
        return _SelfAttention(child)
    return None
