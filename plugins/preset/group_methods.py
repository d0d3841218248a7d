"""Methods without a critic whose baseline is the group of a prompt: GRPO and what came of it."""

from rlhf_lab.contracts import Preset, hookimpl

NO_CRITIC = {"rl.critic": ("none", "the group's mean takes its place")}
NO_WHITENING = {"rl.whiten_advantages": ("none", "the estimator alone decides on the scale")}
NO_KL = "no KL to a reference"

GRPO = Preset(
    "grpo",
    "Shao et al. 2024 (DeepSeekMath): group-relative advantages, k3 in the loss, every response counts alike.",
    {
        **NO_CRITIC,
        **NO_WHITENING,
        "rl.kl": ({"name": "fixed", "beta": 0.04}, "4.2"),
        "rl.kl_placement": ("loss", "4.1.1: the KL is in the loss, not in the reward"),
        "rl.advantage": ("grpo", "4.1.2"),
        "rl.objective": (
            [{"name": "ppo_clip", "eps": 0.2}, {"name": "kl_loss", "estimator": "k3", "importance_weight": False}],
            "eqs. 3–4; ε not printed there, 0.2 in TRL",
        ),
        "rl.samples_per_prompt": (64, "4.2"),
        "rl.batch_size": (1024, "4.2"),
        "rl.minibatches": (1, "4.2: a single update after each exploration stage"),
        "rl.inner_epochs": (1, "4.2: a single update after each exploration stage"),
        "rl.response_length": (1024, "4.2"),
        "rl.learning_rate": (1e-6, "4.2"),
        "rl.aggregation": ("sequence_mean", "eq. 3: 1/G Σ 1/|o|"),
    },
)

DR_GRPO = Preset(
    "dr_grpo",
    "Liu et al. 2025 (arXiv 2503.20783): GRPO without its two biases, 1/length and 1/std.",
    {
        **NO_CRITIC,
        **NO_WHITENING,
        "rl.kl": ("none", "their repository: beta 0"),
        "rl.advantage": ("dr_grpo", "3.2"),
        "rl.objective": ([{"name": "ppo_clip", "eps": 0.2}], "3.2; ε as TRL"),
        "rl.samples_per_prompt": (8, "their repository: num_samples"),
        "rl.response_length": (3000, "their repository: generate_max_length"),
        "rl.aggregation": ("constant", "3.2: a constant in place of the response's length"),
    },
)

DAPO = Preset(
    "dapo",
    """Yu et al. 2025 (arXiv 2503.14476): clip-higher, token-level loss, soft overlong punishment, no KL.

    Of its parts dynamic sampling (resampling of prompts whose group agrees) and overlong filtering are not here.
    """,
    {
        **NO_CRITIC,
        **NO_WHITENING,
        "rl.kl": ("none", "2.3: the KL term is left out"),
        "rl.advantage": ("grpo", "eq. 9"),
        "rl.objective": ([{"name": "clip_higher", "eps_low": 0.2, "eps_high": 0.28}], "eq. 10, 4.1"),
        "rl.reward": (
            {"name": "length_penalty", "source": "reward_model", "coefficient": 1 / 4096, "free": 16384, "cap": 1.0},
            "eq. 13 and 4.1: L_max 20480, L_cache 4096; the reward itself is theirs to choose, here a reward model",
        ),
        "rl.samples_per_prompt": (16, "4.1"),
        "rl.batch_size": (8192, "4.1: 512 prompts"),
        "rl.minibatches": (16, "4.1: minibatches of 512"),
        "rl.inner_epochs": (1, "4.1: 16 gradient updates per rollout"),
        "rl.response_length": (20480, "4.1"),
        "rl.learning_rate": (1e-6, "4.1"),
        "rl.schedule": ("constant", "4.1"),
        "rl.warmup_steps": (20, "4.1: rollout steps"),
        "rl.warmup_from": (0.0, "4.1: linear warm-up"),
        "rl.aggregation": ("token_mean", "eq. 8"),
    },
)

GSPO = Preset(
    "gspo",
    "Zheng et al. 2025 (arXiv 2507.18071): one ratio and one clip for each response.",
    {
        **NO_CRITIC,
        **NO_WHITENING,
        "rl.kl": ("none", NO_KL + " (the authors, verl#2775)"),
        "rl.advantage": ("grpo", "eq. 6"),
        "rl.objective": ([{"name": "gspo", "eps_low": 3e-4, "eps_high": 4e-4}], "eq. 5, 5.1"),
        "rl.samples_per_prompt": (8, "not printed in Zheng et al. 2025; TRL GRPOTrainer"),
        "rl.minibatches": (4, "5.1: each rollout batch is cut into 4"),
        "rl.inner_epochs": (1, "5.1"),
        "rl.aggregation": ("sequence_mean", "eq. 5"),
    },
)

