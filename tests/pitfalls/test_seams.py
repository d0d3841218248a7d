"""Where two parts meet: sampler and training, reward model and policy, precision and statistics."""

import json

import pytest
import tiny_world
import torch
from tiny_world import EOS, encoder, next_laws, plain_scalars, tokens_of

from rlhf_lab.contracts import Ranking
from rlhf_lab.lm.logprobs import gather_logprobs
from rlhf_lab.lm.scalar import load_scalar_model
from rlhf_lab.rl.actors import open_actors
from rlhf_lab_plugins.policy.causal_lm import CausalLM, FullPolicy
from rlhf_lab_plugins.stage.reward_model import score_rankings

SMALL = {
    "reward": "words",
    "steps": 2,
    "batch_size": 8,
    "response_length": 4,
    "learning_rate": 0.03,
    "critic": "none",
    "advantage": "monte_carlo",
    "objective": ["ppo_clip"],
    "evaluation": {"every": 5, "prompts": 2},
}


def test_what_a_models_generation_config_says_changes_nothing(run_stage, world, tmp_path):
    """Greedy, top-k 1, top-p 0.1, a repetition penalty and another temperature, saved beside the weights."""
    tiny_world.save_policy(tmp_path / "sft")
    settings = {"do_sample": False, "top_k": 1, "top_p": 0.1, "temperature": 0.1, "repetition_penalty": 5.0, "min_length": 4}
    path = tmp_path / "sft" / "generation_config.json"
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **settings}))
    plain = run_stage("rl", SMALL)
    odd = run_stage("rl", SMALL, inputs={"sft": tmp_path / "sft"})
    assert odd.rows() == plain.rows() and odd.samples() == plain.samples()
    assert all(row["sampler_gap"] < 1e-5 for row in odd.rows("train"))


class HotPolicy(FullPolicy):
    """Samples at another temperature than it is asked for."""

    def rollout(self, prompts, rng, *, samples=1, greedy=False, response_length, temperature):
        return super().rollout(
            prompts, rng, samples=samples, greedy=greedy, response_length=response_length, temperature=0.7 * temperature
        )


class HotSampler(CausalLM):
    """A policy whose sampler is not what is trained (TRL kept log-probs of a sampler with other settings)."""

    kind, name = "policy", "hot_sampler"

    def build(self, ctx):
        policy = super().build(ctx)
        return HotPolicy(policy.module, policy.encoder, policy.frozen)


def test_a_sampler_that_is_not_the_policy_raises_an_alarm(open_stage, caplog):
    """KL, ratio and clip fraction at step 0 are all in order; only the gap between sampler and training shows it."""
    cfg, ctx = open_stage("rl", SMALL)
    cfg = cfg.model_copy(update={"policy": HotSampler()})
    cfg.run(ctx)
    rows = [row for row in tiny_world.Finished(ctx.folder).rows("train")]
    assert [row["sampler_alarm"] for row in rows] == [1.0, 1.0] and rows[0]["sampler_gap"] > 0.05
    assert abs(rows[0]["kl"]) < 1e-5 and rows[0]["first_ratio"] == pytest.approx(1, abs=1e-5)
    assert "sampler and training differ by" in caplog.text


def test_a_model_configured_with_dropout_has_none_in_reinforcement_learning(run_stage, tmp_path):
    """Dropout 0.5 in every place of GPT-2's configuration: what is sampled, trained on and compared is still one law."""
    from transformers import AutoModelForCausalLM

    model = tiny_world.causal_lm("gpt2")
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(model.config, key, 0.5)
    model.save_pretrained(tmp_path / "sft")
    tiny_world.tokenizer().save_pretrained(tmp_path / "sft")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "sft").config.attn_pdrop == 0.5
    for row in run_stage("rl", {**SMALL, "inner_epochs": 1}, inputs={"sft": tmp_path / "sft"}).rows("train"):
        assert row["sampler_gap"] < 1e-5 and row["ratio"] == pytest.approx(1, abs=1e-4)


