"""Answers from outside, written down as they come: who asks again, after a crash too, is given the first answer.

One JSON line per answer, `{"key": …, "score": …}`, the key being a hash of what was asked; so a stage that asks an
unreliable source is still a function of its folder. The file survives when a stage starts again from nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from rlhf_lab.store.files import mend

PREFIX = "journal-"


class Journal:
    """The answers of one source in one stage folder. Instances over one file see each other's answers."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = Path(folder) / f"{PREFIX}{name}.jsonl"
        self.answers: dict[str, float] = {}
        self.position = 0
        self.refresh()

    def refresh(self) -> None:
        """Reads what was appended since; the first answer to a question stays."""
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # cut off by a crash
                self.position += len(line)
                row = json.loads(line)
                self.answers.setdefault(row["key"], row["score"])

    def append(self, answers: Iterable[tuple[str, float]]) -> None:
        """On disk before anybody acts on them."""
        lines = "".join(json.dumps({"key": key, "score": score}) + "\n" for key, score in answers)
        with open(self.path, "ab+") as file:
            mend(file, self.path)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self.refresh()


def question(*parts: str) -> str:
    """Thirty-two hexadecimal digits that name what is asked."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
