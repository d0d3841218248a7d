"""The first RLHF of language models, style tasks, mostly by the numbers of its released code."""

from rlhf_lab.contracts import Preset, hookimpl

CODE = "lm-human-preferences launch.py, style tasks"
TRAIN = "lm-human-preferences train_policy.py"

ZIEGLER2019 = Preset(
    "ziegler2019",
    """Ziegler et al. 2019: PPO with an adaptive KL coefficient against a reward model trained on best-of-4 choices.

    Numbers of the paper's 774M models are in brackets where they differ from the code's. Theirs has no supervised stage;
    here the policy starts from `sft`.
    """,
    {
        "reward_model.init": ("sft", "the pretrained model in Ziegler et al. 2019, 2.1"),
        "reward_model.loss": ("best_of_n_softmax", "eq. 1"),
        "reward_model.pooling": ("last", "2.1: the last token"),
        "reward_model.epochs": (1, "2.1"),
        "reward_model.batch_size": (32, CODE + " (paper: 8)"),
        "reward_model.learning_rate": (5e-5, CODE + " (paper: 1.77e-5)"),
        "reward_model.schedule": ("linear", CODE),
        "reward_model.floor": (0.0, CODE + ": to 0"),
        "reward_model.adam_betas": ([0.9, 0.999], "TensorFlow's Adam, not changed by the code"),
        "reward_model.adam_eps": (1e-5, "lm-human-preferences train_reward.py"),
        "reward_model.max_grad_norm": (None, "lm-human-preferences has none"),
        "reward_model.normalize": ("policy_samples", "2.1: mean 0 and variance 1 on samples of the initial policy"),
        "reward_model.normalize_examples": (256, "lm-human-preferences launch.py, normalize_samples"),
        "reward_model.sample_length": (24, CODE),
        "reward_model.sample_temperature": (0.7, CODE),
        "rl.policy.name": ("causal_lm", "2.2"),
        "rl.policy.init": ("sft", "the pretrained model in Ziegler et al. 2019, 2.2"),
        "rl.critic.name": ("shared_trunk", "2.2; lm-human-preferences policy.py: a value head on the policy's trunk"),
        "rl.critic.scale": (0.0, "lm-human-preferences policy.py: the head starts at 0"),
        "rl.critic.learning_rate": (1e-5, CODE + ": one optimiser for both"),
        "rl.reward": ("reward_model", "2.2"),
        "rl.kl.name": ("adaptive", "2.2"),
        "rl.kl.beta": (0.15, CODE),
        "rl.kl.target": (6.0, CODE + " (paper: 6 to 10 nats)"),
        "rl.kl.gain": (0.0512, CODE + ": batch 512 / horizon 10000 (paper: 0.1)"),
        "rl.kl.clip": (0.2, "2.2"),
        "rl.kl_estimator": ("k1", "eq. 2: the log-ratio, per token"),
        "rl.advantage.name": ("gae", TRAIN),
        "rl.advantage.gamma": (1.0, TRAIN),
        "rl.advantage.lam": (0.95, TRAIN),
        "rl.objective": (
            [{"name": "ppo_clip", "eps": 0.2}, {"name": "value_clip", "weight": 0.1, "eps": 0.2}],
            TRAIN + ": cliprange, vf_coef, cliprange_value",
        ),
        "rl.steps": (1953, CODE + ": 1M episodes in batches of 512 (paper: 2M of 1024)"),
        "rl.batch_size": (512, CODE),
        "rl.minibatches": (1, CODE),
        "rl.inner_epochs": (4, CODE),
        "rl.response_length": (24, CODE),
        "rl.temperature": (0.7, CODE),
        "rl.no_eos_score": (-1.0, CODE + ": a response without a sentence end from token 16 on scores −1"),
        "rl.learning_rate": (1e-5, CODE + " (paper: 1.41e-5)"),
        "rl.schedule": ("linear", TRAIN + ": to 0"),
        "rl.adam_betas": ([0.9, 0.999], "TensorFlow's Adam, not changed by the code"),
        "rl.adam_eps": (1e-5, TRAIN),
        "rl.max_grad_norm": (None, "lm-human-preferences has none"),
        "rl.aggregation": ("token_mean", TRAIN),
        "rl.whiten_advantages": ("minibatch", TRAIN),
        "rl.whiten_ddof": (0, "lm-human-preferences utils/core.py, whiten"),
        "rl.whiten_rewards": (True, CODE + "; off for summarisation"),
    },
)


@hookimpl
def register_components(register):
    register(ZIEGLER2019)
