"""The enumerable world through the laboratory's own stages; what they train is measured by enumeration, without sampling."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from enumerated_world import BETA, DATA, RL, TINY, known
from pydantic import ValidationError
from tiny_world import component, context

import rlhf_lab
from rlhf_lab.cli import main
from rlhf_lab.errors import DataError, ModelError
from rlhf_lab.frontier import estimated_frontier
from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab.lm.logprobs import response_logprobs
from rlhf_lab.proof import exact
from rlhf_lab.streams import stream
from rlhf_lab_plugins.data.enumerable import Enumerable
from rlhf_lab_plugins.model.tabular import Tabular, load_table
from rlhf_lab_plugins.reward.table import Table

OPTIMISERS = {
    "ppo": {"inner_epochs": 4, "minibatches": 2},
    "rloo": {"advantage": "rloo", "samples_per_prompt": 4, "inner_epochs": 1},
    "reinforce": {"inner_epochs": 1},
}


@pytest.fixture
def train(run_stage):
    def train_(parameters, seed=0, **keywords):
        return run_stage("rl", {**RL, **parameters}, seed=seed, data=DATA, model="tabular", **keywords)

    return train_


# No policy lies above the frontier


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_no_trained_policy_lies_above_the_frontier(train, optimiser):
    """Three seeds, on the way and after an exploit: at β = 0 too, where nothing holds the policy back."""
    exactly, gaps, distances = known(), [], []
    for seed, beta, steps in ((0, BETA, 10), (1, BETA, 40), (2, 0.0, 60)):
        done = train({**OPTIMISERS[optimiser], "steps": steps, "kl": {"name": "fixed", "beta": beta}}, seed=seed)
        law_XN = exactly.law(load_table(done.folder / "policy"))
        gaps.append(exactly.gap(law_XN))
        distances.append(exactly.kl_and_reward(law_XN)[0])
    assert min(gaps) >= -1e-9
    assert distances[0] < distances[2] and distances[2] > 0.5


@pytest.mark.parametrize("optimiser, bound", [("ppo", 0.03), ("rloo", 0.02), ("reinforce", 0.03)])
def test_with_steps_enough_it_is_nearly_reached(train, optimiser, bound):
    """The reference is 1.68 nats from the optimum π* ∝ ref e^{r/β}; what is left of it are steps of Adam and their noise."""
    exactly = known()
    best_XN = exact.optimum(exactly.ref_XN, exactly.rewards_XN, BETA)
    assert exact.kl(exactly.ref_XN, best_XN).mean().item() > 1.6
    done = train({**OPTIMISERS[optimiser], "steps": 200, "batch_size": 256})
    law_XN = exactly.law(load_table(done.folder / "policy"))
    left = exact.kl(law_XN, best_XN).mean().item()
    assert left < bound
    assert -1e-9 <= exactly.gap(law_XN) < bound * BETA


@pytest.mark.parametrize("n", [2, 8, 64])
def test_best_of_n_lies_under_the_frontier(n):
    exactly = known()
    prompts = zip(exactly.ref_XN, exactly.rewards_XN, strict=True)
    law_XN = torch.stack([exact.best_of_n(ref_N, rewards_N, n) for ref_N, rewards_N in prompts])
    assert exactly.gap(law_XN) >= -1e-9
    assert exactly.kl_and_reward(law_XN)[0] <= np.log(n) - (n - 1) / n


def test_ppo_with_a_critic_on_a_transformer_lies_under_the_frontier_of_its_reference(run_stage):
    """The whole pipeline on the same world: SFT on its demonstrations, then PPO with GAE and a value network."""
    sft = run_stage("sft", {"epochs": 4, "learning_rate": 0.01, "sample_length": 3}, data=DATA, model=TINY)
    exactly = known(load_causal_lm(sft.folder))
    parameters = RL | {"policy": "causal_lm", "advantage": "gae", "objective": ["ppo_clip", "value_clip"], "steps": 40,
                       "critic": {"name": "value_model", "init": "sft"}, "learning_rate": 0.005}  # fmt: skip
    for seed, whiten in ((0, "none"), (1, "rollout")):
        done = run_stage("rl", {**parameters, "whiten_advantages": whiten}, seed=seed, inputs={"sft": sft.folder}, data=DATA,
                         model=TINY)  # fmt: skip
        law_XN = exactly.law(load_causal_lm(done.folder / "policy"))
        kl, reward = exactly.kl_and_reward(law_XN)
        assert exactly.gap(law_XN) >= -1e-9
        assert kl > 0.02 and reward > exactly.kl_and_reward(exactly.ref_XN)[1] + 0.1


ARMS = {
    "remax": {"advantage": "remax", "objective": ["policy_gradient"]},
    "tabular critic": {
        "advantage": "gae",
        "critic": "tabular",
        "objective": ["ppo_clip", {"name": "value_plain", "weight": 1.0}],
    },
}
ON_POLICY = {"inner_epochs": 1, "steps": 100, "batch_size": 256, "learning_rate": 0.1}


@pytest.mark.parametrize("arm", ARMS)
def test_other_ways_lead_to_the_same_optimum(train, arm):
    """π* ∝ ref e^{r/β} does not depend on the baseline."""
    exactly = known()
    best_XN = exact.optimum(exactly.ref_XN, exactly.rewards_XN, BETA)
    law_XN = exactly.law(load_table(train({**ON_POLICY, **ARMS[arm]}).folder / "policy"))
    assert exact.kl(law_XN, best_XN).mean().item() < 0.06 and exactly.gap(law_XN) >= -1e-9


def short_sighted(exactly):
    """π(v|s) ∝ ref(v|s) e^{Q(s,v)/β}, Q the score to be expected after v: a token pays for its KL, not for those to come."""
    space, laws = exactly.world.space, []
    for prompt, rewards_N in zip(exactly.world.prompts("validation"), exactly.rewards_XN, strict=True):
        value = torch.cat([rewards_N.new_zeros(len(space.states)), rewards_N])
        logprobs_SV = exactly.world.logprobs(prompt).clone()
        for level in reversed(list(space.levels())):
            logprobs_SV[level] = (logprobs_SV[level] + value[space.next_SV[level]] / BETA).log_softmax(-1)
            value[level] = (logprobs_SV[level].exp() * value[space.next_SV[level]]).sum(-1)
        laws.append(exact.response_logprobs(logprobs_SV, space))
    return torch.stack(laws)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
def test_a_kl_in_the_loss_is_short_sighted(train, estimator):
    """Whatever the estimator, if its gradient is the KL's: another optimum than that of the KL in the reward."""
    exactly = known()
    term = {"name": "kl_loss", "estimator": estimator}
    done = train({**ON_POLICY, "kl_placement": "loss", "objective": ["policy_gradient", term]})
    law_XN, expected_XN = exactly.law(load_table(done.folder / "policy")), short_sighted(exactly)
    best_XN = exact.optimum(exactly.ref_XN, exactly.rewards_XN, BETA)
    assert exact.kl(law_XN, expected_XN).mean().item() < 0.03 < 0.06 < exact.kl(expected_XN, best_XN).mean().item()


