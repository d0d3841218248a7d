"""The conventions of TRL's PPO, as `tests/interop` checks them against the real thing."""

from rlhf_lab.contracts import Preset, hookimpl

CONFIG = "TRL 1.12.0, trl.experimental.ppo PPOConfig"
CODE = "TRL 1.12.0, trl/experimental/ppo/ppo_trainer.py"

TRL = Preset(
    "trl",
    """TRL 1.12.0, the last release with PPO: its defaults and its conventions; agrees with it to 1e-5 (`make interop`).

    Not copied: TRL ignores max_grad_norm, so there is no clip here; it weighs micro-batches alike whatever their number of
    tokens, and scores the longest response of a batch at its EOS where all end early.
    """,
    {
        "rl.policy.name": ("causal_lm", CODE),
        "rl.critic.name": ("value_model", CODE + ": a network of its own"),
        "rl.critic.learning_rate": (3e-6, CONFIG + ": one learning rate for policy and critic"),
        "rl.kl.name": ("fixed", CODE),
        "rl.kl.beta": (0.05, CONFIG + ", kl_coef"),
        "rl.kl_estimator": ("k1", CONFIG),
        "rl.advantage.name": ("gae", CODE),
        "rl.advantage.gamma": (1.0, CONFIG),
        "rl.advantage.lam": (0.95, CONFIG),
        "rl.objective": (
            [{"name": "ppo_clip", "eps": 0.2}, {"name": "value_clip", "weight": 0.1, "eps": 0.2}],
            CONFIG + ", cliprange, vf_coef, cliprange_value",
        ),
        "rl.minibatches": (1, CONFIG + ", num_mini_batches"),
        "rl.inner_epochs": (4, CONFIG + ", num_ppo_epochs"),
        "rl.response_length": (53, CONFIG),
        "rl.temperature": (0.7, CONFIG + "; TRL adds 1e-7, which moves nothing by more than 1e-5"),
        "rl.learning_rate": (3e-6, CONFIG),
        "rl.schedule": ("linear", CONFIG + ": to 0"),
        "rl.warmup_steps": (0, CONFIG),
        "rl.adam_betas": ([0.9, 0.999], "PyTorch's AdamW, not changed by TRL"),
        "rl.adam_eps": (1e-5, CODE),
        "rl.max_grad_norm": (None, CODE + ": max_grad_norm is read by nothing"),
        "rl.aggregation": ("token_mean", CODE),
        "rl.whiten_advantages": ("rollout", CODE),
        "rl.whiten_rewards": (False, CONFIG),
        "rl.whiten_ddof": (1, "TRL, masked_whiten: unbiased variance"),
        "rl.score_at": ("post_eos", CODE + ": one place after the EOS"),
        "rl.no_eos_penalty": (0.0, CONFIG + ", missing_eos_penalty"),
    },
)


@hookimpl
def register_components(register):
    register(TRL)
