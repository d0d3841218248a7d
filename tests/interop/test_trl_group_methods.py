"""TRL 1.12.0's GRPO and RLOO trainers beside our estimators and loss terms.

Each trainer really runs, for two optimiser steps on one batch of samples: the first on policy, the second off policy, where
ratios differ from 1 and clips decide. What it was given and what it computed is recorded, and computed again by our parts from
the same weights, tokens and scores: advantages, the loss, and its gradient.

Tolerance 1e-5, gradients in units of their largest entry where that is above 1: both sides are fp32, sum in another order, and
agree to about 1e-6; a second step that ignored the ratio, another ddof or another aggregation is off by 1e-2 and more.
"""

from dataclasses import dataclass, field

import pytest

pytest.importorskip("trl", reason="TRL is not installed; `make interop` makes an environment that has it")

import tiny_world
import torch

from rlhf_lab.contracts import AdvantageInputs, Rollout
from rlhf_lab.rl import update
from rlhf_lab.rl.actors import open_actors
from rlhf_lab.rl.kl import per_token, sequence_kl
from rlhf_lab.rl.rewards import token_rewards
from rlhf_lab.rl.update import Batch

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-5
GROUP, BATCH, LENGTH, TEMPERATURE = 4, 16, 6, 0.7


@dataclass
class Step:
    """What TRL sampled, what its `_compute_loss` was given of that, what came out, and the weights that it used."""

    sampled: dict
    inputs: dict
    weights: dict
    loss: float = 0.0
    gradients: dict = field(default_factory=dict)


def scored(prompts, completions, completion_ids, **_):
    """A score per response that differs from one to the next: known by arithmetic, to both sides."""
    return [sum((3 * i + token) % 7 for i, token in enumerate(ids)) / 4 for ids in completion_ids]


def run_trl(trainer_class, config_class, world, folder, **changes):
    """Two optimiser steps of a TRL trainer on one batch, recorded."""
    from datasets import Dataset

    tokenizer = tiny_world.tokenizer()
    tokenizer.padding_side = "left"
    prompts = tiny_world.TinyWorld(tiny_world.TinyData(prompts_per_split=8)).prompts("train")
    args = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "num_generations": GROUP,
        "num_iterations": 2,
        "max_steps": 2,
        "max_completion_length": LENGTH,
        "temperature": TEMPERATURE,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 2,
        "model_init_kwargs": {"dtype": "float32"},
    }
    steps = []
    with torch.random.fork_rng(devices=[]):
        trainer = trainer_class(
            model=str(world / "sft"),
            reward_funcs=scored,
            args=config_class(**{**args, **changes}),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
        )
        compute, generate, sampled = trainer._compute_loss, trainer._generate_and_score_completions, []

        def generating(inputs):
            sampled[:] = [generate(inputs)]
            return sampled[0]

        def computing(model, inputs):
            weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
            steps.append(Step(sampled[0], inputs, weights))
            loss = compute(model, inputs)
            steps[-1].loss = loss.item()
            return loss

        def stepping(optimizer, args, kwargs):
            steps[-1].gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}

        trainer._compute_loss, trainer._generate_and_score_completions = computing, generating
        trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(stepping)
        trainer.train()
    assert len(steps) == 2
    return steps


def shuffled(step):
    """Where each row that the loss saw stood when it was sampled: TRL shuffles in between."""
    names = ("prompt_ids", "completion_ids")
    seen, sampled = (torch.cat([one[name] for name in names], 1) for one in (step.inputs, step.sampled))
    alike_BB = (seen[:, None] == sampled[None]).all(-1)
    alike_BB &= step.inputs["advantages"][:, None] == step.sampled["advantages"][None]
    assert alike_BB.any(1).all()
    return alike_BB.int().argmax(1)


