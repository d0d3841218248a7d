"""PPO with everything that may blow up normalised and clipped."""

from rlhf_lab.contracts import Preset, hookimpl

CODE = "MOSS-RLHF, default of its option"

PPO_MAX = Preset(
    "ppo_max",
    """Zheng et al. 2023 (PPO-max): score normalisation and clip, advantage normalisation and clip, value clip.

    The tricks are on, as in the paper's section 5.3; in MOSS-RLHF's code each is off until its flag is given. Its top-p of
    0.9 is left out: log-probs would not be those of the law that was sampled from. So is its entropy clip.
    """,
    {
        "rl.policy.name": ("causal_lm", "5.3"),
        "rl.policy.init": ("sft", "5.3: policy from the supervised model"),
        "rl.critic.name": ("value_model", "5.3"),
        "rl.critic.init": ("reward_model", "5.3: critic from the reward model"),
        "rl.critic.learning_rate": (1.5e-6, CODE),
        "rl.reward": (
            {
                "name": "clipped",
                "source": {"name": "scaled", "source": "reward_model", "shift_mean": True},
                "low": -10.0,
                "high": 10.0,
            },
            "5.3.1; reward_clip: " + CODE,
        ),
        "rl.kl.name": ("fixed", "5.3.2"),
        "rl.kl.beta": (0.02, CODE + " (paper: about 0.05)"),
        "rl.kl_estimator": ("k1", "5.3.2: token-level KL penalty"),
        "rl.advantage": (
            {"name": "normalized_clipped", "source": {"name": "gae", "gamma": 1.0, "lam": 0.95}, "clip": 0.5},
            "5.3.1; gamma, lambda, advantage_clip: " + CODE,
        ),
        "rl.objective": (
            [{"name": "ppo_clip", "eps": 0.2}, {"name": "value_clip", "weight": 1.0, "eps": 0.2}],
            "pg_clip, vf_loss_weight, value_clip: " + CODE,
        ),
        "rl.batch_size": (128, CODE),
        "rl.minibatches": (4, CODE + ": minibatches of 32"),
        "rl.temperature": (0.8, CODE),
        "rl.learning_rate": (5e-7, CODE),
        "rl.whiten_advantages": ("none", "the estimator whitens by itself"),
    },
)


@hookimpl
def register_components(register):
    register(PPO_MAX)
