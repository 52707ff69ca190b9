"""CLIP and CLIP4Clip in plain torch, in the names of the released code, and the forms in which others store them.

Written without open_clip and without this project, so that imports are compared with something independent.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from model.checkpoint import load_checkpoint
from model.importing.convert import import_checkpoint
from model.options import ImportOptions

SIZES = {"width": 128, "heads": 2, "positions": 20, "vocabulary": 60}


class Block(nn.Module):
    def __init__(self, width: int, heads: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        h = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](h * torch.sigmoid(1.702 * h))


class Blocks(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, eps) for _ in range(layers))

    def forward(self, x_BLD, mask=None):
        x = x_BLD.transpose(0, 1)
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class PlainVisual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = SIZES["width"]
        self.conv1 = nn.Conv2d(3, width, 16, 16, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(5, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, SIZES["heads"], 2)
        self.proj = nn.Parameter(torch.randn(width, width) / 11)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class PlainClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = SIZES["width"]
        self.visual = PlainVisual()
        self.transformer = Blocks(width, SIZES["heads"], 3)
        self.token_embedding = nn.Embedding(SIZES["vocabulary"], width)
        self.positional_embedding = nn.Parameter(torch.randn(SIZES["positions"], width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, width) / 11)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_text(self, ids):
        length = ids.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding[:length], mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(dim=1)] @ self.text_projection


class PlainClip4Clip(nn.Module):
    """CLIP4Clip as trained with --loose_type: no cross encoder."""

    def __init__(self, head: str) -> None:
        super().__init__()
        width = SIZES["width"]
        self.head = head
        self.clip = PlainClip()
        if head != "meanP":
            self.frame_position_embeddings = nn.Embedding(SIZES["positions"], width)
        if head == "seqTransf":
            self.transformerClip = Blocks(width, SIZES["heads"], 2, eps=1e-12)
        if head == "seqLSTM":
            self.lstm_visual = nn.LSTM(width, width, batch_first=True)

    def encode_video(self, video_BFCHW, mask_BF):
        x = self.clip.visual(video_BFCHW.flatten(0, 1)).view(*mask_BF.shape, -1)
        if self.head == "seqTransf":
            additive = (1.0 - mask_BF.float())[:, None].expand(-1, mask_BF.shape[1], -1) * -1e6
            positions = self.frame_position_embeddings.weight[: mask_BF.shape[1]]
            return x + self.transformerClip(x + positions, additive.repeat_interleave(SIZES["heads"], dim=0))
        if self.head == "seqLSTM":  # causal, and padding comes last, so packing would change no real frame
            return x + self.lstm_visual(x)[0]
        return x


def make_clip4clip(head: str) -> PlainClip4Clip:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return PlainClip4Clip(head).eval()


def save(state, folder: Path, name: str = "pytorch_model.bin.best.4") -> Path:
    path = folder / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def save_archive(state: dict[str, torch.Tensor], path: Path) -> None:
    """A TorchScript archive with the given tensors, as OpenAI publishes its models."""
    root = nn.Module()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(root), str(path))


FITTING = {"max_words": 8, "max_frames": 6}


def convert(source: Path, **options):
    """Import a checkpoint beside itself: the net that was read back, and the report."""
    report = import_checkpoint(source, source.parent / "imported.safetensors", ImportOptions(**{**FITTING, **options}))
    return load_checkpoint(report.path), report
