"""Methods that learn from comparisons directly; each takes the place of the stage `rl`, so that one figure shows them all."""

from rlhf_lab.contracts import Preset, hookimpl

FROM_SFT = {
    "rl.name": ("preference", "learns from comparisons instead of a reward"),
    "rl.policy.name": ("causal_lm", "all weights"),
    "rl.policy.init": ("sft", "starts from the supervised model, which is also the reference"),
}

DPO_CODE = "eric-mitchell/direct-preference-optimization, config/config.yaml"
DPO = Preset(
    "dpo",
    """Rafailov et al. 2023 (arXiv 2305.18290): the comparisons' likelihood under the policy's implicit reward.

    Their optimiser is RMSprop, which is not here: Adam at its rate.
    """,
    {
        **FROM_SFT,
        "rl.loss": ({"name": "dpo", "beta": 0.1}, "appendix B"),
        "rl.epochs": (1, DPO_CODE),
        "rl.batch_size": (64, "appendix B"),
        "rl.learning_rate": (1e-6, "appendix B"),
        "rl.schedule": ("constant", DPO_CODE + ": none after the warm-up"),
        "rl.warmup_steps": (150, "appendix B: from 0"),
        "rl.max_grad_norm": (10.0, DPO_CODE),
    },
)

IPO = Preset(
    "ipo",
    """Azar et al. 2024 (arXiv 2310.12036), trained as in Rafailov et al. 2024 (arXiv 2406.02900): the paper trains bandits.

    Their optimiser is RMSprop, which is not here: Adam at its rate. Log-ratios are sums, as in the paper and in both codes;
    TRL has means over tokens: `loss.per_token`.
    """,
    {
        **FROM_SFT,
        "rl.loss": ({"name": "ipo", "beta": 0.1, "per_token": False}, "eq. 17; τ = 0.1 is TRL's default, one of those swept"),
        "rl.epochs": (1, "Rafailov et al. 2024"),
        "rl.batch_size": (128, "Rafailov et al. 2024"),
        "rl.learning_rate": (5e-7, "Rafailov et al. 2024; " + DPO_CODE),
        "rl.schedule": ("constant", DPO_CODE + ": none after the warm-up"),
        "rl.warmup_steps": (150, "Rafailov et al. 2024"),
        "rl.max_grad_norm": (10.0, DPO_CODE),
    },
)

HALOS = "ContextualAI/HALOs, config/config.yaml"
KTO = Preset(
    "kto",
    "Ethayarajh et al. 2024 (arXiv 2402.01306): single responses that were found desirable or not, here the two of each pair.",
    {
        **FROM_SFT,
        "rl.loss": (
            {"name": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
            "ContextualAI/HALOs, config/loss/kto.yaml",
        ),
        "rl.epochs": (1, HALOS),
        "rl.batch_size": (32, "ContextualAI/HALOs, config/model/base_model.yaml; counts responses"),
        "rl.learning_rate": (5e-6, HALOS),
        "rl.schedule": ("constant", "none is named there"),
        "rl.warmup_steps": (150, HALOS),
        "rl.adam_betas": ([0.9, 0.999], "PyTorch's AdamW, not changed by the code"),
        "rl.max_grad_norm": (5.0, "ContextualAI/HALOs, config/model/base_model.yaml"),
    },
)

SIMPO_CODE = "princeton-nlp/SimPO, training_configs/mistral-7b-base-simpo.yaml"
SIMPO = Preset(
    "simpo",
    "Meng et al. 2024 (arXiv 2405.14734): mean log-probs with a target margin, no reference; numbers of Mistral-7B-Base.",
    {
        **FROM_SFT,
        "rl.loss": ({"name": "simpo", "beta": 2.0, "gamma": 1.6}, SIMPO_CODE),
        "rl.epochs": (1, SIMPO_CODE),
        "rl.batch_size": (128, "section 3; 2 · 8 · 8 GPUs in the configuration"),
        "rl.learning_rate": (3e-7, SIMPO_CODE),
        "rl.schedule": ("cosine", SIMPO_CODE),
        "rl.floor": (0.0, "the cosine of transformers ends at 0"),
        "rl.warmup_steps": (48, SIMPO_CODE + ": 10 % of one epoch, 61,135 pairs in batches of 128"),
        "rl.adam_betas": ([0.9, 0.999], "PyTorch's AdamW, not changed by the code"),
        "rl.max_grad_norm": (1.0, "transformers' default, not changed by the code"),
    },
)

ORPO_CODE = "xfactlab/orpo, scripts/run_mistral_orpo_beta.sh"
ORPO = Preset(
    "orpo",
    """Hong et al. 2024 (arXiv 2403.07691): fine-tuning and odds ratio in one loss; numbers of Mistral-ORPO-β.

    Theirs starts from the base model, with no SFT before; give `sft` few steps to come near to that. Its schedule, the
    inverse square root of the step, is not here: constant after the warm-up.
    """,
    {
        **FROM_SFT,
        "rl.loss": ({"name": "orpo", "weight": 0.1}, ORPO_CODE + ": alpha"),
        "rl.epochs": (5, ORPO_CODE),
        "rl.batch_size": (32, ORPO_CODE + ": 8 on each of 4 GPUs"),
        "rl.learning_rate": (5e-6, ORPO_CODE),
        "rl.schedule": ("constant", "inverse square root there"),
        "rl.warmup_steps": (200, ORPO_CODE),
        "rl.adam_betas": ([0.9, 0.999], "PyTorch's AdamW, not changed by the code"),
        "rl.max_grad_norm": (1.0, "transformers' default, not changed by the code"),
    },
)

TRL = "TRL 1.12.0, OnlineDPOConfig"
ONLINE_DPO = Preset(
    "online_dpo",
    "Guo et al. 2024 (OAIF, arXiv 2402.04792): DPO on two samples of the policy, ranked here by the reward; TRL's numbers.",
    {
        "rl.critic": ("none", "the loss needs no values"),
        "rl.kl": ("none", "the loss itself holds the policy to the reference"),
        "rl.advantage": (
            {"name": "preference_pairs", "loss": {"name": "dpo", "beta": 0.1}, "pairs": "best_worst"},
            "algorithm 1; β: " + TRL,
        ),
        "rl.objective": ([{"name": "policy_gradient"}], "with that advantage its gradient is that of DPO"),
        "rl.samples_per_prompt": (2, "algorithm 1"),
        "rl.minibatches": (1, "algorithm 1: one step on each batch of pairs"),
        "rl.inner_epochs": (1, "algorithm 1: one step on each batch of pairs"),
        "rl.whiten_advantages": ("none", "the loss alone decides on the scale"),
        "rl.aggregation": ("constant", "a response is one action: the sum of its log-probs, up to a constant"),
        "rl.response_length": (64, TRL),
        "rl.temperature": (0.9, TRL + ", which computes log-probs at 1 all the same"),
        "rl.learning_rate": (5e-7, TRL),
        "rl.schedule": ("linear", "transformers' default, not changed by TRL"),
    },
)


@hookimpl
def register_components(register):
    for preset in (DPO, IPO, KTO, SIMPO, ORPO, ONLINE_DPO):
        register(preset)
