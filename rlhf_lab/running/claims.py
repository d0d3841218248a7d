"""What a driver works on, so that a second one on the same results refuses, or takes other runs."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from rlhf_lab.errors import Interrupted
from rlhf_lab.store.leases import HEARTBEAT, Lease, acquired, forget, let_go, place


class Claims:
    """Leases (leases.py) that are taken or left, never waited for, and kept alive by one thread.

    Used as a context, at whose end all are let go.
    """

    def __init__(self) -> None:
        self.held: dict[Path, Lease] = {}
        self.ended = threading.Event()
        self.pulse = threading.Thread(target=self._beat, daemon=True)

    def take(self, target: Path) -> bool:
        """False where a living process holds it, this one included."""
        with contextlib.suppress(Interrupted):
            held = acquired(target, finished=lambda: False, stop=lambda: True)
            if held is not None:
                self.held[target] = held
                return True
        return False

    def release(self, target: Path, finished: bool) -> None:
        held = self.held.pop(target)
        forget(target) if finished else let_go(place(*held))

    def __enter__(self) -> Claims:
        self.pulse.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.pulse.join()
        for target in list(self.held):
            with contextlib.suppress(OSError):  # the folder may be gone
                self.release(target, finished=False)

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT):
            for held in list(self.held.values()):
                with contextlib.suppress(OSError):
                    os.utime(place(*held))
