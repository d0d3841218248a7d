"""Text from outside on a terminal: what a model wrote, a label, a server's answer may not steer the screen."""

from __future__ import annotations

import json
import re
from typing import Any

# C0 but tab and newline, DEL and C1, marks and overrides of the writing direction, half surrogate pairs.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SEQUENCE = re.compile("(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]")


def printable(text: object) -> str:
    """Without what a terminal would obey or turn around: escape sequences, control characters, bidirectional overrides."""
    return UNSAFE.sub("", SEQUENCE.sub("", str(text)))


def one_line(text: object) -> str:
    """The same on one line."""
    return " ".join(printable(text).split())


def json_text(value: Any, **options: Any) -> str:
    """JSON that is safe to print: readable letters as they are, the characters above as escapes."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False, **options))
