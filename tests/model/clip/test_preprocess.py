"""CLIP's picture transform."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.clip.preprocess import resize_and_crop


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
    assert np.array_equal(resize_and_crop(frames, size), expected)


def test_a_frame_of_the_right_size_is_unchanged():
    frames = noise(1, 48, 48, 3)
    assert np.array_equal(resize_and_crop(frames, 48), frames)


def test_frames_that_are_a_turned_view_are_taken():
    frames = noise(1, 40, 60, 3)
    turned = frames.transpose(0, 2, 1, 3)[:, ::-1]
    assert np.array_equal(resize_and_crop(turned, 32), resize_and_crop(np.ascontiguousarray(turned), 32))


@pytest.mark.parametrize("frames", [noise(40, 40, 3), noise(1, 40, 40, 4), noise(1, 40, 40, 3).astype(np.float32)])
def test_other_arrays_are_refused_with_their_shape(frames):
    with pytest.raises(ValueError, match=r"expected uint8 \(F, H, W, 3\)"):
        resize_and_crop(frames, 32)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size is 0"):
        resize_and_crop(noise(1, 8, 8, 3), 0)
