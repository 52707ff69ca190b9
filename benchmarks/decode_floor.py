"""The codec alone: what decoding the wanted frames costs with nothing around it.

The packets that a set of frames needs (from the last key frame before each to its own) are found beforehand; what is
timed opens the file, reads its packets and hands those to the codec. No frame is converted, copied or resized, and no
frame that nothing refers to is decoded, unless it is wanted itself: no way to get these frames can do with less.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import av

from model.config import SamplingConfig
from model.video.sampling import decode


def needed_packets(path: Path, sampling: SamplingConfig) -> dict[int, bool]:
    """Numbers of the packets, in the file's order, that the sampled frames need; True for the frames' own."""
    seconds = decode(path, sampling=sampling).timestamps_seconds
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None]
        tick = float(stream.time_base)
    origin = min(time for time, _ in packets)
    wanted = {round(second / tick) + origin for second in seconds}
    keys = [number for number, (_, key) in enumerate(packets) if key]
    needed: dict[int, bool] = {}
    for number, (time, _) in enumerate(packets):
        if time in wanted:
            start = keys[bisect_right(keys, number) - 1]
            needed.update({between: needed.get(between, False) for between in range(start, number)})
            needed[number] = True
    assert sum(needed.values()) == len(wanted), "every sampled frame has a packet of its own"
    return needed


def codec_alone(path: Path, needed: dict[int, bool]) -> int:
    """Decode those packets on one thread; returns how many frames came out."""
    frames = 0
    last = max(needed)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        context.thread_count = 1
        for number, packet in enumerate(container.demux(stream)):
            if number in needed:
                context.skip_frame = "DEFAULT" if needed[number] else "NONREF"
                frames += len(context.decode(packet))
            if number == last:
                break
        return frames + len(context.decode(None))
