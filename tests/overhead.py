"""What a sweep costs beside its stages: 27 micro PPO runs against SFT + reward model + 27 × RL ÷ workers.

    python tests/overhead.py [--workers 2] [--steps 40] [--keep FOLDER]

The stages are timed first, by one run that has the machine to itself with as many threads as a run of the sweep has; then
the sweep of 3 values of β × 9 seeds, from an empty folder, by the clock: starting Python, planning, workers, tables and all.

Measured on 2026-11-21, 2 cores, no GPU, --steps 30, nothing else running: 142.6 s against 36.7 + 27 × 6.93 / 2 = 130.3 s, a
ratio of 1.095; in the sweep a run of RL took 7.3 s. Beside the end of a test run it was 1.20.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BETAS, SEEDS, LIMIT = "0.05,0.2,0.8", 9, 1.1


def run(out: Path, *choices: str) -> float:
    """Seconds that the command takes."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "rlhf_lab.cli", "run", "quickstart", *choices, "--out", out, "--quiet"], check=True)
    return time.monotonic() - started


def stage_seconds(out: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for file in out.glob("*/stages/*/stage.json"):
        stage = json.loads(file.read_text())
        found.setdefault(stage["kind"], []).append(stage["seconds"])
    return found


def measure(folder: Path, workers: int, steps: int) -> dict[str, float]:
    same = (f"rl.steps={steps}", "resources.threads=1")
    run(folder / "alone", *same, "rl.kl.beta=0.2", "seeds=0", "resources.workers=1")
    alone = {kind: seconds for kind, (seconds,) in stage_seconds(folder / "alone").items()}
    seeds = ",".join(map(str, range(SEEDS)))
    wall = run(folder / "sweep", *same, f"rl.kl.beta={BETAS}", f"seeds={seeds}", f"resources.workers={workers}")
    beside = stage_seconds(folder / "sweep")
    assert len(beside["rl"]) == 27 and all(len(found) == 1 for kind, found in beside.items() if kind != "rl"), beside
    shared = sum(seconds for kind, seconds in alone.items() if kind != "rl")
    least = shared + 27 * alone["rl"] / workers
    return {
        "workers": workers,
        "rl_alone": alone["rl"],
        "rl_in_sweep": sum(beside["rl"]) / 27,
        "shared_stages": shared,
        "least": least,
        "sweep": wall,
        "ratio": wall / least,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(options.keep or Path(folder), options.workers, options.steps)
    print(json.dumps({name: round(value, 3) for name, value in measured.items()}, indent=1))
    return 0 if measured["ratio"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
