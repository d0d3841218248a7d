"""TRL's experimental PPO and our RL stage on the same weights, prompts, sampled tokens and minibatches, both recorded.

TRL runs as it is: its trainer, its generation, its optimiser. What it computes is read from the local variables of
`PPOTrainer.train` at the calls that every rollout and every minibatch makes anyway. Then our stage runs, unchanged but
for its sampler, which hands out the tokens that TRL sampled.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiny_world
import torch
from torch import Tensor, nn

from rlhf_lab.contracts import Rollout
from rlhf_lab.lm.scalar import load_scalar_model
from rlhf_lab.rl import loop, update
from rlhf_lab.streams import stream
from rlhf_lab_plugins.policy.causal_lm import FullPolicy

SEED, STEPS, BATCH, EPOCHS, MINIBATCHES, LENGTH = 0, 3, 16, 2, 2, 6
RATE, BETA, TEMPERATURE, PENALTY = 1e-3, 0.3, 0.7, 0.4
OF_A_ROLLOUT = [
    *("queries", "responses", "sequence_lengths", "contain_eos_token", "padding_mask"),
    *("logprobs", "ref_logprobs", "scores", "rewards", "values", "advantages", "returns"),
]


@dataclass
class Record:
    """What one system computed: a mapping per rollout, one per minibatch, and the weights after the last."""

    rollouts: list[dict[str, Tensor]] = field(default_factory=list)
    minibatches: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, float]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)


def gradients(policy: nn.Module, critic: nn.Module) -> dict[str, Tensor]:
    """By our names; a weight that got none has zeros."""
    named = {f"policy.{k}": p for k, p in policy.named_parameters()} | {f"critic.{k}": p for k, p in critic.named_parameters()}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named.items()}


def weights(policy: nn.Module, critic: nn.Module) -> dict[str, Tensor]:
    named = {f"policy.{k}": p for k, p in policy.named_parameters()} | {f"critic.{k}": p for k, p in critic.named_parameters()}
    return {name: p.detach().clone() for name, p in named.items()}


class AsOurs(nn.Module):
    """A TRL value model under the names of our critic."""

    def __init__(self, value_model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = value_model.model, value_model.score


def save_world(folder: Path) -> None:
    """The tiny world with a critic that is not the reward model (or it would know each score beforehand), and a policy
    that never samples the padding token, which TRL would take for the end of the response.
    """
    tiny_world.save_reward_model(folder / "reward_model", seed=7)
    tiny_world.save_reward_model(folder / "critic", seed=8)
    policy = tiny_world.causal_lm()
    head = nn.Linear(policy.config.hidden_size, policy.config.vocab_size, bias=False)
    policy.config.tie_word_embeddings = False
    with torch.no_grad():
        head.weight.copy_(policy.lm_head.weight)
        policy.lm_head = head
        policy.model.embed_tokens.weight[:, 0] = 1.0
        for layer in policy.model.layers:  # the first coordinate stays 1 throughout, and forbids the padding token
            layer.self_attn.o_proj.weight[0], layer.mlp.down_proj.weight[0] = 0.0, 0.0
        head.weight[tiny_world.PAD] = 0.0
        head.weight[tiny_world.PAD, 0] = -1e3
    policy.save_pretrained(folder / "sft")
    tiny_world.tokenizer().save_pretrained(folder / "sft")


def sequence_classifier(folder: Path) -> nn.Module:
    """Our scalar model as TRL wants it. transformers' head has no bias; ours has one, so TRL is given a head with one."""
    from transformers import LlamaForSequenceClassification

    ours = load_scalar_model(folder)
    ours.backbone.config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        model = LlamaForSequenceClassification(ours.backbone.config)
    model.model.load_state_dict(ours.backbone.state_dict())
    model.score = ours.head
    return model.eval()