def test_a_kl_in_the_loss_is_as_good_for_single_tokens(train, run_stage):
    """There nothing is to come, and both optima are one."""
    data = {**DATA, "length": 1}
    exactly = known(data=data)
    objective = ["policy_gradient", {"name": "kl_loss", "estimator": "full"}]
    parameters = {**RL, **ON_POLICY, "kl_placement": "loss", "objective": objective, "response_length": 1}
    done = run_stage("rl", parameters, data=data, model="tabular")
    best_XN = exact.optimum(exactly.ref_XN, exactly.rewards_XN, BETA)
    assert exact.kl(exactly.law(load_table(done.folder / "policy")), best_XN).mean().item() < 0.01


def test_a_table_learns_the_values_of_a_policy_that_stands_still(train):
    """V(s) by the recursion over all continuations; β = 0, so that the score is all there is to expect."""
    exactly = known()
    done = train({"advantage": {"name": "gae", "lam": 1.0}, "critic": {"name": "tabular", "learning_rate": 0.1},
                  "objective": ["ppo_clip", {"name": "value_plain", "weight": 1.0}], "critic_warmup": 150, "steps": 150,
                  "batch_size": 512, "kl": "none", "inner_epochs": 1})  # fmt: skip
    last = [row["explained_variance"] for row in done.rows("train")[-30:]]
    space, everything = exactly.world.space, exactly.everything
    shares = []
    for x, _ in enumerate(everything):
        logprobs_SV = exact.conditionals(exactly.ref_XN[x], space)
        values_S, _ = exact.values(logprobs_SV, exactly.rewards_XN[x], space)
        per_token_NT = values_S[space.state_NT].masked_fill(~space.mask_NT, 0.0)
        p_N = exactly.ref_XN[x].exp()
        shares.append((p_N, per_token_NT, exactly.rewards_XN[x]))
    weight = torch.cat([(p_N[:, None] * space.mask_NT).flatten() for p_N, *_ in shares])
    value = torch.cat([v_NT.flatten() for _, v_NT, _ in shares])
    reward = torch.cat([r_N[:, None].expand_as(space.mask_NT).flatten() for *_, r_N in shares])

    def variance(x):
        mean = (weight * x).sum() / weight.sum()
        return ((weight * (x - mean) ** 2).sum() / weight.sum()).item()

    best = 1 - variance(reward - value) / variance(reward)
    assert best > 0.1 and np.mean(last) == pytest.approx(best, abs=0.01)


