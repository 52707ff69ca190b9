"""Strips of frames: a video as one small picture, for pages that must hold everything themselves."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from model.config import SamplingConfig
from model.data.clips import Clip
from model.video.sampling import decode

_GAP_PIXELS = 2
_JPEG_QUALITY = 82


class Strips:
    """Strips of the clips of a corpus, each decoded once."""

    def __init__(self, clips: Sequence[Clip], sampling: SamplingConfig) -> None:
        self._clips, self._sampling = clips, sampling
        self._made: dict[tuple[int, int | None, int], str] = {}

    def of(self, row: int, *, frames: int | None, height: int) -> str:
        """A data URI (JPEG) of up to ``frames`` frames side by side in order of time; ``None``: all that the model saw.

        Raises ``ValueError`` that names a video which cannot be decoded.
        """
        key = (row, frames, height)
        if key not in self._made:
            self._made[key] = self._make(self._clips[row], frames, height)
        return self._made[key]

    def _make(self, clip: Clip, frames: int | None, height: int) -> str:
        sampling = self._sampling if frames is None else self._sampling.model_copy(update={"max_frames": frames})
        try:
            shot = decode(clip.path, sampling=sampling, start_seconds=clip.start_seconds, end_seconds=clip.end_seconds)
        except ValueError as error:
            raise ValueError(f"{clip.path} cannot be decoded ({error})") from error
        width = max(1, round(shot.frames.shape[2] * height / shot.frames.shape[1]))
        pictures = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in shot.frames]
        strip = Image.new("RGB", (len(pictures) * (width + _GAP_PIXELS) - _GAP_PIXELS, height), "white")
        for place, picture in enumerate(pictures):
            strip.paste(picture, (place * (width + _GAP_PIXELS), 0))
        return data_uri(strip)


def data_uri(picture: Image.Image) -> str:
    """A picture as JPEG in a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