def rollout_of(inputs):
    """TRL's batch, as it was sampled, as a rollout of ours."""
    mask_BT = inputs["completion_mask"].bool()
    ended_B = ((inputs["completion_ids"] == tiny_world.EOS) & mask_BT).any(1)
    nothing, group_B = ("",) * len(mask_BT), torch.arange(len(mask_BT)) // GROUP
    prompt_ids_BP, prompt_mask_BP = inputs["prompt_ids"], inputs["prompt_mask"].bool()
    return Rollout(nothing, nothing, prompt_ids_BP, prompt_mask_BP, inputs["completion_ids"], mask_BT, ended_B, group_B)


def run_ours(open_stage, first, step, **parameters):
    """Advantages, loss and gradient by our parts: token rewards, estimator, objective terms, aggregation, temperature."""
    cfg, ctx = open_stage(
        "rl",
        {
            "critic": "none",
            "reward": "words",
            "whiten_advantages": "none",
            "samples_per_prompt": GROUP,
            "batch_size": BATCH,
            "response_length": LENGTH,
            "temperature": TEMPERATURE,
            **parameters,
        },
    )
    actors, rollout = open_actors(cfg, ctx), rollout_of(step.sampled)
    ids = [row[mask].tolist() for row, mask in zip(rollout.response_ids_BT, rollout.mask_BT, strict=True)]
    scores_B = torch.tensor(scored(None, None, ids))
    with torch.no_grad():
        ref_logprobs_BT = actors.policy.reference_logprobs(rollout, temperature=TEMPERATURE)
        actors.policy.module.load_state_dict(first.weights, strict=False)
        old_logprobs_BT = actors.policy.forward(rollout, temperature=TEMPERATURE).logprobs_BT
    beta = actors.kl_state["beta"]
    kl_BT = per_token("k1", old_logprobs_BT, ref_logprobs_BT, rollout.mask_BT)
    in_reward = 0.0 if cfg.kl_placement == "loss" else beta
    rewards_BT = token_rewards(scores_B, kl_BT, rollout.mask_BT, in_reward)
    inputs = AdvantageInputs(rewards_BT, rollout.mask_BT, scores_B, rollout.group_B, rollout.ended_B)
    estimate = cfg.advantage.estimate(inputs, {})
    batch = Batch(rollout, old_logprobs_BT, ref_logprobs_BT, *estimate[:2], None, scores_B, beta)
    actors.policy.module.load_state_dict(step.weights, strict=False)
    metrics = {}
    index = shuffled(step)
    update.backward(cfg, ctx, actors, cfg.objective, rollout.rows(index), update.select(cfg, batch, index), metrics)
    gradients = {name: p.grad for name, p in actors.policy.module.named_parameters()}
    loss = sum(term.weight * metrics[f"loss_{term.name}"].item() for term in cfg.objective)
    advantages_B = estimate.advantages_BT[torch.arange(BATCH), 0]
    return advantages_B, loss, gradients, metrics, sequence_kl(old_logprobs_BT, ref_logprobs_BT, rollout.mask_BT)


def assert_gradients_agree(theirs, ours, scale=1.0):
    assert theirs.keys() == ours.keys()
    largest = max(1.0, max(gradient.abs().max().item() for gradient in theirs.values()))
    for name in theirs:
        assert (theirs[name] - scale * ours[name]).abs().max().item() < TOLERANCE * largest, name


