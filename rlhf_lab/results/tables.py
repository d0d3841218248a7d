"""From what runs and stages wrote to tidy tables, and back into frames.

runs.parquet      a row per run: run_id, arm, seed, status, seconds, each axis as a column, provenance
steps.parquet     a row per run × stage × step × split: kl, reward_proxy, reward_gold, entropy, …
samples.parquet   a row per sampled response that was kept
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_lab.errors import DataError
from rlhf_lab.frontier import from_table
from rlhf_lab.store.files import SCHEMA, is_committed, read_json, write_atomically

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "runs": ("run_id", "arm", "seed", "status", "seconds"),
    "steps": (
        "run_id",
        "arm",
        "seed",
        "stage",
        "step",
        "split",
        "kl",
        "reward_proxy",
        "reward_gold",
        "entropy",
        "response_length",
        "beta",
    ),
    "samples": ("run_id", "stage", "step", "prompt", "response", "reward_proxy", "reward_gold"),
}


def compact(results: Path) -> dict[str, pd.DataFrame]:
    """Writes the three tables; rebuilding them loses nothing."""
    made = tables(results)
    for name, frame in made.items():
        write_parquet(frame, results / f"{name}.parquet")
    return made


def tables(results: Path) -> dict[str, pd.DataFrame]:
    """The tables of the runs that plan.json lists, in its order, from the stages that are finished at this moment.

    What an earlier version of the spec ran stays in the folder, and is in the tables again when a spec asks for it again.
    """
    folders = [results / "runs" / run_id for run_id in read_json(results / "plan.json")["runs"]]
    rows: dict[str, list[dict[str, Any]]] = {"runs": [], "steps": [], "samples": []}
    for folder in folders:
        run = read_json(folder / "run.json")
        rows["runs"].append(run_row(folder, run))
        rows["steps"] += stage_rows(run, "steps.jsonl", ("run_id", "arm", "seed"))
        rows["samples"] += stage_rows(run, "samples.jsonl", ("run_id",))
    made = {name: tidy(name, table) for name, table in rows.items()}
    made["steps"] = with_frontier(made["steps"])
    made["runs"] = with_updates_left_out(made["runs"], made["steps"])
    return made


def with_updates_left_out(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Adds `not_finite`, how many updates a run left out since a number was NaN or infinite, if any run of the sweep did."""
    if "not_finite" not in steps:
        return runs
    counts = steps.groupby("run_id")["not_finite"].sum()
    return runs.assign(not_finite=runs["run_id"].map(counts).fillna(0).astype(int))


def with_frontier(steps: pd.DataFrame) -> pd.DataFrame:
    """Adds the highest proxy at each row's KL and what the policy lacks of it, where the run estimated its frontier.

    Only validation rows of the rl stage have them: the frontier is one of the validation prompts. Blank where the estimate
    does not reach (too few effective samples).
    """
    points = steps[steps["split"] == "frontier"]
    optimal = pd.Series(math.nan, index=steps.index)
    for run_id, rows in points.groupby("run_id"):
        mine = (
            (steps["run_id"] == run_id)
            & (steps["split"] == "validation")
            & steps["kl"].notna()
            & ~steps["stage"].isin(points["stage"])
        )
        optimal[mine] = from_table(rows).reward_optimal_at_kl(steps.loc[mine, "kl"])
    return steps.assign(reward_optimal_at_kl=optimal, frontier_gap=optimal - steps["reward_proxy"]) if len(points) else steps


def tidy(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A frame with the promised columns first, whatever the rows hold; a column has one type, text where it has several."""
    frame = pd.DataFrame(rows)
    for column in COLUMNS[name]:
        if column not in frame:
            frame[column] = math.nan
    for column in filter(lambda column: pd.api.types.is_object_dtype(frame[column]), frame.columns):
        if len({type(value) for value in frame[column].dropna()}) > 1:  # such as an axis over "none" and 0.5
            frame[column] = frame[column].map(str, na_action="ignore")
    return frame[[*COLUMNS[name], *(c for c in frame.columns if c not in COLUMNS[name])]]


def run_row(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    status = read_json(folder / "status.json") if (folder / "status.json").is_file() else {"status": "pending"}
    axes = {axis: axis_label(value) for axis, value in run["axes"].items()}
    kept = {key: status[key] for key in ("device", "threads", "error") if key in status}
    packages = {f"version_{name}": version for name, version in status.get("packages", {}).items()}
    return {
        "run_id": run["run_id"],
        "arm": run["arm"],
        "seed": run["seed"],
        "status": status["status"],
        "seconds": status.get("seconds", math.nan),
        **axes,
        **kept,
        **run.get("git", {}),
        **packages,
    }


def axis_label(value: Any) -> Any:
    """Numbers, texts and truth values as they are; a component as its name with its parameters."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}={axis_label(item)}" for key, item in value.items() if key != "name")
        return f"{value.get('name', '')}({inner})" if inner else str(value.get("name", ""))
    return json.dumps(value) if isinstance(value, list) else value


def stage_rows(run: Mapping[str, Any], file: str, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of each finished stage of a run, under the name that the run gives the stage."""
    for stage, hash in run["stages"].items():
        folder = Path(run["store"]) / hash
        if is_committed(folder) and (folder / file).is_file():
            for row in read_rows(folder / file):
                yield {**{key: run[key] for key in keys}, **row, "stage": stage}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """JSON lines; null stands for NaN. A last line that is not whole is passed over: it is being written, or was cut off."""
    with open(path, "rb") as file:
        for line in filter(lambda line: line.endswith(b"\n"), file):
            yield {key: math.nan if value is None else value for key, value in json.loads(line).items()}


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Atomically, with the version of the schema in the file's metadata."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"rlhf_lab.schema": str(SCHEMA).encode()})
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue().to_pybytes())


def check_schema(path: Path) -> None:
    """Raises DataError for a table that a newer rlhf_lab wrote, or that is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({error}); `rlhf-lab run` writes it anew") from None
    schema = int(metadata.get(b"rlhf_lab.schema", SCHEMA))
    if schema > SCHEMA:
        raise DataError(f"{path} was written by a newer rlhf_lab (schema {schema}, this one knows {SCHEMA}); install that one")


def load(folder: str | Path, table: str = "steps") -> pd.DataFrame:
    """A table of a results folder as a frame; steps and samples come with the axes (and arm, seed) of their run.

        df = rlhf_lab.load("results/quickstart")
        sns.lineplot(df, x="kl", y="reward_gold", hue="rl.kl.beta", units="seed", estimator=None)

    `table` is "steps", "samples" or "runs". Raises DataError where there is no such table.
    """
    path = Path(folder) / f"{table}.parquet"
    if table not in COLUMNS:
        raise DataError(f"there is no table {table!r}; there are {', '.join(COLUMNS)}")
    if not path.is_file():
        raise DataError(f"{path} does not exist; is {folder} the folder of a finished sweep?")
    check_schema(path)
    frame = pd.read_parquet(path)
    if table == "runs":
        return frame
    runs = pd.read_parquet(Path(folder) / "runs.parquet")
    known = {"status", "seconds", "device", "threads", "error", "git_revision", "git_dirty"}
    joined = [
        "run_id",
        *(c for c in runs.columns if c not in frame.columns and c not in known and not c.startswith("version_")),
    ]
    return frame.merge(runs[joined], on="run_id", how="left")
