"""The conventions and defaults of verl's PPO, as `tests/interop` checks its functions."""

from rlhf_lab.contracts import Preset, hookimpl

CONFIG = "verl 0.9.1, trainer/config/ppo_trainer.yaml, "
CORE = "verl 0.9.1, trainer/ppo/core_algos.py"

VERL = Preset(
    "verl",
    """verl 0.9.1 with its defaults: no KL unless asked for, dual clip, advantages whitened over the rollout, ddof 1.

    Not copied: it does not shuffle its minibatches, clamps KL estimates (±20, k3 to ±10) and has a weight decay of 0.01.
    """,
    {
        "rl.policy.name": ("causal_lm", CONFIG + "actor_rollout_ref.model"),
        "rl.critic.name": ("value_model", CONFIG + "critic: a network and an optimiser of its own"),
        "rl.critic.learning_rate": (1e-5, CONFIG + "critic.optim.lr"),
        "rl.kl": ("none", CONFIG + "algorithm.use_kl_in_reward and actor.use_kl_loss are False"),
        "rl.kl_estimator": ("k1", CONFIG + "algorithm.kl_penalty: kl, where it is turned on"),
        "rl.kl_unit": ("token", "verl 0.9.1, trainer/ppo/ray_trainer.py, apply_kl_penalty: mean of token means"),
        "rl.score_at": ("eos", "verl 0.9.1, workers/reward_manager/naive.py: valid_response_length − 1"),
        "rl.advantage.name": ("gae", CONFIG + "algorithm.adv_estimator"),
        "rl.advantage.gamma": (1.0, CONFIG + "algorithm.gamma"),
        "rl.advantage.lam": (1.0, CONFIG + "algorithm.lam"),
        "rl.truncation": ("terminal", CORE + ", compute_gae_advantage_return: the value after the last place is 0"),
        "rl.whiten_rewards": (False, CORE + " has none"),
        "rl.whiten_advantages": ("rollout", CORE + ", compute_gae_advantage_return"),
        "rl.advantages_shift_mean": (True, CORE + ", compute_gae_advantage_return"),
        "rl.whiten_ddof": (1, "verl 0.9.1, utils/torch_functional.py, masked_var: unbiased"),
        "rl.objective": (
            [{"name": "dual_clip", "eps": 0.2, "c": 3.0}, {"name": "value_clip", "weight": 1.0, "eps": 0.5}],
            CONFIG + "actor.clip_ratio, clip_ratio_c, cliprange_value; the critic has an optimiser of its own, so no weight",
        ),
        "rl.aggregation": ("token_mean", CONFIG + "actor.loss_agg_mode"),
        "rl.batch_size": (1024, CONFIG + "data.train_batch_size"),
        "rl.minibatches": (4, CONFIG + "actor.ppo_mini_batch_size 256"),
        "rl.inner_epochs": (1, CONFIG + "actor.ppo_epochs"),
        "rl.samples_per_prompt": (1, CONFIG + "rollout.n"),
        "rl.response_length": (512, CONFIG + "data.max_response_length"),
        "rl.max_prompt_tokens": (512, CONFIG + "data.max_prompt_length; longer ones are an error there"),
        "rl.temperature": (1.0, CONFIG + "rollout.temperature"),
        "rl.logprob_temperature": ("sampling", "verl 0.9.1, trainer/ppo/ray_trainer.py: meta_info"),
        "rl.learning_rate": (1e-6, CONFIG + "actor.optim.lr"),
        "rl.schedule": ("constant", CONFIG + "actor.optim.lr_scheduler_type"),
        "rl.warmup_steps": (0, CONFIG + "actor.optim.lr_warmup_steps_ratio 0"),
        "rl.adam_betas": ([0.9, 0.999], CONFIG + "actor.optim.betas"),
        "rl.adam_eps": (1e-8, "PyTorch's AdamW, not changed by verl"),
        "rl.max_grad_norm": (1.0, CONFIG + "actor.optim.clip_grad"),
        "rl.ema": (None, "verl has none"),
    },
)


@hookimpl
def register_components(register):
    register(VERL)
