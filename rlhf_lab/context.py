"""What a stage is given: its folder, its seed, the data, its inputs, and somewhere to report to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rlhf_lab.errors import Interrupted
from rlhf_lab.store.cadence import NEVER, Cadence
from rlhf_lab.store.checkpoint import Checkpoint, json_safe, newest_checkpoint, write_checkpoint
from rlhf_lab.store.conditions import checked_to_be_the_same, conditions_of
from rlhf_lab.store.faults import fault
from rlhf_lab.store.files import append_line, json_row
from rlhf_lab.streams import stream, torch_stream


class Configured(Protocol):
    """What a stage sees of its run's configuration (declaration/run_config.py)."""

    data: Any
    model: Any
    template: Any
    precision: str


class StageContext:
    """Everything a stage may touch.

    `report(done, total, text)` is called as work proceeds; `stop_requested()` turns true when the process has been asked to
    end; `still_mine()` raises LeaseLost where another process took the stage over. `sources` are hashes of the code that
    computes it; `allow_changed` says that a checkpoint from other code, versions or devices may be gone on from.
    """

    def __init__(
        self,
        config: Configured,
        stage: str,
        seed: int,
        folder: Path,
        inputs: Mapping[str, Path],
        spec_folder: Path,
        report: Callable[[int, int, str], None] = lambda done, total, text: None,
        checkpoint_every: Cadence = NEVER,
        stop_requested: Callable[[], bool] = lambda: False,
        still_mine: Callable[[], None] = lambda: None,
        sources: Mapping[str, str] | None = None,
        allow_changed: bool = False,
    ) -> None:
        self.config, self.stage, self.seed, self.folder = config, stage, seed, folder
        self.inputs, self.spec_folder, self.report = inputs, spec_folder, report
        self.checkpoint_every, self.stop_requested, self.still_mine = checkpoint_every, stop_requested, still_mine
        self.sources, self.allow_changed = dict(sources or {}), allow_changed
        self.conditions: Sequence[Mapping[str, Any]] = ()
        self._saved = time.monotonic()

    # Randomness

    def rng(self, name: str, *counters: int) -> np.random.Generator:
        return stream(self.seed, name, *counters)

    def torch_rng(self, name: str, *counters: int) -> torch.Generator:
        return torch_stream(self.seed, name, *counters)

    # What the stage reads

    @cached_property
    def data(self) -> Any:
        return self.config.data.open(self)

    @cached_property
    def base_model(self) -> tuple[Any, Any]:
        """The pretrained model and its tokenizer, as the spec's `model` gives them."""
        return self.config.model.open(self)

    @property
    def template(self) -> Any:
        return self.config.template

    def input(self, stage: str) -> Path:
        """The folder of a stage that this one named in a field of type StageRef."""
        return self.inputs[stage]

    @cached_property
    def accelerator(self) -> Any:
        from accelerate import Accelerator

        return Accelerator(mixed_precision={"fp32": "no", "bf16": "bf16"}[self.config.precision])

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    # Going on after an interruption

    def conditions_now(self) -> dict[str, Any]:
        return conditions_of(self.device, self.config.precision, self.sources)

    def resume(self) -> Checkpoint | None:
        """Where an earlier process left off, if it did: the tables are cut back to that step.

        Raises ResumeRefused where the numbers would not be those of an undisturbed run, unless that is allowed.
        """
        found, now = newest_checkpoint(self.folder), self.conditions_now()
        self.conditions = checked_to_be_the_same(found, now, self.stage, allow_changed=self.allow_changed) if found else [now]
        return found

    def step_done(self, step: int, snapshot: Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]]) -> None:
        """Called between steps: saves a checkpoint if one is due. Raises Interrupted, after saving, if asked to stop."""
        self.still_mine()
        fault("stage.step", self.folder)
        stop = self.stop_requested()
        if stop or self.checkpoint_every.due(step, time.monotonic() - self._saved):
            tensors, state = snapshot()
            write_checkpoint(self.folder, Checkpoint(step, tensors, json_safe(state), self.conditions))
            self._saved = time.monotonic()
        if stop:
            raise Interrupted(f"stage {self.stage} was stopped after step {step}; the same command goes on from there")

    # What the stage writes

    def log(self, step: int, split: str, **metrics: float) -> None:
        """One row of the steps table. Metrics are numbers; a metric that does not apply is left out or NaN."""
        row = {name: float(value) for name, value in metrics.items()}
        self._append("steps.jsonl", {"stage": self.stage, "step": step, "split": split, **row})

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Rows of the samples table: prompt, response, and scores as columns."""
        for row in rows:
            self._append("samples.jsonl", {"stage": self.stage, "step": step, **row})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        append_line(self.folder / name, json_row(row))
