"""Fault 13: numbers that are not finite. Fault 22: clocks that jump."""

import ast
import itertools
import math
import time
from pathlib import Path

import pytest
import tiny_world
import torch

import rlhf_lab
from rlhf_lab.contracts import Component, Loss, hookimpl, param
from rlhf_lab.errors import NumericsError, RewardError
from rlhf_lab.results.tables import compact, load
from rlhf_lab.rl.not_finite import kept
from rlhf_lab.store.files import commit, write_json

RL = {"steps": 4, "batch_size": 4, "response_length": 3, "reward": "words", "evaluation": {"every": 9, "prompts": 2}}
RL |= {"critic": "none", "advantage": "monte_carlo", "objective": ["ppo_clip"], "kl": {"name": "adaptive", "target": 1.0}}


class Broken(Component):
    """What `words` gives, but NaN at the calls with these numbers (0 is the evaluation at the start)."""

    kind, name = "reward", "broken"
    at: list[int] = param([], "numbers of the calls")

    def open(self, ctx):
        plain, calls = tiny_world.WordScore().open(ctx), itertools.count()
        return lambda rollout: plain(rollout).scores_B * (math.nan if next(calls) in self.at else 1.0)


class Explodes(Component):
    """The plain policy gradient; at the n-th minibatch its loss is finite and its gradient is not (√ at 0)."""

    kind, name, needs = "objective", "explodes", frozenset()
    weight: float = param(1.0, "weight")
    at: int = param(2, "number of the minibatch")

    def loss(self, new, batch):
        Explodes.calls += 1
        plain = -batch.aggregate(new.logprobs_BT * batch.advantages_BT)
        zero = (new.logprobs_BT.sum() * 0.0).abs()
        return Loss(plain + zero.sqrt() if Explodes.calls - 1 == self.at else plain)


@hookimpl
def register_components(register):
    register(Broken)
    register(Explodes)


@pytest.fixture(autouse=True, scope="module")
def registered():
    import test_not_finite

    found = tiny_world.registry()
    if ("reward", "broken") not in {(r.kind, r.name) for r in found.registrations()}:
        found.add_module(test_not_finite, "test-not-finite", "0")


def weights_after(run_stage, steps, **more):
    return run_stage("rl", {**RL, "schedule": "constant", **more, "steps": steps}).weights()


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_fault_13_a_run_fails_by_default(run_stage):
    with pytest.raises(RewardError, match="reward 'broken' returned nan for the response"):
        run_stage("rl", RL | {"reward": {"name": "broken", "at": [2]}})


def test_fault_13_continue_leaves_the_update_out_and_stores_the_nan(run_stage):
    """The NaN comes in the third step: weights are those of the three good steps in a row of four that have its gap."""
    done = run_stage("rl", RL | {"reward": {"name": "broken", "at": [3]}, "on_nan": "continue"})
    rows = done.rows("train")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row.get("not_finite") for row in rows] == [None, None, 4, None], "four inner epochs of one minibatch"
    assert rows[2]["reward_proxy"] is None and rows[2]["loss_ppo_clip"] is None, "null in JSON, never a NaN token"
    assert all(row["kl"] is not None and math.isfinite(row["beta"]) for row in rows)
    assert rows[3]["reward_proxy"] is not None and all(w.isfinite().all() for w in done.weights().values())


def test_fault_13_stop_ends_the_stage_with_the_weights_from_before(run_stage):
    stopped = run_stage("rl", RL | {"schedule": "constant", "reward": {"name": "broken", "at": [3]}, "on_nan": "stop"})
    assert [row["step"] for row in stopped.rows("train")] == [0, 1, 2]
    assert stopped.rows("train")[-1]["not_finite"] == 4
    assert equal(stopped.weights(), weights_after(run_stage, 2))


def test_fault_13_an_infinite_gradient_of_a_finite_loss_is_noticed(run_stage):
    """Adam would take it into its moments, and every weight would be NaN from then on."""
    terms = RL | {"objective": [{"name": "explodes"}], "inner_epochs": 1}
    Explodes.calls = 0
    with pytest.raises(
        NumericsError, match=r"stage rl: the loss is not finite: \{'grad_norm_policy': nan\}; lower the learning"
    ):
        run_stage("rl", terms)
    Explodes.calls = 0
    done = run_stage("rl", terms | {"on_nan": "continue"})
    assert [row.get("not_finite") for row in done.rows("train")] == [None, None, 1, None]
    assert all(w.isfinite().all() for w in done.weights().values())


@pytest.mark.parametrize("policy, n_rows", [("stop", 2), ("continue", 3)])
def test_fault_13_supervised_training(policy, n_rows, run_stage):
    """After one step at that rate the softmax is that of huge logits: the loss is still a number, its gradient is none."""
    explosive = {"batch_size": 8, "learning_rate": 1e30, "max_grad_norm": None, "schedule": "constant", "log_samples": 0}
    with pytest.raises(NumericsError, match=r"stage sft, step 1: the loss is not finite: \{'grad_norm': nan\}"):
        run_stage("sft", explosive)
    rows = run_stage("sft", explosive | {"on_nan": policy}).rows("train")
    assert len(rows) == n_rows and rows[1]["not_finite"] == 1 and rows[1]["grad_norm"] is None


def test_fault_13_a_state_does_not_keep_a_nan():
    assert kept({"beta": 0.1}, {"beta": math.nan}) == {"beta": 0.1}
    assert kept({"beta": 0.1}, {"beta": 0.2}) == {"beta": 0.2}


def test_fault_13_the_table_of_runs_says_how_many_updates_were_left_out(tmp_path):
    for run in ("good", "bad"):
        stage = tmp_path / "stages" / run
        stage.mkdir(parents=True)
        more = ', "not_finite": 2, "loss": null' if run == "bad" else ', "loss": 1.5'
        (stage / "steps.jsonl").write_text('{"step": 0, "split": "train"' + more + "}\n")
        commit(stage)
        told = {"run_id": run, "arm": "base", "axes": {}, "seed": 0, "stages": {"rl": run}, "store": str(tmp_path / "stages")}
        write_json(tmp_path / "runs" / run / "run.json", told)
    write_json(tmp_path / "plan.json", {"runs": ["good", "bad"]})
    compact(tmp_path)
    assert load(tmp_path, "runs")["not_finite"].tolist() == [0, 2]
    steps = load(tmp_path).set_index("run_id")
    assert math.isnan(steps.loc["bad", "loss"]) and steps["loss"].dtype == float


# Clocks

ASKS_THE_CLOCK = {"time.time", "datetime.now", "datetime.datetime.now", "datetime.utcnow", "time.time_ns", "uuid.uuid1"}
FOR_DISPLAY = {"leases", "garbage", "look", "folder", "status"}


def test_fault_22_nothing_is_named_by_the_time():
    """Ids are hashes and durations are monotonic: the calendar is only for people to read."""
    for path in Path(rlhf_lab.__file__).parent.rglob("*.py"):
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert not calls & ASKS_THE_CLOCK or path.stem in FOR_DISPLAY, path


def test_fault_22_a_clock_that_jumps_back_changes_nothing(run_stage, monkeypatch):
    expected = run_stage("rl", RL).rows()
    hours = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    monkeypatch.setattr(time, "time_ns", lambda: next(hours) * 10**9)
    assert run_stage("rl", RL).rows() == expected
