"""What a person sees while a sweep runs: a bar with ETA on a terminal, a plain line now and then elsewhere, or nothing."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlhf_lab.running.plan import Plan
from rlhf_lab.terminal import one_line, printable


class Lines:
    """Plain lines for logs: when runs start and end, and every `interval` seconds where they are."""

    def __init__(self, plan: Plan, reused: int = 0, interval: float = 15.0) -> None:
        self.labels, self.interval = labels(plan), interval
        self.total, self.reused, self.finished, self.started = len(plan.runs), reused, reused, time.monotonic()
        self.last: dict[str, float] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __call__(self, run_id: str, event: dict[str, Any]) -> None:
        with self.lock:
            now = time.monotonic()
            if event["event"] == "progress" and now - self.last.get(run_id, 0.0) >= self.interval:
                self.last[run_id] = now
                self.say(f"{self.labels[run_id]}: {event['stage']} {event['done']}/{event['total']}  {event['text']}")
            elif event["event"] == "retry":
                self.say(f"{self.labels[run_id]}: {event['error']}; started again")
            elif event["event"] == "finished":
                self.finished += 1
                left = (now - self.started) / (self.finished - self.reused) * (self.total - self.finished)
                self.say(
                    f"{self.labels[run_id]}: {event['status']}  ({self.finished}/{self.total} runs, about {left:.0f} s left)"
                )

    def say(self, text: str) -> None:
        print(printable(text).replace("\n", " "), file=sys.stderr, flush=True)


class Bars:
    """A bar for the sweep and one for each run at work."""

    def __init__(self, plan: Plan, reused: int = 0) -> None:
        self.labels = labels(plan)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
        )
        self.sweep = self.progress.add_task("sweep", total=len(plan.runs), completed=reused, text="")
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def __call__(self, run_id: str, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            description = escape(one_line(f"{self.labels[run_id]}: {event['stage']}"))
            if run_id not in self.tasks:
                self.tasks[run_id] = self.progress.add_task(description, total=event["total"], text="")
            self.progress.update(
                self.tasks[run_id],
                description=description,
                total=event["total"],
                completed=event["done"],
                text=escape(printable(event["text"]).replace("\n", " ")),
            )
        elif event["event"] == "finished":
            if run_id in self.tasks:
                self.progress.remove_task(self.tasks.pop(run_id))
            self.progress.advance(self.sweep)


def labels(plan: Plan) -> dict[str, str]:
    """What a run is called on the screen: arm, axes, seed."""

    def label(run: Any) -> str:
        axes = " ".join(f"{axis.rsplit('.', 1)[-1]}={value}" for axis, value in run.axes.items())
        return " ".join(part for part in (run.arm, axes, f"seed={run.seed}") if part)

    return {run.run_id: label(run) for run in plan.runs}
