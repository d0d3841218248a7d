"""The conventions and defaults of OpenRLHF's PPO, as `tests/interop` checks its functions."""

from rlhf_lab.contracts import Preset, hookimpl

OPTION = "OpenRLHF 0.11.2, cli/train_ppo_ray.py, "
MAKER = "OpenRLHF 0.11.2, trainer/ppo_utils/experience_maker.py"
UTILS = "OpenRLHF 0.11.2, models/utils.py"

OPENRLHF = Preset(
    "openrlhf",
    """OpenRLHF 0.11.2 with its defaults: a clipped score at the EOS, advantages whitened over the rollout, ddof 0.

    Not copied: its KL estimates and log-ratios are clamped (±10, ±20), its cosine has 3 % of warm-up and ends at a tenth of the
    learning rate, and it takes a group's baseline before it clips the score, which matters to rloo and others, not to gae.
    """,
    {
        "rl.policy.name": ("causal_lm", OPTION + "actor.model_name_or_path"),
        "rl.critic.name": ("value_model", "OpenRLHF 0.11.2, trainer/ray/ppo_critic.py: a network and an optimiser of its own"),
        "rl.critic.init": ("reward_model", OPTION + "critic.model_name_or_path: that of the reward model"),
        "rl.critic.learning_rate": (9e-6, OPTION + "critic.adam.lr"),
        "rl.reward": (
            {"name": "clipped", "source": "reward_model", "low": -10.0, "high": 10.0},
            OPTION + "reward.clip_range; in compute_reward, before the KL",
        ),
        "rl.kl.name": ("fixed", OPTION + "algo.kl.target None"),
        "rl.kl.beta": (0.01, OPTION + "algo.kl.init_coef"),
        "rl.kl_estimator": ("k1", OPTION + "algo.kl.estimator"),
        "rl.kl_placement": ("reward", OPTION + "algo.kl.use_loss is off"),
        "rl.kl_unit": ("token", MAKER + ", make_experience: info, a mean over sequences of their token means"),
        "rl.score_at": ("eos", UTILS + ", compute_reward: the last place of the action mask"),
        "rl.truncation": ("terminal", MAKER + ", get_advantages_and_returns: the value after the last place is 0"),
        "rl.no_eos_score": (None, OPTION + "reward.stop_properly_penalty_coef None"),
        "rl.advantage.name": ("gae", OPTION + "algo.advantage.estimator"),
        "rl.advantage.gamma": (1.0, OPTION + "algo.advantage.gamma"),
        "rl.advantage.lam": (1.0, OPTION + "algo.advantage.lambd"),
        "rl.whiten_rewards": (False, MAKER + " has none"),
        "rl.whiten_advantages": ("rollout", MAKER + ", compute_advantages_and_returns: over all experiences"),
        "rl.advantages_shift_mean": (True, MAKER + ", compute_advantages_and_returns"),
        "rl.whiten_ddof": (0, MAKER + ": the sum of squares over the number of actions"),
        "rl.objective": (
            [{"name": "ppo_clip", "eps": 0.2}, {"name": "value_clip", "weight": 1.0, "eps": 0.5}],
            OPTION + "actor.eps_clip, critic.value_clip; the critic's loss has an optimiser of its own, so no weight",
        ),
        "rl.aggregation": ("token_mean", OPTION + "actor.loss_agg_mode"),
        "rl.batch_size": (1024, OPTION + "rollout.batch_size"),
        "rl.minibatches": (8, OPTION + "train.batch_size 128"),
        "rl.inner_epochs": (1, OPTION + "train.max_epochs"),
        "rl.samples_per_prompt": (1, OPTION + "rollout.n_samples_per_prompt"),
        "rl.temperature": (1.0, OPTION + "rollout.temperature"),
        "rl.logprob_temperature": ("sampling", "OpenRLHF 0.11.2, models/actor.py"),
        "rl.learning_rate": (1e-6, OPTION + "actor.adam.lr"),
        "rl.schedule": ("cosine", OPTION + "actor.lr_scheduler"),
        "rl.adam_betas": ([0.9, 0.95], OPTION + "actor.adam.betas"),
        "rl.adam_eps": (1e-8, OPTION + "actor.adam.eps"),
        "rl.max_grad_norm": (1.0, OPTION + "actor.max_norm"),
        "rl.ema": (None, OPTION + "train.enable_ema is off"),
    },
)


@hookimpl
def register_components(register):
    register(OPENRLHF)
