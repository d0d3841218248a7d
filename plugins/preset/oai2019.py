"""What the first released RLHF code does when nobody tells it otherwise."""

from rlhf_lab.contracts import Preset, hookimpl

POLICY = "lm-human-preferences train_policy.py"
REWARD = "lm-human-preferences train_reward.py"
CORE = "lm-human-preferences utils/core.py"
TASKS = "lm-human-preferences lm_tasks.py"

OAI2019 = Preset(
    "oai2019",
    """lm-human-preferences as released: the defaults and conventions of its code, no task and no number of the paper.

    `ziegler2019` is the paper's experiment: the style tasks of launch.py, and the paper where the code says nothing. Not
    copied: theirs samples on past the end of a response and pays KL there, and TensorFlow's Adam adds ε before the bias
    correction.
    """,
    {
        "reward_model.loss": ("best_of_n_softmax", "lm-human-preferences label_types.py: best_of_4"),
        "reward_model.pooling": ("last", "lm-human-preferences rewards.py, _build: the last place"),
        "reward_model.epochs": (1, REWARD + ": one pass over the labels"),
        "reward_model.batch_size": (40, REWARD + ", HParams"),
        "reward_model.learning_rate": (5e-5, REWARD + ", HParams"),
        "reward_model.schedule": ("linear", REWARD + ", train"),
        "reward_model.floor": (0.0, REWARD + ", train: to 0"),
        "reward_model.adam_betas": ([0.9, 0.999], "TensorFlow's Adam, not changed by the code"),
        "reward_model.adam_eps": (1e-5, CORE + ", minimize"),
        "reward_model.max_grad_norm": (None, CORE + ", minimize: none"),
        "rl.policy.name": ("causal_lm", POLICY),
        "rl.critic.name": ("shared_trunk", "lm-human-preferences policy.py: a value head on the policy's trunk"),
        "rl.critic.scale": (0.0, "lm-human-preferences policy.py: the head starts at 0"),
        "rl.critic.learning_rate": (5e-6, POLICY + ", PpoHParams: one optimiser for both"),
        "rl.kl.name": ("fixed", POLICY + ", RewardHParams: adaptive_kl None"),
        "rl.kl.beta": (0.2, POLICY + ", RewardHParams"),
        "rl.kl_estimator": ("k1", POLICY + ", compute_rewards"),
        "rl.kl_placement": ("reward", POLICY + ", compute_rewards"),
        "rl.kl_unit": ("sequence", POLICY + ", record_step_stats: mean_kl"),
        "rl.score_at": ("last", POLICY + ", compute_rewards: rewards[:, -1]"),
        "rl.no_eos_score": (-1.0, TASKS + ", penalty_reward_value: for a response without its last token"),
        "rl.truncation": ("terminal", POLICY + ", loss: the value after the last place is 0"),
        "rl.whiten_rewards": (True, POLICY + ", PpoHParams"),
        "rl.rewards_shift_mean": (False, POLICY + ", loss"),
        "rl.whiten_advantages": ("minibatch", POLICY + ", loss"),
        "rl.advantages_shift_mean": (True, POLICY + ", loss"),
        "rl.whiten_ddof": (0, CORE + ", whiten: tf.nn.moments"),
        "rl.advantage.name": ("gae", POLICY + ", loss"),
        "rl.advantage.gamma": (1.0, POLICY + ", PpoHParams"),
        "rl.advantage.lam": (0.95, POLICY + ", PpoHParams"),
        "rl.objective": (
            [{"name": "ppo_clip", "eps": 0.2}, {"name": "value_clip", "weight": 0.1, "eps": 0.2}],
            POLICY + ", PpoHParams: cliprange, vf_coef, cliprange_value",
        ),
        "rl.aggregation": ("token_mean", POLICY + ", loss: reduce_mean"),
        "rl.steps": (31250, POLICY + ", PpoHParams: 2M episodes in batches of 64"),
        "rl.batch_size": (64, POLICY + ", PpoHParams"),
        "rl.minibatches": (1, POLICY + ", PpoHParams"),
        "rl.inner_epochs": (4, POLICY + ", PpoHParams"),
        "rl.temperature": (1.0, TASKS + ", PolicyHParams"),
        "rl.logprob_temperature": ("sampling", "lm-human-preferences policy.py, analyze_responses_op"),
        "rl.learning_rate": (5e-6, POLICY + ", PpoHParams"),
        "rl.schedule": ("linear", POLICY + ", train_minibatch: to 0"),
        "rl.adam_betas": ([0.9, 0.999], "TensorFlow's Adam, not changed by the code"),
        "rl.adam_eps": (1e-5, CORE + ", minimize"),
        "rl.max_grad_norm": (None, CORE + ", minimize: none"),
        "rl.ema": (None, POLICY + " has none"),
    },
)


@hookimpl
def register_components(register):
    register(OAI2019)
