"""Classic bugs of RLHF code, each as a change of one place, and the tests that must notice it.

Most of them were in a published system or tutorial for months; see tests/pitfalls/README.md.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """`old`, which stands once in `file`, becomes `new`; at least one of `tests` has to fail."""

    bug: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MASKED, KL, REWARDS, LOOP = (f"tests/core/test_{name}.py" for name in ("masked", "kl", "rewards", "loop"))
LOGPROBS, SAMPLING, SCALAR = (f"tests/lm/test_{name}.py" for name in ("logprobs", "sampling", "scalar"))
ADVANTAGES, OBJECTIVES, STAGES = (f"tests/plugins/test_{name}.py" for name in ("advantages", "objectives", "stages"))
GRADIENT = f"{LOOP}::test_the_gradient_of_an_optimiser_step"
STEP_0 = f"{LOOP}::test_before_the_first_update_everything_agrees"

MUTANTS = (
    # whitening and masked statistics
    Mutant(
        "whitening: the mean is over padding, too",
        "rlhf_lab/rl/masked.py",
        "mean = masked_mean(x, mask)",
        "mean = x.mean()",
        (MASKED,),
    ),
    Mutant(
        "whitening: the variance is over padding, too",
        "rlhf_lab/rl/masked.py",
        "centred = (x - mean).masked_fill(~mask, 0.0)",
        "centred = x - mean",
        (MASKED,),
    ),
    Mutant("whitening: ddof is always 1", "rlhf_lab/rl/masked.py", "(mask.sum() - ddof)", "(mask.sum() - 1)", (MASKED,)),
    Mutant(
        "whitening: shift_mean is inverted",
        "rlhf_lab/rl/masked.py",
        "return white if shift_mean else",
        "return white if not shift_mean else",
        (MASKED,),
    ),
    Mutant(
        "masked mean: NaN times 0",
        "rlhf_lab/rl/masked.py",
        "return x.masked_fill(~mask, 0.0).sum() / mask.sum()",
        "return (x * mask).sum() / mask.sum()",
        (MASKED,),
    ),
    # KL
    Mutant("KL: the sign of k1", "rlhf_lab/rl/kl.py", "    return log_ratio\n", "    return -log_ratio\n", (KL,)),
    Mutant(
        "KL: k3 with the ratio the wrong way round",
        "rlhf_lab/rl/kl.py",
        "(-log_ratio).exp() - 1 + log_ratio",
        "log_ratio.exp() - 1 - log_ratio",
        (KL,),
    ),
    Mutant("KL: k2 without the half", "rlhf_lab/rl/kl.py", "log_ratio.square() / 2", "log_ratio.square()", (KL,)),
    Mutant(
        "KL: the sum is over padding, too",
        "rlhf_lab/rl/kl.py",
        "return (logprobs_BT - ref_logprobs_BT).masked_fill(~mask_BT, 0.0).sum(1)",
        "return (logprobs_BT - ref_logprobs_BT).sum(1)",
        (KL,),
    ),
    Mutant(
        "KL: per token where the controller expects a sequence",
        "rlhf_lab/rl/kl.py",
        "return (logprobs_BT - ref_logprobs_BT).masked_fill(~mask_BT, 0.0).sum(1)",
        "return (logprobs_BT - ref_logprobs_BT).masked_fill(~mask_BT, 0.0).sum(1) / mask_BT.sum(1)",
        (KL,),
    ),
    # token rewards
    Mutant("reward: the sign of the KL penalty", "rlhf_lab/rl/rewards.py", "(-beta * kl_BT)", "(beta * kl_BT)", (REWARDS,)),
    Mutant(
        "reward: the score counted twice",
        "rlhf_lab/rl/rewards.py",
        "scores_B[:, None].to(rewards_BT.dtype))",
        "2 * scores_B[:, None].to(rewards_BT.dtype))",
        (REWARDS,),
    ),
    Mutant(
        "reward: the score one place too early",
        "rlhf_lab/rl/rewards.py",
        "states_BT).sum(1, keepdim=True) - 1",
        "states_BT).sum(1, keepdim=True) - 2",
        (REWARDS,),
    ),
    Mutant(
        "reward: the score at the last column, a pad position",
        "rlhf_lab/rl/rewards.py",
        "scatter_add(1, last_B1, scores_B",
        "scatter_add(1, last_B1 * 0 + rewards_BT.shape[1] - 1, scores_B",
        (REWARDS,),
    ),
    Mutant(
        "reward: the scores written to row 0 only",
        "rlhf_lab/rl/rewards.py",
        "scatter_add(1, last_B1, scores_B[:, None]",
        "scatter_add(1, last_B1[:1], scores_B[:1, None]",
        (REWARDS,),
    ),
    Mutant(
        "reward: the penalty for no EOS goes to those that ended",
        "rlhf_lab/rl/rewards.py",
        "torch.where(ended_B, scores_B, replaced_B)",
        "torch.where(ended_B, replaced_B, scores_B)",
        (REWARDS,),
    ),
    # advantages
    Mutant(
        "GAE: λ forgotten",
        "plugins/advantage/gae.py",
        "here_B = delta_B + gamma * lam * next_advantage_B",
        "here_B = delta_B + gamma * next_advantage_B",
        (ADVANTAGES,),
    ),
    Mutant(
        "GAE: the value of the same state instead of the next one",
        "plugins/advantage/gae.py",
        "rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]",
        "rewards_BT[:, t] + gamma * values_BT[:, t] - values_BT[:, t]",
        (ADVANTAGES,),
    ),
    Mutant(
        "GAE: decays across masked places",
        "plugins/advantage/gae.py",
        "next_advantage_B = torch.where(mask_BT[:, t], here_B, next_advantage_B)",
        "next_advantage_B = here_B",
        (ADVANTAGES,),
    ),
    Mutant(
        "GAE: returns without the value",
        "plugins/advantage/gae.py",
        "(advantages_BT + batch.values_BT).masked_fill",
        "(advantages_BT + 0.0).masked_fill",
        (ADVANTAGES,),
    ),
    Mutant(
        "RLOO: the baseline counts the response itself",
        "plugins/advantage/rloo.py",
        "others_B = same_BB.sum(1) - 1",
        "others_B = same_BB.sum(1)",
        (ADVANTAGES,),
    ),
    Mutant(
        "GRPO: population instead of sample deviation",
        "plugins/advantage/grpo.py",
        "(group_sizes(batch.group_B, self.name) - 1)",
        "group_sizes(batch.group_B, self.name)",
        ("tests/plugins/test_variants_advantages.py",),
    ),
    Mutant(
        "advantages: the critic gets a gradient through them",
        "rlhf_lab/rl/loop.py",
        "with torch.no_grad(), ctx.accelerator.autocast():\n            # 1.",
        "with ctx.accelerator.autocast():\n            # 1.",
        (STEP_0,),
    ),
    # objectives
    Mutant(
        "PPO: the ratio clamped to [1 − ε, 1]",
        "plugins/objective/ppo_clip.py",
        "-ratio.clamp(1 - eps, 1 + eps) * advantages",
        "-ratio.clamp(1 - eps, 1.0) * advantages",
        (OBJECTIVES,),
    ),
    Mutant(
        "PPO: the maximum instead of the minimum of the two surrogates",
        "plugins/objective/ppo_clip.py",
        "torch.maximum(-ratio * advantages",
        "torch.minimum(-ratio * advantages",
        (OBJECTIVES,),
    ),
    Mutant(
        "PPO: the ratio against itself, so it is always 1",
        "plugins/objective/ppo_clip.py",
        "log_ratio_BT = new.logprobs_BT - batch.old_logprobs_BT",
        "log_ratio_BT = new.logprobs_BT - new.logprobs_BT.detach()",
        (OBJECTIVES,),
    ),
    Mutant(
        "value loss: the smaller of the two squares",
        "plugins/objective/value_clip.py",
        "0.5 * torch.maximum",
        "0.5 * torch.minimum",
        (OBJECTIVES,),
    ),
    Mutant(
        "value loss: the half forgotten",
        "plugins/objective/value_clip.py",
        "0.5 * torch.maximum",
        "torch.maximum",
        (OBJECTIVES,),
    ),
    Mutant(
        "entropy: a penalty instead of a bonus",
        "plugins/objective/entropy.py",
        "Loss(-batch.aggregate(new.entropy_BT))",
        "Loss(batch.aggregate(new.entropy_BT))",
        (OBJECTIVES,),
    ),
    Mutant(
        "aggregation: padding counts as tokens",
        "rlhf_lab/rl/aggregation.py",
        "return mask / mask.sum()",
        "return mask / mask.numel()",
        ("tests/core/test_aggregation.py",),
    ),
    # log-probs, sampling, heads
    Mutant(
        "log-probs: position ids that ignore left padding",
        "rlhf_lab/lm/logprobs.py",
        "return (mask_NL.long().cumsum(1) - 1).clamp(min=0)",
        "return torch.arange(mask_NL.shape[1], device=mask_NL.device).expand(mask_NL.shape)",
        (LOGPROBS,),
    ),
    Mutant(
        "log-probs: logits of the token itself, one position too late",
        "rlhf_lab/lm/logprobs.py",
        "at_BL = torch.nn.functional.pad(at_BT, (rollout.prompt_ids_BP.shape[1] - 1, 1))",
        "at_BL = torch.nn.functional.pad(at_BT, (rollout.prompt_ids_BP.shape[1], 0))",
        (LOGPROBS,),
    ),
    Mutant(
        "log-probs: the temperature dropped",
        "rlhf_lab/lm/logprobs.py",
        "scaled_NV = logits_NV if temperature == 1 else logits_NV / temperature",
        "scaled_NV = logits_NV",
        (LOGPROBS,),
    ),
    Mutant(
        "entropy: the temperature dropped",
        "rlhf_lab/lm/logprobs.py",
        "logprobs_NV = (logits_NV / temperature).log_softmax(-1)",
        "logprobs_NV = logits_NV.log_softmax(-1)",
        (LOGPROBS,),
    ),
    Mutant(
        "sampling: the EOS is not part of the response",
        "rlhf_lab/lm/sampling.py",
        "masks.append(alive_B)",
        "masks.append(alive_B & (ids_B != eos))",
        (SAMPLING,),
    ),
    Mutant(
        "sampling: the temperature dropped",
        "rlhf_lab/lm/sampling.py",
        "logprobs_BV = (logits_BV / temperature).log_softmax(-1)",
        "logprobs_BV = logits_BV.log_softmax(-1)",
        (SAMPLING,),
    ),
    Mutant(
        "sampling: greedy where it should draw",
        "rlhf_lab/lm/sampling.py",
        "ids_B, logprobs_B = choose_tokens(logits_BV, uniforms_BT[:, t], temperature)",
        "ids_B, logprobs_B = choose_greedily(logits_BV)",
        (SAMPLING,),
    ),
    Mutant(
        "critic: values that have seen the token they judge",
        "rlhf_lab/lm/scalar.py",
        "self.read(self.hidden(rollout)[:, first:-1])",
        "self.read(self.hidden(rollout)[:, first + 1 :])",
        (SCALAR,),
    ),
    Mutant(
        "reward model: read at a pad position",
        "rlhf_lab/lm/scalar.py",
        "(length_B - 1).clamp(min=0)[:, None]",
        "torch.full_like(length_B, per_token_BT.shape[1] - 1)[:, None]",
        (SCALAR,),
    ),
    Mutant(
        "head: the variance where the standard deviation belongs",
        "rlhf_lab/lm/scalar.py",
        "/ math.sqrt(d_model + 1)",
        "/ (d_model + 1)",
        (SCALAR,),
    ),
    # supervised stages
    Mutant(
        "SFT: each micro-batch has its own token mean",
        "plugins/stage/sft.py",
        "loss = -response_logprobs(model, rollout_bt).sum() / n_tokens",
        "loss = -response_logprobs(model, rollout_bt).sum() / int(rollout_bt.mask_BT.sum())",
        (STAGES,),
    ),
    Mutant(
        "SFT: the first response token is never trained",
        "plugins/stage/sft.py",
        "loss = -response_logprobs(model, rollout_bt).sum() / n_tokens",
        "loss = -response_logprobs(model, rollout_bt)[:, 1:].sum() / n_tokens",
        (STAGES,),
    ),
    Mutant(
        "reward model: ties are trained on",
        "plugins/reward_loss/kwise.py",
        "(ratings_BK[:, :, None] > ratings_BK[:, None, :])",
        "(ratings_BK[:, :, None] >= ratings_BK[:, None, :])",
        ("tests/plugins/test_reward_losses.py",),
    ),
    Mutant(
        "reward model: loser over winner",
        "plugins/reward_loss/kwise.py",
        "-logsigmoid(scores_BK[:, :, None] - scores_BK[:, None, :])",
        "-logsigmoid(scores_BK[:, None, :] - scores_BK[:, :, None])",
        ("tests/plugins/test_reward_losses.py",),
    ),
    Mutant(
        "reward model: the bias is not scaled with the gain",
        "plugins/stage/reward_model.py",
        "model.bias = -raw_B.mean().item() * model.gain",
        "model.bias = -raw_B.mean().item()",
        (STAGES,),
    ),
    Mutant(
        "ensemble: standard deviation where the variance belongs",
        "plugins/reward/ensemble.py",
        "coefficient * scores_KB.var(0, correction=0) if",
        "coefficient * scores_KB.std(0, correction=0) if",
        ("tests/plugins/test_variants_rewards.py",),
    ),
    # controllers, optimiser, averages, resume
    Mutant(
        "adaptive β: moves away from its target",
        "plugins/kl_controller/adaptive.py",
        "(kl - target) / target",
        "(target - kl) / target",
        ("tests/plugins/test_kl_controllers.py",),
    ),
    Mutant(
        "optimiser: the gradient clip is ignored",
        "rlhf_lab/rl/update.py",
        'limit = float("inf") if cfg.max_grad_norm is None else cfg.max_grad_norm',
        'limit = float("inf")',
        (f"{LOOP}::test_the_gradient_clip_limits_policy_and_critic_each_and_reports_what_was_there",),
    ),
    Mutant(
        "optimiser: Adam's ε is the library's default",
        "rlhf_lab/rl/actors.py",
        "eps=cfg.adam_eps",
        "eps=1e-8",
        (f"{LOOP}::test_adam_is_given_what_the_spec_says",),
    ),
    Mutant(
        "average: the weights of old and new exchanged",
        "rlhf_lab/rl/ema.py",
        "lerp_(parameter, 1 - self.decay)",
        "lerp_(parameter, self.decay)",
        ("tests/core/test_ema.py",),
    ),
    Mutant(
        "streams: every name draws the same numbers",
        "rlhf_lab/streams.py",
        "np.random.SeedSequence([seed, zlib.crc32(name.encode()), *counters])",
        "np.random.SeedSequence([seed, *counters])",
        ("tests/core/test_streams.py",),
    ),
    Mutant(
        "resume: β starts again",
        "rlhf_lab/rl/actors.py",
        'dict(checkpoint.state["kl"])',
        "actors.kl_state",
        ("tests/core/test_resume.py",),
    ),
)