def test_what_is_logged_is_what_enumeration_says(train):
    """KL and reward of the last evaluation, on 2 × 2000 samples, within 5 standard errors of the exact ones."""
    exactly = known()
    done = train({"steps": 30, "evaluation": {"every": 10_000, "samples": 2000, "log_samples": 0}})
    law_XN, row = exactly.law(load_table(done.folder / "policy")), done.rows("validation")[-1]
    kl, reward = exactly.kl_and_reward(law_XN)
    second = exact.expectation(law_XN, exactly.rewards_XN**2).mean().item()
    assert row["kl"] == pytest.approx(kl, abs=5 * row["kl_se"]) and kl > 0.1
    assert row["reward_proxy"] == pytest.approx(reward, abs=5 * np.sqrt((second - reward**2) / 4000))


def test_the_frontier_from_samples_of_the_reference(policy):
    """As a language-model world would estimate it: from what the policy samples before it is trained."""
    exactly = known()
    sampled = policy.rollout(["a", "b a"], stream(0, "test"), samples=1000, response_length=3, temperature=1.0)
    frontier = estimated_frontier(Table().open(None)(sampled).scores_B.view(2, 1000).double().numpy())
    for kl in (0.05, 0.3, 1.0):
        error = frontier.reward_se_J[np.searchsorted(frontier.kl_J, kl)]
        expected = exact.frontier(exactly.ref_XN, exactly.rewards_XN, kl)
        assert frontier.reward_optimal_at_kl(kl) == pytest.approx(expected, abs=4 * error) and error < 0.06
    assert np.isnan(frontier.reward_optimal_at_kl(5.0))


# The policy


@pytest.fixture
def policy(world, tmp_path):
    """Policy `tabular` before it is trained."""
    ctx = context("rl", RL, tmp_path, world, data=DATA, model="tabular")
    return ctx.config.stages["rl"].policy.build(ctx)


def test_the_table_is_the_language():
    """Row by row, by the prompts' own contexts: looked up by name here, by running codes in the model."""
    exactly = known()
    for prompt, law_N in zip(exactly.world.prompts("train"), exactly.ref_XN, strict=True):
        expected = exact.response_logprobs(exactly.world.logprobs(prompt), exactly.world.space)
        torch.testing.assert_close(law_N, expected, rtol=0, atol=1e-6)
        assert law_N.exp().sum().item() == pytest.approx(1, abs=1e-13)


def test_padding_and_batch_composition_change_nothing(policy):
    """Prompts of one and of two words side by side, each response with its own length."""
    prompts = ["a", "b a", "a"]
    together = policy.encode(prompts, ["b", "c a", ""])
    logprobs_BT = policy.forward(together, temperature=1.0).logprobs_BT
    for b, (prompt, response) in enumerate(zip(prompts, ["b", "c a", ""], strict=True)):
        alone = policy.forward(policy.encode([prompt], [response]), temperature=1.0).logprobs_BT[0]
        assert torch.equal(logprobs_BT[b, : len(alone)], alone) and (logprobs_BT[b, len(alone) :] == 0).all()


