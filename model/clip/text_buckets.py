"""Which texts are encoded together: those of about the same length, so that none pays for another's padding.

In: lengths in tokens. Out: groups of places. The text tower's work grows with the padded number of tokens, and a small
batch wastes some of the processor; buckets of four tokens are between the two (measured by ``benchmarks/encoders.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BUCKET_TOKENS = 4


def text_buckets(lengths: Sequence[int], *, most: int) -> Iterator[list[int]]:
    """Group the places of ``lengths``, shortest first, at most ``most`` together.

    In a group no length differs from the longest by ``BUCKET_TOKENS`` or more.
    """
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) == most or rounded_up(lengths[place]) != rounded_up(lengths[group[0]])):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def rounded_up(length: int) -> int:
    """The length to which a text of ``length`` tokens is padded: few shapes are met (see ``model.runtime.packed``)."""
    return -(-length // BUCKET_TOKENS) * BUCKET_TOKENS
