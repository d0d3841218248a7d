"""Where and how wide a sweep runs, and what is done about runs that end badly. None of it is part of a run's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from rlhf_lab.contracts import slot
from rlhf_lab.store.cadence import readable


class Retries(BaseModel):
    """How often a run is started again, by what ended it. A number alone is about those whose process died."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    died: int = Field(1, ge=0, description="the process was killed or crashed")
    interrupted: int = Field(20, ge=0, description="it was asked to stop, as by a scheduler that needs the machine")
    timeout: int = Field(0, ge=0, description="it took longer than time_limit")
    memory: int = Field(0, ge=0, description="it held more than memory_limit")
    exception: int = Field(0, ge=0, description="the code raised an error, which it will do again")
    disk_full: int = Field(0, ge=0, description="nothing more could be written")
    io_error: int = Field(0, ge=0, description="the disk failed")

    @model_validator(mode="before")
    @classmethod
    def _a_number(cls, raw: Any) -> Any:
        return {"died": raw} if type(raw) is int else raw


class Resources(BaseModel):
    """Changes no number but the clock."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    launcher: slot("launcher") = Field("local", description="what starts runs: this machine, or a cluster")
    workers: int | None = Field(None, ge=1, description="runs at a time; default: the number of cores, or of runs")
    threads: int | None = Field(None, ge=1, description="threads per process; default: cores divided by workers")
    processes: int = Field(1, ge=1, description="processes that share the work of one run (accelerate)")
    gpus: float | None = Field(None, ge=0, description="GPUs per run, less than 1 shares one; default: one per process")
    accelerate: Path | None = Field(
        None,
        description="a configuration of accelerate (machines, FSDP, DeepSpeed), given to its launcher as it is; "
        "models are replicated in each process, not sharded",
    )
    checkpoint_every: Annotated[float | str | dict[str, float], AfterValidator(readable)] = Field(
        300.0, description="seconds between checkpoints inside a stage, or {steps: 5}"
    )
    time_limit: float | None = Field(None, gt=0, description="seconds that a run may take")
    memory_limit: float | None = Field(None, gt=0, description="GiB that the processes of a run may hold")
    retries: Retries = Retries()
    fail_fast: bool = Field(False, description="stop the sweep when a run has failed")

    @model_validator(mode="before")
    @classmethod
    def _launcher_is_chosen(cls, raw: Any, info: ValidationInfo) -> Any:
        """Where there are plugins to choose from, the default is chosen too."""
        if isinstance(raw, dict) and (info.context or {}).get("registry") is not None:
            return {"launcher": cls.model_fields["launcher"].default, **raw}
        return raw
