"""Learning to summarise, as far as the paper and the released code say it."""

from rlhf_lab.contracts import Preset, hookimpl

CODE = "summarize-from-feedback"
TASK = CODE + " utils/experiment_helpers.py, tldr_task"

SUMMARIZE2020 = Preset(
    "summarize2020",
    """Stiennon et al. 2020 and summarize-from-feedback as released, the 1.3B models: what these two say, and nothing else.

    The released code runs models and trains none. `stiennon2020` fills what they leave open (clips, whitening, Adam's ε) with
    lm-human-preferences; here it is left open, to the spec or the laboratory's defaults.
    """,
    {
        "sft.epochs": (1, "B.1"),
        "sft.batch_size": (128, "B.1"),
        "sft.learning_rate": (6.35e-5, "B.1, 1.3B"),
        "sft.schedule": ("cosine", "B.1"),
        "reward_model.init": ("sft", "3.4"),
        "reward_model.loss": ("pairwise", "3.4"),
        "reward_model.pooling": ("last", CODE + " reward_model.py, _response_indices: the last token before the padding"),
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
        "rl.steps": (1953, "B.1: 1M episodes in batches of 512"),
        "rl.batch_size": (512, "B.1, 1.3B"),
        "rl.inner_epochs": (4, "B.1"),
        "rl.response_length": (48, TASK),
        "rl.max_prompt_tokens": (512, TASK + ": longer ones are cut there, dropped here"),
        "rl.temperature": (0.7, "B.1: in training"),
        "rl.learning_rate": (1.5e-5, "B.1, 1.3B"),
        "rl.schedule": ("linear", "B.1"),
    },
)


@hookimpl
def register_components(register):
    register(SUMMARIZE2020)