def run_trl(world: Path, folder: Path, monkeypatch: Any, **changes: Any) -> Record:
    """PPOTrainer.train, recorded. `changes` go into its PPOConfig."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    record = Record()
    tokenizer = tiny_world.tokenizer()
    tokenizer.padding_side = "left"
    prompts = tiny_world.TinyWorld(tiny_world.TinyData(prompts_per_split=5 * BATCH)).prompts("train")
    args = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": MINIBATCHES,
        "num_ppo_epochs": EPOCHS,
        "total_episodes": STEPS * BATCH,
        "response_length": LENGTH,
        "temperature": TEMPERATURE,
        "stop_token": "eos",
        "missing_eos_penalty": PENALTY,
        "kl_coef": BETA,
        "learning_rate": RATE,
        "adam_epsilon": 1e-5,
        "num_sample_generations": 0,
        "seed": SEED,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    policy, reference = (AutoModelForCausalLM.from_pretrained(world / "sft", dtype=torch.float32) for _ in range(2))
    critic = sequence_classifier(world / "critic")
    with torch.random.fork_rng(devices=[]):
        trainer = PPOTrainer(
            args=PPOConfig(**{**args, **changes}),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=sequence_classifier(world / "reward_model"),
            value_model=critic,
            train_dataset=Dataset.from_dict({"input_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts]}),
        )
        with monkeypatch.context() as patch:
            watch(ppo_trainer, trainer, record, patch)
            trainer.train()
    record.weights = weights(policy, AsOurs(critic))
    return record


def watch(module: Any, trainer: Any, record: Record, patch: Any) -> None:
    """Records what `trainer` computes, and gives it the order of minibatches that our stage draws."""
    whiten, backward, log = module.masked_whiten, trainer.accelerator.backward, trainer.log
    policy, critic = trainer.policy_model, AsOurs(trainer.value_model)

    def whitening(values, mask, shift_mean=True):
        if shift_mean:
            there = sys._getframe(1).f_locals
            record.rollouts.append({name: there[name].clone() for name in OF_A_ROLLOUT})
        white = whiten(values, mask, shift_mean)
        if shift_mean:
            record.rollouts[-1]["white"] = torch.masked_fill(white, ~mask, 0)
        return white

    def going_back(loss, **options):
        there = sys._getframe(1).f_locals
        record.minibatches.append({name: there[name].item() for name in ("pg_loss", "vf_loss", "loss")})
        backward(loss, **options)

    def stepping(optimizer, args, kwargs):
        record.minibatches[-1]["gradients"] = gradients(policy, critic)

    def logging(metrics, *args):
        record.logs.append(dict(metrics))
        log(metrics, *args)

    orders = (
        stream(SEED, "minibatches", step, epoch).permutation
        for step in range(trainer.args.num_total_batches)
        for epoch in range(trainer.args.num_ppo_epochs)
    )
    patch.setattr(module, "masked_whiten", whitening)
    patch.setattr(trainer.accelerator, "backward", going_back)
    patch.setattr(trainer, "log", logging)
    patch.setattr(np.random, "permutation", lambda n: next(orders)(n))
    trainer.optimizer.optimizer.register_step_pre_hook(stepping)


def rollout_of(recorded: dict[str, Tensor], stops: bool = True) -> Rollout:
    """TRL's tokens as a rollout of ours: a response ends with its first EOS; unless nothing stops it, then it never ends."""
    query, response = recorded["queries"], recorded["responses"]
    is_eos = (response == tiny_world.EOS) & stops
    mask = is_eos.cumsum(1) - is_eos.long() == 0
    return Rollout(
        ("",) * len(query),
        ("",) * len(query),
        query,
        query != tiny_world.PAD,
        response,
        mask,
        is_eos.any(1),
        torch.arange(len(query)),
        recorded["logprobs"].masked_fill(~mask, 0.0),
    )


CONVENTIONS = {
    "policy": "causal_lm",
    "critic": {"name": "value_model", "init": "comparisons", "learning_rate": RATE},
    "reward": "reward_model",
    "kl": {"name": "fixed", "beta": BETA},
    "kl_estimator": "k1",
    "advantage": {"name": "gae", "gamma": 1.0, "lam": 0.95},
    "objective": [{"name": "ppo_clip", "eps": 0.2}, {"name": "value_clip", "weight": 0.1, "eps": 0.2}],
    "steps": STEPS,
    "batch_size": BATCH,
    "minibatches": MINIBATCHES,
    "inner_epochs": EPOCHS,
    "response_length": LENGTH,
    "temperature": TEMPERATURE + 1e-7,
    "learning_rate": RATE,
    "schedule": "linear",
    "adam_betas": [0.9, 0.999],
    "adam_eps": 1e-5,
    "max_grad_norm": None,
    "aggregation": "token_mean",
    "whiten_advantages": "rollout",
    "whiten_ddof": 1,
    "no_eos_penalty": PENALTY,
    "evaluation": {"prompts": 1},
}


def run_ours(open_stage: Any, world: Path, trl: Record, monkeypatch: Any, *, stops: bool = True, **changes: Any) -> Record:
    """Our RL stage on the tokens that TRL sampled, recorded. `changes` go into its parameters."""
    record, rollouts = Record(), [rollout_of(recorded, stops) for recorded in trl.rollouts]
    assert not any((one.response_ids_BT[one.mask_BT] == tiny_world.PAD).any() for one in rollouts)
    sampled = iter(rollouts)
    # the critic's folder goes by the name of a stage that the tiny world does not use
    folders = {"sft": world / "sft", "reward_model": world / "reward_model", "comparisons": world / "critic"}
    cfg, ctx = open_stage("rl", {**CONVENTIONS, **changes}, seed=SEED, inputs=folders)
    sample, learn, step = FullPolicy.rollout, loop.update, update.optimizer_step
    actors = []

    def sampling(self, prompts, *args, **options):
        return next(sampled) if len(prompts) == cfg.batch_size else sample(self, prompts, *args, **options)

    def learning(cfg, ctx, live, batch, number):
        if not actors:
            live.optimizer.register_step_pre_hook(stepping)
        actors[:] = [live]
        there = sys._getframe(1).f_locals
        names = {"rewards": "rewards_BT", "values": "values_BT", "returns": "returns_BT", "white": "advantages_BT"}
        record.rollouts.append({name: there[local].clone() for name, local in names.items()})
        record.rollouts[-1] |= {"scores": batch.scores_B, "logprobs": batch.old_logprobs_BT, "mask": batch.rollout.mask_BT}
        record.rollouts[-1] |= {"ref_logprobs": batch.ref_logprobs_BT}
        metrics = learn(cfg, ctx, live, batch, number)
        record.logs.append(metrics)
        return metrics

    def minibatch(*args, **named):
        record.minibatches.append({})
        row = step(*args, **named)
        value_loss = next(value for name, value in row.items() if name.startswith("loss_value"))
        record.minibatches[-1] |= {"pg_loss": row["loss_ppo_clip"], "vf_loss": value_loss}
        return row

    def stepping(optimizer, args, kwargs):
        (live,) = actors
        record.minibatches[-1]["gradients"] = gradients(live.policy.module, live.critic.module)

    with monkeypatch.context() as patch:
        patch.setattr(FullPolicy, "rollout", sampling)
        patch.setattr(loop, "update", learning)
        patch.setattr(update, "optimizer_step", minibatch)
        cfg.run(ctx)
    (live,) = actors
    record.weights = weights(live.policy.module, live.critic.module)
    return record
