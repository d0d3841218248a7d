"""Data in JSON-lines files, in the formats of TRL and the Hub: one record per line, further fields are ignored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from rlhf_lab.contracts import Component, Demonstration, Ranking, hookimpl, param
from rlhf_lab.declaration.consent import outside
from rlhf_lab.errors import DataError

SPLITS = ("train", "validation")


class Files(BaseModel):
    """One file per split, relative to the folder of the spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str
    validation: str | None = None


class JSONLines(Component):
    """Files of records, one per line: `{train: FILE, validation: FILE}` for each part that the stages ask for.

    Formats: TRL documentation, "Dataset formats and types" (standard format); a ranking has the fields prompt,
    completions and ratings. A part without validation file has no validation records; only prompts must have some
    wherever a stage samples responses to them. All files are checked before a sweep starts.
    """

    kind, name = "data", "jsonl"
    prompts: Files | None = param(None, "lines with prompt: what the policy is asked to continue")
    demonstrations: Files | None = param(None, "lines with prompt, completion")
    comparisons: Files | None = param(None, "lines with prompt, chosen, rejected: rankings of two")
    rankings: Files | None = param(None, "lines with prompt, completions, ratings (higher is better)")
    pretraining: Files | None = param(None, "lines with text")
    preferences: Literal["both", "rankings", "comparisons"] = param(
        "both", "which files the rankings come from; both: those of `rankings`, then those of `comparisons`"
    )

    @model_validator(mode="after")
    def _chosen_preferences_exist(self) -> JSONLines:
        if self.preferences != "both" and getattr(self, self.preferences) is None:
            raise ValueError(f"preferences is {self.preferences!r}, but no {self.preferences} file is given")
        return self

    def has(self, part: str) -> bool:
        """Whether a file is given for it; comparisons are rankings too."""
        given = (self.rankings, self.comparisons) if part == "rankings" else (getattr(self, part),)
        return any(files is not None for files in given)

    def open(self, ctx: Any) -> JSONLinesDataset:
        return JSONLinesDataset(self, Path(ctx.spec_folder))

    def check(self, spec_folder: Path) -> None:
        """Reads every file while the sweep is planned, so that a broken line is said before anything is computed."""
        for part, _, path in self._files(spec_folder):
            read_records(path, PARSERS[part])

    def asks(self, spec_folder: Path) -> list[tuple[str, str]]:
        """Files elsewhere have to be allowed on the command line."""
        return outside(spec_folder, *(path for _, _, path in self._files(spec_folder)))

    def fingerprint(self, spec_folder: Path) -> dict[str, str]:
        """blake2b of the content of each file, so that an edited file is other data."""
        return {f"{part}.{split}": content_hash(path) for part, split, path in self._files(spec_folder)}

    def _files(self, spec_folder: Path) -> Iterator[tuple[str, str, Path]]:
        for part in PARSERS:
            for split in SPLITS:
                if (name := getattr(getattr(self, part), split, None)) is not None:
                    yield part, split, Path(spec_folder) / name


class JSONLinesDataset:
    """The records of the files, each file read once."""

    def __init__(self, files: JSONLines, folder: Path) -> None:
        self.files, self.folder = files, folder
        self._read: dict[tuple[str, str], list[Any]] = {}

    def prompts(self, split: str) -> list[str]:
        records = self._records("prompts", split)
        if not records:
            raise DataError(f"the data has no prompts for {split}: add `{split}: FILE` to its `prompts`")
        return records

    def demonstrations(self, split: str) -> list[Demonstration]:
        return self._records("demonstrations", split)

    def rankings(self, split: str) -> list[Ranking]:
        asked = ("rankings", "comparisons") if self.files.preferences == "both" else (self.files.preferences,)
        given = [part for part in asked if getattr(self.files, part) is not None]
        if not given:
            raise DataError("the data has no rankings: add `rankings: {train: FILE}` or `comparisons: {train: FILE}` to it")
        return [record for part in given for record in self._records(part, split)]

    def pretraining(self, split: str) -> list[str]:
        return self._records("pretraining", split)

    def tokenizer(self) -> None:
        return None

    def _records(self, part: str, split: str) -> list[Any]:
        if split not in SPLITS:
            raise DataError(f"JSON-lines data has no split {split!r}: use one of {', '.join(SPLITS)}")
        files = getattr(self.files, part)
        if files is None:
            raise DataError(f"the data has no {part}: add `{part}: {{train: FILE, validation: FILE}}` to it")
        name = getattr(files, split)
        if (part, split) not in self._read:
            self._read[part, split] = [] if name is None else read_records(self.folder / name, PARSERS[part])
        return list(self._read[part, split])


