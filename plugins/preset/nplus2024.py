"""The reproduction of learning to summarise that lists every implementation detail."""

from rlhf_lab.contracts import Preset, hookimpl

CODE = "Huang et al. 2024, summarize_from_feedback_details"

NPLUS2024 = Preset(
    "nplus2024",
    """Huang et al. 2024 ("The N+ implementation details of RLHF with PPO"): one learning rate for all stages, TL;DR.""",
    {
        "sft.epochs": (1, CODE),
        "sft.batch_size": (128, CODE),
        "sft.learning_rate": (3e-6, CODE),
        "sft.schedule": ("cosine", CODE),
        "sft.adam_betas": ([0.9, 0.999], "PyTorch's AdamW, not changed by the code"),
        "sft.adam_eps": (1e-5, CODE),
        "reward_model.init": ("sft", CODE),
        "reward_model.loss": ("pairwise", CODE),
        "reward_model.pooling": ("last", CODE + ": the EOS"),
        "reward_model.epochs": (1, CODE),
        "reward_model.batch_size": (64, CODE),
        "reward_model.learning_rate": (3e-6, CODE),
        "reward_model.schedule": ("cosine", CODE),
        "reward_model.adam_betas": ([0.9, 0.999], "PyTorch's AdamW, not changed by the code"),
        "reward_model.adam_eps": (1e-5, CODE),
        "reward_model.normalize": ("demonstrations", CODE + ": reference summaries have mean score 0"),
        "rl.policy.name": ("causal_lm", CODE),
        "rl.policy.init": ("sft", CODE),
        "rl.critic.name": ("value_model", CODE),
        "rl.critic.init": ("reward_model", CODE),
        "rl.critic.learning_rate": (3e-6, CODE),
        "rl.reward": ("reward_model", CODE),
        "rl.kl.name": ("fixed", CODE),
        "rl.kl.beta": (0.05, CODE),
        "rl.kl_estimator": ("k1", CODE),
        "rl.advantage.name": ("gae", CODE),
        "rl.advantage.gamma": (1.0, CODE),
        "rl.advantage.lam": (0.95, CODE),
        "rl.objective": (
            [{"name": "ppo_clip", "eps": 0.2}, {"name": "value_clip", "weight": 0.1, "eps": 0.2}],
            CODE,
        ),
        "rl.steps": (1953, CODE + ": 1M episodes in batches of 512"),
        "rl.batch_size": (512, CODE),
        "rl.minibatches": (1, CODE),
        "rl.inner_epochs": (4, CODE),
        "rl.response_length": (53, CODE),
        "rl.temperature": (0.7, CODE),
        "rl.score_at": ("post_eos", CODE),
        "rl.no_eos_score": (-1.0, CODE + ": the EOS trick"),
        "rl.learning_rate": (3e-6, CODE),
        "rl.schedule": ("linear", CODE + ": to 0"),
        "rl.adam_betas": ([0.9, 0.999], "PyTorch's AdamW, not changed by the code"),
        "rl.adam_eps": (1e-5, CODE),
        "rl.max_grad_norm": (None, CODE + ": none"),
        "rl.aggregation": ("token_mean", CODE),
        "rl.whiten_advantages": ("rollout", CODE),
        "rl.whiten_ddof": (0, CODE),
        "rl.whiten_rewards": (False, CODE),
    },
)


@hookimpl
def register_components(register):
    register(NPLUS2024)
