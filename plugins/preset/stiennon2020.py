"""Learning to summarise, the 1.3B models."""

from rlhf_lab.contracts import Preset, hookimpl

NOT_PRINTED = "not printed in Stiennon et al. 2020; lm-human-preferences"

STIENNON2020 = Preset(
    "stiennon2020",
    "Stiennon et al. 2020: summaries by PPO, with critic and reward model apart from the policy; learning rates of 1.3B.",
    {
        "sft.epochs": (1, "B.1"),
        "sft.batch_size": (128, "B.1"),
        "sft.learning_rate": (6.35e-5, "B.1, 1.3B"),
        "sft.schedule": ("cosine", "B.1"),
        "reward_model.init": ("sft", "3.4"),
        "reward_model.loss": ("pairwise", "3.4"),
        "reward_model.pooling": ("last", "3.4"),
        "reward_model.epochs": (1, "B.1"),
        "reward_model.batch_size": (64, "B.1"),
        "reward_model.learning_rate": (1.5e-5, "B.1, 1.3B"),
        "reward_model.schedule": ("cosine", "B.1"),
        "reward_model.normalize": ("demonstrations", "3.4: reference summaries have mean score 0"),
        "rl.policy.name": ("causal_lm", "3.4"),
        "rl.policy.init": ("sft", "3.4"),
        "rl.critic.name": ("value_model", "3.4 and G.1: parameters of its own"),
        "rl.critic.init": ("reward_model", "3.4"),
        "rl.critic.learning_rate": (1.5e-5, "B.1, 1.3B: one number for RL"),
        "rl.reward": ("reward_model", "3.4"),
        "rl.kl.name": ("fixed", "B.1"),
        "rl.kl.beta": (0.05, "B.1"),
        "rl.kl_estimator": ("k1", "3.4: the log-ratio"),
        "rl.advantage.name": ("gae", "B.1"),
        "rl.advantage.gamma": (1.0, "B.1"),
        "rl.advantage.lam": (0.95, "B.1"),
        "rl.objective": (
            [{"name": "ppo_clip", "eps": 0.2}, {"name": "value_clip", "weight": 0.1, "eps": 0.2}],
            NOT_PRINTED,
        ),
        "rl.steps": (1953, "B.1: 1M episodes in batches of 512"),
        "rl.batch_size": (512, "B.1, 1.3B"),
        "rl.minibatches": (1, NOT_PRINTED),
        "rl.inner_epochs": (4, "B.1"),
        "rl.temperature": (0.7, "B.1: 0.7 in training; their 0 in evaluation has no KL and is left out"),
        "rl.learning_rate": (1.5e-5, "B.1, 1.3B"),
        "rl.schedule": ("linear", "B.1"),
        "rl.adam_eps": (1e-5, NOT_PRINTED),
        "rl.max_grad_norm": (None, NOT_PRINTED),
        "rl.aggregation": ("token_mean", NOT_PRINTED),
        "rl.whiten_advantages": ("rollout", NOT_PRINTED),
        "rl.whiten_ddof": (0, NOT_PRINTED),
        "rl.whiten_rewards": (False, NOT_PRINTED + ", summarisation"),
        "rl.evaluation.baseline": ("sft", "4.1"),
    },
)


@hookimpl
def register_components(register):
    register(STIENNON2020)