def test_sampler_and_log_probs_are_of_one_law(policy):
    """20 000 samples a prompt: each response's share within 5 standard errors, its log-prob the enumerated one."""
    exactly = known()
    sampled = policy.rollout(["a", "b a"], stream(0, "test"), samples=20_000, response_length=3, temperature=1.0)
    rescored = response_logprobs(policy.module, sampled)
    torch.testing.assert_close(sampled.logprobs_BT, rescored, rtol=0, atol=1e-5)
    place = {y: n for n, y in enumerate(exactly.world.space.responses)}
    numbers = [place[tuple(ids[mask].tolist())] for ids, mask in zip(sampled.response_ids_BT, sampled.mask_BT, strict=True)]
    for x in range(2):
        counted = np.bincount(numbers[20_000 * x : 20_000 * (x + 1)], minlength=len(place)) / 20_000
        p = exactly.ref_XN[x].exp().numpy()
        assert (np.abs(counted - p) < 5 * np.sqrt(p * (1 - p) / 20_000)).all()
    torch.testing.assert_close(rescored.sum(1).double().detach(), torch.cat([exactly.ref_XN[0][numbers[:20_000]],
                               exactly.ref_XN[1][numbers[20_000:]]]), rtol=0, atol=1e-5)  # fmt: skip


def test_reference_stays_and_policy_moves(policy):
    rollout = policy.encode(["a"], ["b"])
    before = policy.reference_logprobs(rollout, temperature=1.0)
    with torch.no_grad():
        policy.module.table[:, 0] += 1.0
    assert torch.equal(policy.reference_logprobs(rollout, temperature=1.0), before)
    assert not torch.allclose(policy.forward(rollout, temperature=1.0).logprobs_BT, before)


def test_gradient_reaches_the_rows_of_the_contexts_only(policy):
    policy.forward(policy.encode(["b a"], ["c"]), temperature=1.0).logprobs_BT.sum().backward()
    touched = policy.module.table.grad.abs().sum(1).nonzero().squeeze(1).tolist()
    b, a, c = (("<eos>", "a", "b", "c").index(word) for word in ("b", "a", "c"))
    assert touched == [exact.context_code((b, a), 4), exact.context_code((b, a, c), 4)]


def test_save_and_load(policy, tmp_path):
    policy.save(tmp_path / "policy")
    assert torch.equal(load_table(tmp_path / "policy").table, policy.module.table)
    with pytest.raises(ModelError, match="holds no table"):
        load_table(tmp_path)


def test_responses_longer_than_the_table_are_refused(policy):
    with pytest.raises(DataError, match="exceed the model's context of 5 tokens"):
        policy.rollout(["b a"], stream(0, "test"), response_length=4, temperature=1.0)


def test_policy_and_model_say_what_they_need(world, tmp_path):
    ctx = context("rl", RL, tmp_path, world, data=DATA, model=TINY)
    with pytest.raises(ModelError, match="set model: tabular"):
        ctx.config.stages["rl"].policy.build(ctx)
    with pytest.raises(ModelError, match="set data: enumerable"):
        Tabular().open(context("rl", {}, tmp_path, world))


# Data and reward


def test_no_token_but_the_words_and_the_eos():
    tokenizer = component("data", DATA).open(None).tokenizer()
    assert tokenizer.get_vocab() == {"<eos>": 0, "a": 1, "b": 2, "c": 3}
    assert tokenizer.pad_token is tokenizer.bos_token is tokenizer.unk_token is None


def test_demonstrations_follow_the_language_given_that_they_end():
    exactly = known(data={**DATA, "demonstrations": 20_000})
    shown = exactly.world.demonstrations("train")
    texts = [rollout.responses for rollout in exactly.everything]
    for x, prompt in enumerate(exactly.world.prompts("train")):
        ended_N = exactly.world.space.ended_N
        p = (exactly.ref_XN[x].exp() * ended_N / (exactly.ref_XN[x].exp() * ended_N).sum()).numpy()
        completions = [d.completion for d in shown if d.prompt == prompt]
        place = {text: n for n, text in enumerate(texts[x]) if ended_N[n]}
        counted = np.bincount([place[text] for text in completions], minlength=len(p)) / len(completions)
        assert len(completions) == 10_000
        assert (np.abs(counted - p) < 5 * np.sqrt(p * (1 - p) / len(completions)) + 1e-12).all()


