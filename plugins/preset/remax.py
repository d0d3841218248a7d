"""ReMax: REINFORCE for RLHF with a greedy baseline."""

from rlhf_lab.contracts import Preset, hookimpl

SCRIPT = "liziniu/ReMax, step3_rlhf_finetuning/training_scripts/llama2/run_llama2_7b.sh"
CODE = "liziniu/ReMax, step3_rlhf_finetuning/remax_trainer.py"

REMAX = Preset(
    "remax",
    """Li et al. 2024 (arXiv 2310.10505): one sample for each prompt, the greedy response's score as baseline, no critic.

    Not copied: their top-p of 0.9, under which log-probs are not those of the law that was sampled from; their weight decay;
    and that a token pays for its own KL only (here for all that follows as well, as in verl).
    """,
    {
        "rl.critic": ("none", "section 4: no value model"),
        "rl.reward": ({"name": "clipped", "source": "reward_model", "low": -5.0, "high": 5.0}, CODE + ", clip_reward_value"),
        "rl.kl.name": ("fixed", CODE),
        "rl.kl.beta": (0.05, SCRIPT + ", kl_ctl"),
        "rl.kl_estimator": ("k1", CODE + ": the log-ratio to the supervised model, token by token"),
        "rl.advantage": ({"name": "remax", "gamma": 1.0}, "algorithm 1; 0.99 in their script, the baseline too"),
        "rl.objective": ([{"name": "policy_gradient"}], "algorithm 1: REINFORCE, no ratio, no clip"),
        "rl.samples_per_prompt": (1, "algorithm 1: one response for each prompt, and the greedy one"),
        "rl.minibatches": (1, SCRIPT + ", generation_batches: on policy, one update for each batch"),
        "rl.inner_epochs": (1, SCRIPT + ", ppo_epochs"),
        "rl.response_length": (256, SCRIPT + ", max_answer_seq_len"),
        "rl.max_prompt_tokens": (256, SCRIPT + ", max_prompt_seq_len"),
        "rl.temperature": (1.0, CODE),
        "rl.learning_rate": (1e-6, SCRIPT + ", actor_learning_rate"),
        "rl.schedule": ("cosine", SCRIPT),
        "rl.warmup_steps": (0, SCRIPT),
        "rl.whiten_advantages": ("none", CODE),
        "rl.aggregation": ("token_mean", CODE + ", actor_loss_fn"),
    },
)


@hookimpl
def register_components(register):
    register(REMAX)
