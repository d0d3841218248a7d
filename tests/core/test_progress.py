"""What a person sees while a sweep runs."""

import io
import re

import pytest
from micro_spec import write_spec
from rich.console import Console

from rlhf_lab.cli.progress import Bars, Lines, labels
from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.registry import discover
from rlhf_lab.running.plan import plan_sweep


@pytest.fixture
def plan(tmp_path):
    registry = discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})
    arms = "arms:\n  plain: {}\n  '[red]arm': {rl.steps: 2}"
    return plan_sweep(load_sweep(write_spec(tmp_path, seeds="seeds: [4]", arms=arms), [], registry), registry)


def progress(done, text="kl 0.1"):
    return {"event": "progress", "stage": "rl", "done": done, "total": 9, "text": text}


def test_a_run_is_called_by_arm_axes_and_seed(plan):
    assert list(labels(plan).values()) == [
        "plain beta=0.1 seed=4", "plain beta=1 seed=4", "[red]arm beta=0.1 seed=4", "[red]arm beta=1 seed=4"
    ]  # fmt: skip


def test_lines_come_now_and_then_and_at_the_end_of_a_run(plan, capsys):
    first, second = (run.run_id for run in plan.runs[:2])
    with Lines(plan, interval=1000.0) as lines:
        lines.last = {first: float("-inf")}
        lines(first, {"event": "started"})
        for done in range(1, 5):
            lines(first, progress(done))
        lines(first, {"event": "finished", "status": "done"})
        lines(second, {"event": "finished", "status": "failed", "error": "x"})
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert out == "" and said[0] == "plain beta=0.1 seed=4: rl 1/9  kl 0.1"
    assert re.fullmatch(r"plain beta=0.1 seed=4: done  \(1/4 runs, about \d+ s left\)", said[1])
    assert re.fullmatch(r"plain beta=1 seed=4: failed  \(2/4 runs, about \d+ s left\)", said[2]) and len(said) == 3


def test_bars_count_runs_and_show_what_is_at_work(plan):
    bars = Bars(plan, reused=1)
    bars.progress.live.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    run_id = plan.runs[2].run_id
    with bars:
        bars(run_id, {"event": "started"})
        bars(run_id, progress(3, "[bold]kl"))
        (task,) = [task for task in bars.progress.tasks if task.id != bars.sweep]
        assert (task.completed, task.total) == (3, 9)
        assert task.description == "\\[red]arm beta=0.1 seed=4: rl", "text from outside is no markup"
        bars(run_id, {"event": "finished", "status": "done"})
        bars(plan.runs[0].run_id, {"event": "finished", "status": "failed"})
    (sweep,) = bars.progress.tasks
    assert (sweep.completed, sweep.total) == (3, 4)


def test_what_a_label_or_a_metric_says_cannot_steer_the_terminal(plan, capsys):
    """A label is text of the spec, and a stage of a plugin says what it likes."""
    evil = "\x1b]0;owned\x07a\x1b[2Jb\x9b31mc\u202ed\r\ne"
    run_id = plan.runs[0].run_id
    lines = Lines(plan, interval=0)
    lines.labels = {run_id: evil}
    lines(run_id, progress(1, evil))
    bars = Bars(plan)
    bars.labels = {run_id: evil}
    bars.progress.live.console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with bars:
        bars(run_id, progress(3, evil))
        (task,) = [task for task in bars.progress.tasks if task.id != bars.sweep]
    said = capsys.readouterr().err
    assert said == "]0;owned" + "abcd e: rl 1/9  ]0;owned" + "abcd e\n"
    for text in (task.description, task.fields["text"]):
        assert "abcd" in text and not re.search("[\x00-\x1f\x7f-\x9f\u202e]", text)