def test_the_reward_model_is_asked_about_what_it_was_trained_on(world, open_stage):
    """The same tokens, EOS included where the response ended and absent where it was cut off, by plain forwards."""
    model = load_scalar_model(world / "reward_model")
    cfg, ctx = open_stage("rl", {**SMALL, "reward": "reward_model"})
    completions, ended = ("w1 w2", "w3 w3 w4 w5"), (True, False)
    with torch.no_grad():
        trained_BK, _, _ = score_rankings(ctx, model, encoder(), [Ranking("w0 w7", completions, (1.0, 0.0), ended)])
    asked = encoder().encode(["w0 w7"] * 2, completions, ended)
    scored_B = cfg.reward.open(ctx)(asked).scores_B
    expected = [model.gain * plain_scalars(model, prompt + response)[-1] + model.bias for prompt, response in tokens_of(asked)]
    assert trained_BK[0].tolist() == pytest.approx(expected, abs=1e-5) and scored_B.tolist() == pytest.approx(
        expected, abs=1e-5
    )
    assert [response[-1] == EOS for _, response in tokens_of(asked)] == [True, False]


def test_log_probs_are_in_fp32_whatever_the_logits_are():
    """bf16 logits of a model that runs in bf16 are widened before the softmax: 1e-6 from float64, not 1e-2."""
    logits_BTV = (8 * torch.randn(3, 5, 200, generator=torch.Generator().manual_seed(0))).bfloat16()
    ids_BT = logits_BTV.argmin(-1)
    exact_BT = logits_BTV.double().log_softmax(-1).gather(-1, ids_BT[..., None]).squeeze(-1)
    assert (gather_logprobs(logits_BTV.float(), ids_BT, 1.0).double() - exact_BT).abs().max() < 1e-4
    assert (gather_logprobs(logits_BTV, ids_BT, 1.0).double() - exact_BT).abs().max() > 1e-2


class Bf16(torch.nn.Module):
    """A language model whose logits come out in bf16."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **arguments):
        output = self.model(**arguments)
        output.logits = output.logits.bfloat16()
        return output


def test_opening_a_frozen_reward_model_freezes_nothing_else(open_stage):
    """Policy and critic, which come from the same stages as the reward model, still learn; the reward model does not."""
    cfg, ctx = open_stage("rl", {**SMALL, "reward": "reward_model", "critic": "value_model", "advantage": "gae",
                                 "objective": ["ppo_clip", "value_clip"]})  # fmt: skip
    actors = open_actors(cfg, ctx)
    rollout = encoder().encode(["w0", "w3"], ["w1 w2", "w4"])
    before_B = actors.reward(rollout).scores_B
    with torch.no_grad():
        for actor in (actors.policy, actors.critic):
            assert all(p.requires_grad for p in actor.module.parameters())
            for weight in actor.module.parameters():
                weight.add_(0.1)
    assert torch.equal(actors.reward(rollout).scores_B, before_B)


def test_from_the_second_step_on_a_batch_the_ratio_is_not_1(run_stage):
    """Old log-probs are those of the rollout, not those of the policy that is being trained."""
    (once,), (twice,) = (run_stage("rl", {**SMALL, "steps": 1, "inner_epochs": n}).rows("train") for n in (1, 2))
    assert once["ratio"] == pytest.approx(1, abs=1e-5) and once["approx_kl"] < 1e-9
    assert twice["first_ratio"] == pytest.approx(1, abs=1e-5) and twice["approx_kl"] > 1e-4


def test_response_logits_are_widened_before_the_softmax():
    """The path that every policy takes, with a model whose logits are bf16."""
    from rlhf_lab.lm.logprobs import response_logits

    rollout, model = encoder().encode(["w0"], ["w1 w2 w3"]), tiny_world.causal_lm()
    with torch.no_grad():
        logits_BTV = response_logits(Bf16(model), rollout)
    ((prompt, response),) = tokens_of(rollout)
    exact = next_laws(model, prompt + response)[len(prompt) - 1 : -1]
    assert logits_BTV.dtype == torch.float32
    assert (logits_BTV[0].double().log_softmax(-1) - exact).abs().max() < 0.05