def test_splits_share_prompts_but_not_demonstrations():
    world = component("data", DATA).open(None)
    assert world.prompts("train") == world.prompts("validation") == ["a", "b a"]
    assert world.demonstrations("train") != world.demonstrations("validation")
    assert world.demonstrations("train") == component("data", DATA).open(None).demonstrations("train")
    assert world.pretraining("train")[0].startswith("a ") or world.pretraining("train")[0] == "a"
    with pytest.raises(DataError, match="no split 'test'"):
        world.prompts("test")
    with pytest.raises(DataError, match="comparisons"):
        world.rankings("train")


@pytest.mark.parametrize("prompts", [["d"], [""], ["a b c"], []])
def test_prompts_of_another_world_are_refused(prompts):
    with pytest.raises(ValidationError, match=r"one or two of the words a b c|at least 1 item"):
        Enumerable(words=3, prompts=prompts)


def test_every_parameter_of_the_language_counts():
    base = Enumerable().open(None).language()
    assert not torch.equal(Enumerable(seed=1).open(None).language(), base)
    torch.testing.assert_close(Enumerable(spread=3.0).open(None).language(), 3 * base)
    assert (Enumerable(spread=0.0).open(None).language() == 0).all()
    assert Enumerable(words=7, length=4).open(None).language().shape == (sum(8**n for n in range(6)), 8)


def test_given_and_drawn_scores():
    exactly = known(reward=Table(scores={"b": 7.0, "": -2.0}, scale=0.0))
    for rollout, rewards_N in zip(exactly.everything, exactly.rewards_XN, strict=True):
        expected = [{"b": 7.0, "": -2.0}.get(text, 0.0) for text in rollout.responses]
        assert rewards_N.tolist() == expected
    drawn, other = known(reward=Table()).rewards_XN, known(reward=Table(seed=1)).rewards_XN
    assert drawn.unique().numel() == drawn.numel() and not torch.equal(drawn, other)
    torch.testing.assert_close(known(reward=Table(scale=2.0)).rewards_XN, 2 * drawn)
    many = known(data={**DATA, "words": 7, "length": 4}).rewards_XN
    assert abs(many.mean()) < 4 / np.sqrt(many.numel()) and abs(many.std() - 1) < 4 / np.sqrt(2 * many.numel())


def test_a_score_can_be_redone_without_the_package():
    """The rule of the docstring, from numpy alone."""
    import zlib

    seeds = [3, zlib.crc32(b"reward_table"), zlib.crc32(b"a\nb c")]
    expected = np.random.default_rng(np.random.SeedSequence(seeds)).standard_normal()
    rollout = known().encoder.encode(["a"], ["b c"])
    assert Table(seed=3).open(None)(rollout).scores_B.item() == pytest.approx(expected, rel=1e-6)


# From the command line


def test_a_spec_runs(tmp_path):
    """Tables need no supervised stage: a spec with nothing but `rl`, two arms, from file to table."""
    (tmp_path / "spec.yaml").write_text("""
experiment: exact
base:
  data: enumerable
  model: tabular
  rl: {policy: tabular, critic: none, reward: table, objective: [ppo_clip], steps: 3, response_length: 3}
arms:
  monte_carlo: {rl.advantage: monte_carlo}
  rloo: {rl.advantage: rloo, rl.samples_per_prompt: 2}
resources: {workers: 1, threads: 1}
""")
    result = CliRunner().invoke(main, ["run", str(tmp_path / "spec.yaml"), "--out", str(tmp_path / "results")])
    assert result.exit_code == 0, result.output
    frame = rlhf_lab.load(tmp_path / "results" / "exact")
    assert frame[frame["split"] == "train"].groupby("arm").size().to_dict() == {"monte_carlo": 3, "rloo": 3}
    assert (frame[frame["step"] == 0]["kl"].abs() < 1e-6).all()