CLIP = {"name": "ppo_clip", "eps": 0.2}
KL_IN_LOSS = {"kl": {"name": "fixed", "beta": 0.3}, "kl_placement": "loss"}
GRPO_CASES = {
    "grpo": ({"loss_type": "grpo"}, {"aggregation": "sequence_mean", "objective": [CLIP]}),
    "bnpo": ({"loss_type": "bnpo"}, {"aggregation": "token_mean", "objective": [CLIP]}),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"aggregation": "constant", "objective": [CLIP], "advantage": "dr_grpo"},
    ),
    "dapo": (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"aggregation": "token_mean", "objective": [{"name": "clip_higher", "eps_low": 0.2, "eps_high": 0.28}]},
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.05},
        {"aggregation": "token_mean", "objective": [{"name": "cispo", "threshold": "trl", "eps_high": 1.05}]},
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        {"aggregation": "sequence_mean", "objective": [{"name": "gspo", "eps_low": 3e-4, "eps_high": 4e-4}]},
    ),
    "dual_clip": (
        {"loss_type": "bnpo", "epsilon": 0.05, "delta": 1.1},
        {"aggregation": "token_mean", "objective": [{"name": "dual_clip", "eps": 0.05, "c": 1.1}]},
    ),
    "kl_k3": (
        {"loss_type": "bnpo", "beta": 0.3, "use_bias_correction_kl": False},
        {
            "aggregation": "token_mean",
            **KL_IN_LOSS,
            "objective": [CLIP, {"name": "kl_loss", "estimator": "k3", "importance_weight": False}],
        },
    ),
    "kl_k3_weighted": (
        {"loss_type": "bnpo", "beta": 0.3, "use_bias_correction_kl": True},
        {
            "aggregation": "token_mean",
            **KL_IN_LOSS,
            "objective": [CLIP, {"name": "kl_loss", "estimator": "k3"}],
        },
    ),
}
BINDS = {**dict.fromkeys(["grpo", "dapo", "cispo", "gspo"], "clip_fraction"), "dual_clip": "dual_clip_fraction"}


@pytest.mark.parametrize("case", GRPO_CASES)
def test_grpo_advantages_losses_and_gradients(case, world, open_stage, tmp_path):
    """GRPOTrainer's loss types: group advantages (sample std, ε 1e-4; no std for dr_grpo), loss and gradient at both steps."""
    from trl import GRPOConfig, GRPOTrainer

    theirs, ours = GRPO_CASES[case]
    steps = run_trl(GRPOTrainer, GRPOConfig, world, tmp_path, **theirs)
    for number, step in enumerate(steps):
        advantages_B, loss, gradients, metrics, _ = run_ours(
            open_stage, steps[0], step, **{"kl": "none", "advantage": "grpo", **ours}
        )
        assert torch.allclose(step.sampled["advantages"], advantages_B, atol=TOLERANCE, rtol=0)
        assert step.loss == pytest.approx(loss, abs=TOLERANCE)
        assert_gradients_agree(step.gradients, gradients)
        if number == 1:
            assert abs(metrics["ratio"].item() - 1) > 1e-2
            if case in BINDS:
                assert metrics[BINDS[case]] > 0.02
    assert steps[0].inputs["completion_mask"].sum() < BATCH * LENGTH


def test_rloo_advantages_and_gradient(world, open_stage, tmp_path):
    """RLOOTrainer: leave-one-out of score − β·Σ k1; on policy its gradient is that of −E[A Σ_t log π(y_t)].

    TRL sums log-probs over a response and takes the mean over responses; our `constant` aggregation also divides by
    `response_length`, so ours times 6 is TRL's. Off policy TRL clips the ratio of whole responses, exp(Σ_t log ρ_t),
    at 1 ± 0.2, which we do not have (`gspo` clips the geometric mean). So both steps here are on policy, on new samples.
    """
    from trl import RLOOConfig, RLOOTrainer

    steps = run_trl(RLOOTrainer, RLOOConfig, world, tmp_path, beta=0.3, num_iterations=1)
    kl = {"name": "fixed", "beta": 0.3}
    ours = {"kl": kl, "advantage": "rloo", "objective": ["policy_gradient"], "aggregation": "constant"}
    for number, step in enumerate(steps):
        advantages_B, _, gradients, _, kl_B = run_ours(open_stage, step, step, **ours)
        assert torch.allclose(step.sampled["advantages"], advantages_B, atol=TOLERANCE, rtol=0)
        assert_gradients_agree(step.gradients, gradients, scale=LENGTH)
        if number == 1:
            assert kl_B.abs().mean() > 0.01
