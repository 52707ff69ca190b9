"""What strangers name their files must not steer a terminal."""

import pytest

from model.terminal import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a quiet lake", "a quiet lake"),
        ("\x1b[2Jgone\x07", "\\x1b[2Jgone\\x07"),
        ("a\u202etxt.exe", "a\\u202etxt.exe"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\udc80", "\\udc80"),
        ("\U0001f468\u200d\U0001f469 émoji", "\U0001f468\u200d\U0001f469 émoji"),
    ],
)
def test_only_what_can_be_seen_is_printed(text, shown):
    assert printable(text) == shown
