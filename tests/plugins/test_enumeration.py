"""Stage `enumeration`: exact frontier and best-of-n in the tables of a sweep; expected values by numpy from strings."""

import itertools
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from tiny_world import component, plain_logprobs

import rlhf_lab
from rlhf_lab.cli import main
from rlhf_lab.errors import DataError
from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab_analysis.frames import best_of_n_curve, optimum_curve

SPEC = """
experiment: exact
base:
  data: {name: enumerable, words: 2, length: 2, prompts: [a]}
  model: tabular
  best_of_n: {name: enumeration, reward: table, n: [1, 2, 5]}
  rl:
    policy: tabular
    critic: none
    reward: table
    advantage: rloo
    samples_per_prompt: 4
    objective: [ppo_clip]
    kl: {name: fixed, beta: 0.2}
    learning_rate: 0.1
    batch_size: 64
    steps: 10
    response_length: 2
    evaluation: {every: 5, samples: 500}
seeds: [0, 1]
resources: {workers: 1, threads: 1}
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enumeration")
    (folder / "spec.yaml").write_text(SPEC)
    result = CliRunner().invoke(main, ["run", str(folder / "spec.yaml"), "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return rlhf_lab.load(folder / "exact")


@pytest.fixture(scope="module")
def by_hand():
    """Reference probabilities and rewards of all seven responses to `a`, from the world's logits and numpy alone."""
    world = component("data", {"name": "enumerable", "words": 2, "length": 2, "prompts": ["a"]}).open(None)
    logits_CV = world.language().numpy()
    law_CV = np.exp(logits_CV) / np.exp(logits_CV).sum(1, keepdims=True)

    def code(ids):
        return sum((token + 1) * 3 ** (len(ids) - 1 - i) for i, token in enumerate(ids))

    strings = [(0,), *itertools.product((1, 2), range(3))]
    p = np.array([np.prod([law_CV[code((1, *y[:t])), y[t]] for t in range(len(y))]) for y in strings])
    assert p.sum() == pytest.approx(1, abs=1e-12)
    return p, np.array([score(y) for y in strings])


def score(y):
    """The number that reward `table` draws for a response to `a`, by the rule of its docstring."""
    text = " ".join("_ab"[token] for token in y if token)
    return np.random.default_rng(
        np.random.SeedSequence([0, crc32(b"reward_table"), crc32(f"a\n{text}".encode())])
    ).standard_normal()


def test_best_of_n_is_the_sum_over_all_draws(steps, by_hand):
    """KL is not the formula for a continuum, which is only a bound where responses are few."""
    p, rewards = by_hand
    curve = best_of_n_curve(steps).set_index("n")
    for n in (1, 2, 5):
        order = np.argsort(rewards)
        at_most = np.cumsum(p[order])
        law = np.empty_like(p)
        law[order] = at_most**n - (at_most - p[order]) ** n
        assert curve.loc[n, "reward_proxy"] == pytest.approx(law @ rewards, abs=1e-6)
        assert curve.loc[n, "kl"] == pytest.approx(law @ np.log(law / p), abs=1e-6)
    assert curve.loc[5, "kl"] < np.log(5) - 4 / 5 - 0.01


def test_the_frontier_is_that_of_the_tilted_policies(steps, by_hand):
    p, rewards = by_hand
    curve = optimum_curve(steps)
    assert len(curve) > 100
    for beta in (5.0, 1.0, 0.3):
        tilted = p * np.exp(rewards / beta)
        tilted /= tilted.sum()
        found = np.interp(tilted @ np.log(tilted / p), curve["kl"], curve["reward_proxy"])
        assert found == pytest.approx(tilted @ rewards, abs=1e-3)


def test_rows_of_training_have_the_optimum_at_their_kl(steps, by_hand):
    """Also where the policy has gone far: no estimate that ends where effective samples do."""
    p, rewards = by_hand
    rows = steps[(steps["stage"] == "rl") & (steps["split"] == "validation")]
    betas = np.geomspace(0.03, 300, 4000)
    tilted = p * np.exp((rewards - rewards.max()) / betas[:, None])
    tilted /= tilted.sum(1, keepdims=True)
    kl, reward = (tilted * np.log(tilted / p)).sum(1), tilted @ rewards
    expected = np.interp(rows["kl"].clip(lower=0), kl[::-1], reward[::-1])
    assert rows["kl"].max() > 0.3 and rows["reward_optimal_at_kl"].notna().all()
    np.testing.assert_allclose(rows["reward_optimal_at_kl"], expected, atol=2e-3)
    np.testing.assert_allclose(rows["frontier_gap"], rows["reward_optimal_at_kl"] - rows["reward_proxy"], atol=1e-12)
    noise = 4 * rewards.std() / np.sqrt(500)
    assert rows["frontier_gap"].min() > -noise


def test_the_frontier_is_drawn(steps, tmp_path):
    from rlhf_lab_analysis.reward_vs_kl import reward_vs_kl

    axes = reward_vs_kl(steps).axes
    assert any(len(line.get_xdata()) == len(optimum_curve(steps)) for axis in axes for line in axis.get_lines())


def test_other_worlds_are_refused(run_stage):
    with pytest.raises(DataError, match="lists every response; set data: enumerable"):
        run_stage("enumeration", {"reward": "words"})


def test_a_transformer_on_the_same_world(run_stage):
    """Its reference is its own law, not the world's: best-of-1 is the mean reward of the trained model, by plain forwards."""
    data, model = {"name": "enumerable", "words": 2, "length": 2, "prompts": ["a"]}, {"name": "scratch", "hidden_size": 8,
                                                                                     "layers": 1, "heads": 1}  # fmt: skip
    sft = run_stage("sft", {"sample_length": 2}, data=data, model=model)
    done = run_stage(
        "enumeration", {"policy": "sft", "reward": "table", "n": [1]}, inputs={"sft": sft.folder}, data=data, model=model
    )
    lm, strings = load_causal_lm(sft.folder), [(0,), *itertools.product((1, 2), range(3))]
    expected = sum(np.exp(sum(plain_logprobs(lm, [1], list(y)))) * score(y) for y in strings)
    (row,) = [row for row in done.rows("validation") if row["n"] == 1]
    assert row["reward_proxy"] == pytest.approx(expected, abs=1e-5) and row["kl"] == pytest.approx(0, abs=1e-12)
    assert pd.DataFrame(done.rows("frontier"))["kl"].is_monotonic_increasing