def content_hash(path: Path) -> str:
    return hashlib.blake2b(file_bytes(path), digest_size=16).hexdigest()


def file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the data file {path}: {error.strerror or error}") from None


def read_records(path: Path, parse: Callable[[Mapping[str, Any], str], Any]) -> list[Any]:
    """All records of a file. Blank lines are skipped; the first bad line is a DataError that names it."""
    lines = enumerate(file_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
    records = [parse(row(line, f"{path}:{n}"), f"{path}:{n}") for n, line in lines if line.strip()]
    if not records:
        raise DataError(f"the data file {path} is empty: give a file with one JSON object per line")
    return records


def row(line: bytes, at: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{at}: not a line of JSON in UTF-8 ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise DataError(f"{at}: a line must hold one JSON object, not {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    kinds = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


def required(record: Mapping[str, Any], key: str, at: str) -> Any:
    if key not in record:
        raise DataError(f"{at}: field {key!r} is missing; the line has {', '.join(map(repr, record)) or 'no fields'}")
    return record[key]


def text(record: Mapping[str, Any], key: str, at: str) -> str:
    return checked_text(required(record, key, at), key, at)


def checked_text(value: Any, key: str, at: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{at}: field {key!r} must be a string, not {kind_of(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{at}: field {key!r} has half of a surrogate pair, which is no character; remove it")
    return value


def items(record: Mapping[str, Any], key: str, at: str) -> list[Any]:
    value = required(record, key, at)
    if not isinstance(value, list):
        raise DataError(f"{at}: field {key!r} must be a list, not {kind_of(value)}")
    return value


def rating(value: Any, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{at}: each of 'ratings' must be a number, not {kind_of(value)}")
    if abs(value) > 1e300 or math.isnan(value):
        raise DataError(f"{at}: each of 'ratings' must be a finite number")
    return float(value)


def prompt(record: Mapping[str, Any], at: str) -> str:
    return text(record, "prompt", at)


def demonstration(record: Mapping[str, Any], at: str) -> Demonstration:
    return Demonstration(text(record, "prompt", at), text(record, "completion", at))


def comparison(record: Mapping[str, Any], at: str) -> Ranking:
    """A ranking of two: the chosen one is rated 1, the rejected one 0."""
    return Ranking(text(record, "prompt", at), (text(record, "chosen", at), text(record, "rejected", at)), (1.0, 0.0))


def ranking(record: Mapping[str, Any], at: str) -> Ranking:
    completions = tuple(checked_text(value, "completions", at) for value in items(record, "completions", at))
    ratings = tuple(rating(value, at) for value in items(record, "ratings", at))
    if len(completions) != len(ratings):
        raise DataError(f"{at}: {len(completions)} completions but {len(ratings)} ratings; each completion needs one rating")
    if len(completions) < 2:
        raise DataError(f"{at}: a ranking needs at least 2 completions, and this one has {len(completions)}")
    if len(set(ratings)) == 1:
        raise DataError(f"{at}: all {len(ratings)} ratings are equal, so that nothing is preferred; remove the line")
    return Ranking(text(record, "prompt", at), completions, ratings)


def pretraining_text(record: Mapping[str, Any], at: str) -> str:
    return text(record, "text", at)


PARSERS: dict[str, Callable[[Mapping[str, Any], str], Any]] = {
    "prompts": prompt,
    "demonstrations": demonstration,
    "comparisons": comparison,
    "rankings": ranking,
    "pretraining": pretraining_text,
}


@hookimpl
def register_components(register):
    register(JSONLines)