CISPO = Preset(
    "cispo",
    "MiniMax 2025 (arXiv 2506.13585): bounded importance weights on the policy gradient; the bound as TRL reads it.",
    {
        **NO_CRITIC,
        **NO_WHITENING,
        "rl.kl": ("none", "3.1: " + NO_KL),
        "rl.advantage": ("grpo", "eq. 2"),
        "rl.objective": (
            [{"name": "cispo", "threshold": "trl", "eps_high": 5.0}],
            "eqs. 4–5; the bound is not printed there, 5 is TRL's ScaleRL recipe",
        ),
        "rl.samples_per_prompt": (16, "not printed in MiniMax 2025; TRL's ScaleRL recipe"),
        "rl.aggregation": ("token_mean", "eq. 4"),
    },
)

RLOO = Preset(
    "rloo",
    "Ahmadian et al. 2024 (arXiv 2402.14740): REINFORCE on whole responses with a leave-one-out baseline.",
    {
        **NO_CRITIC,
        **NO_WHITENING,
        "rl.kl.name": ("fixed", "the KL is part of the reward"),
        "rl.kl.beta": (0.03, "appendix C"),
        "rl.kl_estimator": ("k1", "the log-ratio of whole responses"),
        "rl.advantage": ("rloo", "eq. 8"),
        "rl.objective": ([{"name": "policy_gradient"}], "REINFORCE: no ratio, no clip"),
        "rl.samples_per_prompt": (4, "k, 2 or 4 in their experiments"),
        "rl.batch_size": (512, "appendix C"),
        "rl.minibatches": (2, "appendix C: two steps per batch, as TRL reads it"),
        "rl.inner_epochs": (1, "appendix C"),
        "rl.learning_rate": (1e-6, "appendix C"),
        "rl.aggregation": ("constant", "a response is one action: the sum of its log-probs, up to a constant"),
    },
)

REINFORCE_PP = Preset(
    "reinforce_pp",
    "Hu et al. 2025 (arXiv 2501.03262): REINFORCE++, PPO's clip and token KL without a critic, advantages of one scale.",
    {
        "rl.critic": ("none", "that is its point"),
        **NO_WHITENING,
        "rl.kl_estimator": ("k1", "the log-ratio to the supervised model, token by token"),
        "rl.advantage": ({"name": "reinforce_pp", "gamma": 1.0}, "global advantage normalisation"),
        "rl.objective": ([{"name": "ppo_clip", "eps": 0.2}], "PPO's clip; ε as Schulman et al. 2017"),
        "rl.samples_per_prompt": (1, "one response for each prompt"),
        "rl.aggregation": ("token_mean", "OpenRLHF"),
    },
)

RAFT = Preset(
    "raft",
    "Dong et al. 2023 (arXiv 2304.06767): supervised steps on the best of K samples of each prompt.",
    {
        "rl.critic": ("none", "algorithm 1"),
        **NO_WHITENING,
        "rl.kl": ("none", "algorithm 1; a KL in the reward is their section 4's extension"),
        "rl.advantage": ("raft", "algorithm 1: the sample with the highest reward"),
        "rl.objective": ([{"name": "policy_gradient"}], "algorithm 1: likelihood of the chosen samples"),
        "rl.samples_per_prompt": (8, "K; theirs varies by experiment"),
        "rl.aggregation": ("token_mean", "the usual likelihood loss"),
    },
)

A2C = Preset(
    "a2c",
    """Mnih et al. 2016 without its parallel actors: policy gradient with a critic, one update per batch.

    The number of steps is A3C's t_max, the value loss a plain square. RMSProp is not here: Adam at the spec's rate.
    """,
    {
        "rl.critic.name": ("value_model", "section 4, with parameters of its own"),
        "rl.advantage": ({"name": "n_step", "n": 5, "gamma": 1.0}, "section 8: t_max 5; γ 0.99 there, 1 in RLHF"),
        "rl.objective": (
            [
                {"name": "policy_gradient"},
                {"name": "value_plain", "weight": 1.0},
                {"name": "entropy", "weight": 0.01},
            ],
            "section 8: entropy 0.01; value weight 0.5 on the whole square, as OpenAI Baselines' a2c",
        ),
        "rl.minibatches": (1, "section 4: one update for each batch"),
        "rl.inner_epochs": (1, "section 4: one update for each batch"),
        "rl.whiten_advantages": ("none", "section 4"),
    },
)


@hookimpl
def register_components(register):
    for preset in (GRPO, DR_GRPO, DAPO, GSPO, CISPO, RLOO, REINFORCE_PP, RAFT, A2C):
        register(preset)
