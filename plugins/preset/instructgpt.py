"""The paper's numbers, for SFT, reward model and PPO-ptx."""

from rlhf_lab.contracts import Preset, hookimpl

NOT_PRINTED = "not printed in Ouyang et al. 2022; "

INSTRUCTGPT = Preset(
    "instructgpt",
    """Ouyang et al. 2022: PPO-ptx as the appendix describes it, learning rates of the 1.3B models.

    Stages: `sft` is the supervised baseline that win rates are against, `rl_init` the other supervised model that PPO starts
    from, `reward_model` gives proxy and critic. Where the paper prints nothing, the source says whose number it is.
    """,
    {
        "sft.epochs": (16, "3.5 and C.1"),
        "sft.batch_size": (32, "C.1, 1.3B and 6B"),
        "sft.learning_rate": (9.65e-6, "C.1, 1.3B and 6B"),
        "sft.schedule": ("cosine", "C.1"),
        "sft.floor": (0.1, "C.1: cosine to 10 %"),
        "sft.warmup_steps": (0, "C.1"),
        "sft.dropout": (0.2, "C.1: residual dropout"),
        "sft.adam_betas": ([0.9, 0.95], "C"),
        "rl_init.name": ("sft", "C.3"),
        "rl_init.epochs": (2, "C.3"),
        "rl_init.pretraining_fraction": (0.1, "C.3"),
        "rl_init.batch_size": (32, "C.3, 1.3B and 6B"),
        "rl_init.learning_rate": (5e-6, "C.3, 1.3B"),
        "rl_init.schedule": ("cosine", "C.3"),
        "rl_init.floor": (0.1, "C.3: cosine to 10 %"),
        "rl_init.adam_betas": ([0.9, 0.95], "C"),
        "reward_model.init": ("sft", NOT_PRINTED + "theirs starts from a 6B model tuned on public NLP data, C.2"),
        "reward_model.loss": ("kwise", "eq. 1: all pairs of a prompt in one batch element, ties dropped"),
        "reward_model.pooling": ("last", "3.5: a scalar in place of the unembedding, read at the end"),
        "reward_model.epochs": (1, "C.2"),
        "reward_model.batch_size": (64, "C.2: 64 prompts, up to 64·C(9,2) = 2304 comparisons"),
        "reward_model.learning_rate": (9e-6, "C.2"),
        "reward_model.schedule": ("cosine", "C.2"),
        "reward_model.floor": (0.1, "C.2: cosine to 10 %"),
        "reward_model.adam_betas": ([0.9, 0.95], "C"),
        "reward_model.normalize": ("demonstrations", "3.5: labeler demonstrations have mean score 0"),
        "rl.policy.name": ("causal_lm", "3.5"),
        "rl.policy.init": ("rl_init", "C.3"),
        "rl.critic.name": ("value_model", "C.4: a network of its own"),
        "rl.critic.init": ("reward_model", "C.4"),
        "rl.critic.learning_rate": (9e-6, "C.4, 1.3B and 6B"),
        "rl.reward": ("reward_model", "3.5"),
        "rl.kl.name": ("fixed", "C.4; the adaptive controller is Ziegler et al. 2019's"),
        "rl.kl.beta": (0.02, "C.4"),
        "rl.kl_estimator": ("k1", "eq. 2: the log-ratio, per token"),
        "rl.advantage.name": ("gae", "C.4"),
        "rl.advantage.gamma": (1.0, "C.4: no discount"),
        "rl.advantage.lam": (0.95, NOT_PRINTED + "Stiennon et al. 2020, B.1; lm-human-preferences"),
        "rl.objective": (
            [
                {"name": "ppo_clip", "eps": 0.2},
                {"name": "value_clip", "weight": 0.1, "eps": 0.2},
                {"name": "pretrain_mix", "weight": 27.8, "ratio": 8},
            ],
            "C.4: clip 0.2, γ_ptx 27.8, 8 pretraining examples per episode; value clip and weight are lm-human-preferences'",
        ),
        "rl.steps": (500, "C.4: 256k episodes in batches of 512"),
        "rl.batch_size": (512, "C.4"),
        "rl.minibatches": (8, "C.4: minibatches of 64"),
        "rl.inner_epochs": (1, "C.4"),
        "rl.response_length": (1000, "C: responses of at most 1k tokens"),
        "rl.max_prompt_tokens": (1000, "C: longer prompts are dropped"),
        "rl.temperature": (1.0, "C.4"),
        "rl.learning_rate": (8.05e-6, NOT_PRINTED + "the largest of the sweep of C.4 that did not diverge without ptx"),
        "rl.schedule": ("constant", "C.4"),
        "rl.warmup_steps": (10, "C.4: iterations"),
        "rl.warmup_from": (0.1, "C.4"),
        "rl.adam_betas": ([0.9, 0.95], "C"),
        "rl.adam_eps": (1e-5, NOT_PRINTED + "lm-human-preferences"),
        "rl.max_grad_norm": (None, NOT_PRINTED + "lm-human-preferences has none"),
        "rl.ema": (0.992, "C.4"),
        "rl.aggregation": ("token_mean", NOT_PRINTED + "lm-human-preferences"),
        "rl.whiten_advantages": ("rollout", NOT_PRINTED + "lm-human-preferences"),
        "rl.whiten_ddof": (0, NOT_PRINTED + "lm-human-preferences"),
        "rl.whiten_rewards": (False, NOT_PRINTED + "lm-human-preferences, summarisation"),
        "rl.evaluation.baseline": ("sft", "3.6 and figure 1: win rates are against the supervised model"),
    },
)

INSTRUCTGPT_PPO = Preset(
    "instructgpt_ppo",
    """Ouyang et al. 2022: PPO without the pretraining mix, otherwise as `instructgpt`.

    The paper's PPO models; they lose on public NLP data sets what PPO-ptx keeps (section 4.2).
    """,
    {
        **INSTRUCTGPT.values,
        "rl.objective": (
            [term for term in INSTRUCTGPT.values["rl.objective"][0] if term["name"] != "pretrain_mix"],
            "3.5: γ = 0; clip 0.2, C.4; value clip and weight are lm-human-preferences'",
        ),
    },
)


@hookimpl
def register_components(register):
    register(INSTRUCTGPT)
    register(INSTRUCTGPT_PPO)
