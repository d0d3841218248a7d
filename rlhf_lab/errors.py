"""What a user did that cannot work, said in one sentence. The command line prints these without a traceback."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps


class LabError(Exception):
    """Base of all errors that are addressed to the user; `exit_code` is what the command line returns."""

    exit_code = 1


class SpecError(LabError):
    """The spec (or an override, or the command line) is wrong; nothing has been created."""

    exit_code = 2


class NothingToDo(LabError):
    """What was asked for is about runs or processes that there are none of."""

    exit_code = 5


class PluginError(LabError):
    """A plugin that the spec uses cannot be loaded, or two distributions claim one name."""

    exit_code = 3


class DataError(LabError):
    """A data file is missing, empty, broken or lacks a field; names file and line."""


class ModelError(LabError):
    """Weights, tokenizer or checkpoint do not fit what was asked for."""


class RewardError(LabError):
    """A reward source returned NaN, the wrong number of scores, or nothing."""


class NumericsError(LabError):
    """A number that must hold does not: a loss is not finite, or KL at step 0 is not 0."""


class Interrupted(LabError):
    """A stage stopped at the end of a step because it was asked to; its checkpoint is complete."""

    exit_code = 75


class LeaseLost(LabError):
    """This process was taken for dead, and another goes on with its stage; so it must not write any more."""

    exit_code = 75


class ResumeRefused(LabError):
    """A checkpoint was made under conditions that would give other numbers than those of now."""


class StorageError(LabError):
    """The disk is full or broken; what was written before is whole, and the same command goes on when there is room."""

    exit_code = 75


class SweepBusy(LabError):
    """Another process works on the same results."""


def in_one_sentence(main: Callable[[Sequence[str] | None], int | None]) -> Callable[[Sequence[str] | None], int]:
    """For the `main` of a script: what is wrong goes to standard error, and its exit code is returned."""

    @wraps(main)
    def plainly(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments) or 0
        except LabError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code

    return plainly
