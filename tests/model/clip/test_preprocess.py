"""CLIP's picture transform."""

from __future__ import annotations

import importlib
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from model.clip.preprocess import Preprocess


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def clip_transform():
    """What open_clip builds for OpenAI's models, without the conversion to floats."""
    from model.clip.compat import import_open_clip

    import_open_clip()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    return lambda size: Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])


@pytest.mark.parametrize(
    ("height", "width"), [(90, 160), (160, 90), (64, 64), (63, 64), (121, 161), (32, 500), (20, 31), (33, 32)]
)
@pytest.mark.parametrize("size", [32, 33, 64])
def test_is_the_transform_that_clip_was_trained_with(clip_transform, height, width, size):
    frames = noise(2, height, width, 3)
    expected = np.stack([np.asarray(clip_transform(size)(Image.fromarray(frame))) for frame in frames])
    assert np.array_equal(Preprocess.square(size)(frames), expected)


def test_a_frame_of_the_right_size_is_unchanged():
    frames = noise(1, 48, 48, 3)
    assert np.array_equal(Preprocess.square(48)(frames), frames)


def test_frames_that_are_a_turned_view_are_taken():
    frames = noise(1, 40, 60, 3)
    turned = frames.transpose(0, 2, 1, 3)[:, ::-1]
    assert np.array_equal(Preprocess.square(32)(turned), Preprocess.square(32)(np.ascontiguousarray(turned)))


@pytest.mark.parametrize("frames", [noise(40, 40, 3), noise(1, 40, 40, 4), noise(1, 40, 40, 3).astype(np.float32)])
def test_other_arrays_are_refused_with_their_shape(frames):
    with pytest.raises(ValueError, match=r"expected uint8 \(F, H, W, 3\)"):
        Preprocess.square(32)(frames)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size is 0"):
        Preprocess.square(0)(noise(1, 8, 8, 3))


SHAPES = [(90, 160), (200, 110), (64, 64), (37, 300), (1000, 40)]


@pytest.fixture(scope="module")
def open_clip():
    from model.clip.compat import import_open_clip

    return import_open_clip()


def own_transform(open_clip, architecture: str, tag: str):
    """The validation transform of ``open_clip.create_model_and_transforms``, without fetching any weights."""
    from dataclasses import asdict

    transform = importlib.import_module("open_clip.transform")
    entry = open_clip.get_pretrained_cfg(architecture, tag)
    merged = transform.merge_preprocess_dict(asdict(transform.PreprocessCfg()), entry)
    merged["size"] = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    return transform.PreprocessCfg(**merged)


def tag_preprocess(architecture: str, tag: str | None, size: int) -> tuple[Preprocess, dict]:
    from model.clip.pretrained import describe_clip, preprocess_of
    from model.config import ClipConfig

    description = describe_clip(ClipConfig(architecture=architecture, pretrained=tag))
    return preprocess_of(description, height=size, width=size), description["preprocess_cfg"]


def test_every_tag_of_open_clip_gets_the_pixels_of_its_own_transform(open_clip):
    import torch

    transform = importlib.import_module("open_clip.transform")
    cases = {}
    for architecture, tag in open_clip.list_pretrained():
        cfg = own_transform(open_clip, architecture, tag)
        preprocess, described = tag_preprocess(architecture, tag, cfg.size)
        assert (tuple(described["mean"]), tuple(described["std"])) == (tuple(cfg.mean), tuple(cfg.std))
        cases[str((cfg, preprocess))] = (cfg, preprocess)
    kinds = {(preprocess.resize_mode, preprocess.interpolation) for _, preprocess in cases.values()}
    assert kinds == {("shortest", "bicubic"), ("shortest", "bilinear"), ("squash", "bicubic"), ("squash", "bilinear")}
    frames = [noise(1, height, width, 3) for height, width in SHAPES]
    for cfg, preprocess in cases.values():
        own = transform.image_transform_v2(cfg, is_train=False)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.mean, cfg.std))
        for frame in frames:
            pixels = torch.from_numpy(preprocess(frame)).permute(0, 3, 1, 2)
            assert torch.equal((pixels[0].float() / 255.0 - mean) / std, own(Image.fromarray(frame[0]))), (cfg, frame)


@pytest.mark.parametrize("size", [(48, 32), (32, 80)])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_towers_that_are_not_square_get_the_pixels_of_open_clips_transform(open_clip, size, mode, interpolation):
    transform = importlib.import_module("open_clip.transform")
    cfg = transform.PreprocessCfg(
        size=size, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation=interpolation, fill_color=7
    )
    own = transform.image_transform_v2(cfg, is_train=False)
    preprocess = Preprocess(height=size[0], width=size[1], resize_mode=mode, interpolation=interpolation, fill=7)
    for height, width in SHAPES:
        frame = noise(1, height, width, 3)
        expected = np.rint(own(Image.fromarray(frame[0])).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        assert np.array_equal(preprocess(frame)[0], expected), (height, width)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 300), (300, 1), (3, 190), (40, 1000), (1200, 33), (9, 77), (300, 2000)]
)
def test_a_long_frame_gets_the_same_pixels_from_its_crop_alone(monkeypatch, height, width, interpolation):
    frames = noise(1, height, width, 3)
    preprocess = Preprocess.square(32, interpolation=interpolation)
    part = preprocess(frames)
    monkeypatch.setattr("model.clip.preprocess.LONG", 1 << 30)
    assert np.array_equal(part, preprocess(frames))


def test_a_frame_of_one_row_costs_what_its_crop_costs():
    frames = noise(1, 1, 16_384, 3)
    tracemalloc.start()
    try:
        Preprocess.square(224)(frames)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20  # whole: 224 x 3,670,016 pixels, 2.3 GiB


def test_weights_from_a_file_are_prepared_as_all_tags_of_their_architecture_are(tmp_path, caplog):
    preprocess, cfg = tag_preprocess("ViT-B-16-SigLIP", str(tmp_path / "weights.safetensors"), 224)
    assert (preprocess.resize_mode, cfg["mean"]) == ("squash", [0.5, 0.5, 0.5])
    assert not caplog.text
    preprocess, _ = tag_preprocess("ViT-H-14", str(tmp_path / "weights.safetensors"), 224)
    assert preprocess == Preprocess.square(224)
    assert "tags of ViT-H-14 differ" in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"resize_mode": "stretch"}, {"interpolation": "nearest"}, {"fill": 256}, {"width": 0}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Preprocess(**{"height": 8, "width": 8, **wrong})
