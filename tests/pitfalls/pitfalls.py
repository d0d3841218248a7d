"""What published systems and tutorials of RLHF got wrong, and the tests that keep it out of here.

A test is named as pytest names it, without `tests/`; `law KIND.LAW` is one of `rlhf_lab.testing`, held over every component of
that kind. `python tests/pitfalls/pitfalls.py` writes README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("README.md")


class Pitfall(NamedTuple):
    """`seen` names where it happened; `tests` what fails if it happened here; `remark` why it cannot, or what differs."""

    what: str
    seen: str
    tests: tuple[str, ...]
    remark: str = ""


LOOP, MASKED, KL, REWARDS = (f"core/test_{name}.py::" for name in ("loop", "masked", "kl", "rewards"))
LOGPROBS, SAMPLING, SCALAR = (f"lm/test_{name}.py::" for name in ("logprobs", "sampling", "scalar"))
ADVANTAGES, OBJECTIVES, STAGES = (f"plugins/test_{name}.py::" for name in ("advantages", "objectives", "stages"))
LOSSES, MORE_ADVANTAGES = "plugins/test_reward_losses.py::", "plugins/test_variants_advantages.py::"
SEAMS, METRICS = "pitfalls/test_seams.py::", "pitfalls/test_metrics.py::"

IN_SYSTEMS = (
    Pitfall(
        "The score lands on another place than the last token: first PAD, last column, one too early",
        "TRL (trl#3750), lm-human-preferences; differs between OpenRLHF, NeMo-Aligner, torchtune",
        (
            f"{REWARDS}test_the_score_stands_at_the_last_response_token",
            f"{REWARDS}test_they_sum_to_the_score_minus_beta_kl",
            f"{LOOP}test_every_field_changes_some_row",
        ),
        "where it lands is a field, `score_at`",
    ),
    Pitfall(
        "PAD is EOS, and masks are made by comparing tokens",
        "AlpacaFarm, DeepSpeed-Chat, transformers#35352",
        (
            f"{LOGPROBS}test_what_the_padding_is_changes_nothing",
            "lm/test_tokens.py::test_the_eos_counts_as_a_response_token_where_it_is_the_padding_too",
            f"{SCALAR}test_the_score_is_read_at_the_eos_even_where_it_is_the_padding",
            f"{SAMPLING}test_the_mask_ends_with_the_eos",
        ),
        "masks come from lengths",
    ),
    Pitfall(
        "Whitening over padding",
        "trlX, AlpacaFarm, SkyRL",
        (f"{MASKED}test_whitening_is_numpys_on_the_bare_numbers", "law advantage.padding_changes_nothing"),
    ),
    Pitfall(
        "Whitening per process or per micro-batch instead of over the batch",
        "TRL",
        (
            f"{LOOP}test_micro_batches_change_memory_not_numbers",
            f"{LOOP}test_minibatch_whitening_is_over_the_tokens_of_the_minibatch",
        ),
        "over what is whitened is a field, `whiten_advantages`",
    ),
    Pitfall(
        "NaN in masked places survives a multiplication with the mask",
        "OpenRLHF#1240, TRL",
        (
            f"{MASKED}test_masked_nan_sends_no_gradient",
            f"{LOOP}test_the_gradient_of_an_optimiser_step",
            "law advantage.padding_changes_nothing",
            "law reward_loss.padding_of_k_changes_nothing",
        ),
    ),
    Pitfall(
        "Placeholder values in statistics: a negative entropy, metrics that change with padding",
        "TRL (trl#2022, trl#6809)",
        (
            f"{METRICS}test_entropy_and_kl_over_the_vocabulary_are_never_negative",
            f"{METRICS}test_metrics_do_not_change_with_padding",
            f"{LOOP}test_entropy_and_length_have_their_bounds",
            "law objective.masked_places_change_nothing",
        ),
    ),
    Pitfall(
        "What is logged is not what was optimised",
        "TRL (trl#1161, trl#5352, trl#7298)",
        (
            f"{METRICS}test_the_row_is_read_from_the_tensors_of_the_loss",
            f"{LOOP}test_the_return_is_the_score_less_beta_kl",
            f"{LOOP}test_recorded_kl_length_and_reward_are_those_of_the_samples",
        ),
    ),
    Pitfall(
        "The sign of the KL; a mean that is negative because the sampler is not the policy",
        "TRL (trl#351)",
        (
            f"{KL}test_k1_and_k3_are_unbiased_k2_and_abs_are_not",
            f"{SEAMS}test_a_sampler_that_is_not_the_policy_raises_an_alarm",
        ),
        "the gap between sampler and training is measured itself, `sampler_gap`, with an alarm beyond `sampler_gap_limit`: no "
        "guess from the sign of a noisy mean is needed",
    ),
    Pitfall(
        "k3 with the ratio the wrong way round; clamped or absolute KL taken for unbiased",
        "trlX, AlpacaFarm; clamps in OpenRLHF, verl, NeMo",
        (
            f"{KL}test_by_hand",
            f"{KL}test_k3_is_never_negative_and_k1_may_be",
            f"{KL}test_k1_and_k3_are_unbiased_k2_and_abs_are_not",
        ),
        "nothing is clamped here; `abs` says that it is biased",
    ),
    Pitfall(
        "The gradient of a KL in the loss is not the gradient of the KL",
        "verl#2953, OpenRLHF#1309, trl#4638, trl#6503",
        (
            f"{KL}test_expected_gradient_as_a_loss",
            "plugins/test_variants_objectives.py::test_the_gradient_of_each_estimator_on_policy",
            "core/test_estimators.py::test_k1_in_the_loss_has_no_gradient_on_average",
        ),
    ),
    Pitfall(
        "An adaptive β that sees KL per token where its target is per sequence, or an old KL",
        "trlX; units differ between lm-human-preferences, verl, OpenRLHF",
        (
            f"{LOOP}test_beta_follows_the_controller_by_hand",
            "law kl_controller.it_reaches_its_target",
            "law kl_controller.its_state_survives_json",
        ),
    ),
    Pitfall(
        "The temperature is in the sampler and not in the log-probs, or not in the reference's, or not in the entropy",
        "TRL (trl#3029, trl#4159), OpenRLHF#853, #857, #1319",
        (
            f"{LOOP}test_before_the_first_update_everything_agrees",
            f"{LOGPROBS}test_gathering_divides_by_the_temperature_before_the_softmax",
            f"{LOGPROBS}test_entropy_is_that_of_the_law_that_is_sampled",
            "law policy.sampler_and_training_agree",
        ),
    ),
    Pitfall(
        "top-p, top-k or a repetition penalty in the sampler, and raw log-probs in training",
        "TRL (trl#2358)",
        (f"{SEAMS}test_what_a_models_generation_config_says_changes_nothing",),
        "the sampler is the package's own: it has a temperature and nothing else",
    ),
    Pitfall(
        "Rollouts are greedy without anybody asking for it",
        "DeepSpeed-Chat",
        (
            f"{SAMPLING}test_sampling_is_not_greedy",
            f"{SAMPLING}test_frequencies_are_the_law",
            "law policy.noise_is_the_streams",
        ),
    ),
    Pitfall(
        "The ratio of the first update is not 1; log-probs depend on the size of the micro-batch",
        "trl#454, trlx#107, open-instruct#1473, verl#2996",
        (
            f"{LOOP}test_before_the_first_update_everything_agrees",
            f"{LOOP}test_each_seam_is_looked_at",
            f"{LOOP}test_a_learning_rate_of_next_to_nothing_leaves_the_policy",
        ),
        "checked in every run at step 0",
    ),
    Pitfall(
        "Dropout is on while log-probs are computed",
        "trl#744; 0.1 by default in Megatron",
        (
            "plugins/test_policies.py::test_dropout_is_off",
            f"{SEAMS}test_a_model_configured_with_dropout_has_none_in_reinforcement_learning",
        ),
    ),
    Pitfall(
        "Position ids count the padding on the left",
        "trl#469, trlx#509, OpenRLHF#217, trl#6800",
        (
            f"{LOGPROBS}test_padding_left_right_or_none",
            "law policy.padding_changes_nothing",
            "law critic.padding_changes_no_value",
        ),
    ),
    Pitfall(
        "Reward model and policy disagree on the side of the padding, on the tokenizer, or on the BOS",
        "trl#2778, trl#1979, AlpacaFarm",
        (
            f"{SCALAR}test_a_padded_batch_scores_like_single_texts",
            f"{STAGES}test_as_a_reward_it_scores_what_was_sampled",
            "law reward.padding_changes_nothing",
        ),
        "the reward model reads the token ids that were sampled; nothing is tokenised again",
    ),
    Pitfall(
        "The reward model is trained on texts that end with EOS and asked about texts that do not",
        "neox#1285, TRL",
        (f"{SEAMS}test_the_reward_model_is_asked_about_what_it_was_trained_on",),
    ),
    Pitfall(
        "The K-wise loss is divided by the batch within the sum; pairs of a prompt are spread over batches",
        "trlx#220",
        (
            f"{LOSSES}test_k_wise_is_the_average_over_its_pairs",
            f"{LOSSES}test_nine_completions_are_36_pairs",
            "law reward_loss.prompts_do_not_hear_each_other",
        ),
    ),
    Pitfall(
        "A response that was cut off is taken for one that ended",
        "all systems (trl#1536)",
        ("law advantage.what_comes_after_is_worth_its_value",),
        "what a cut means is a field, `truncation`",
    ),
    Pitfall(
        "GAE decays across tokens that are not the policy's",
        "verl, miles#1827",
        (
            f"{ADVANTAGES}test_a_masked_gap_neither_contributes_nor_decays",
            f"{MORE_ADVANTAGES}test_a_masked_gap_is_as_if_it_were_cut_out",
        ),
    ),
    Pitfall(
        "The gradient depends on how a minibatch is split, by its aggregation",
        "trl#3021, trl#6024, verl#6957, ms-swift#10117, open-instruct#1137",
        (
            "law objective.parts_add_up",
            f"{LOOP}test_the_gradient_of_an_optimiser_step",
            f"{LOOP}test_micro_batches_change_memory_not_numbers",
            f"{STAGES}test_accumulation_changes_memory_not_numbers",
        ),
    ),
    Pitfall(
        "A parameter that is accepted and ignored: minibatches, gradient clip, the pretraining coefficient",
        "trl#5645, TRL's max_grad_norm, OpenRLHF's --ptx_coef",
        (
            f"{LOOP}test_every_field_changes_some_row",
            f"{LOOP}test_optimiser_steps_are_epochs_times_minibatches",
            "law objective.each_parameter_counts",
            "law advantage.each_parameter_counts",
            "law reward.each_parameter_counts",
            "law kl_controller.each_parameter_counts",
        ),
    ),
    Pitfall(
        "Clip, scale, baseline and KL in an order that nobody chose",
        "OpenRLHF",
        ("plugins/test_variants_rewards.py::test_the_order_of_wrappers_matters",),
        "rewards are wrapped in the order in which the spec writes them",
    ),
    Pitfall(
        "Group statistics: cancellation, groups of one, groups that agree, ddof",
        "NeMo#4158, OpenRLHF#1239",
        (
            f"{MORE_ADVANTAGES}test_a_group_that_agrees_has_no_advantage",
            f"{MORE_ADVANTAGES}test_a_group_of_one_is_an_error",
            f"{ADVANTAGES}test_rloo_is_g_over_g_minus_1_times_the_centred_return",
            "core/test_aggregation.py::test_a_response_without_tokens_weighs_nothing",
        ),
    ),
    Pitfall(
        "Adam's ε and betas are the library's, whatever the spec says",
        "Hugging Face's default 1e-8 against 1e-5 in lm-human-preferences",
        (f"{LOOP}test_adam_is_given_what_the_spec_says",),
    ),
    Pitfall(
        "Initialisation: the head's deviation, the reward's mean on reference data, the critic's start",
        "told apart in Huang et al. 2024",
        (
            f"{SCALAR}test_the_head_starts_at_one_over_d_plus_1_in_variance",
            f"{STAGES}test_normalised_on_samples_it_has_mean_0_and_deviation_1",
            "plugins/test_critics.py::test_from_a_reward_model_it_starts_as_the_reward_model",
        ),
    ),
    Pitfall(
        "With the adapter off the model is not the SFT policy, because that was an adapter itself",
        "trl#1340, #495, #3196, #6591",
        (
            f"{LOOP}test_also_from_an_sft_stage_that_was_an_adapter_with_dropout",
            "plugins/test_policies.py::test_an_sft_model_that_was_an_adapter_is_the_reference",
            "law policy.it_starts_as_its_reference",
        ),
    ),
    Pitfall(
        "Log-softmax and KL in bf16",
        "OpenRLHF#620",
        (
            f"{SEAMS}test_log_probs_are_in_fp32_whatever_the_logits_are",
            f"{SEAMS}test_response_logits_are_widened_before_the_softmax",
        ),
    ),
    Pitfall(
        "A resume forgets generators, loader, optimiser, β, running moments, averages or the step",
        "verl#2653, OpenRLHF#1103, trl#2657",
        (
            "core/test_resume.py::test_stopped_at_every_nth_step_and_resumed",
            "faults/test_killed_sweeps.py::test_fault_01_killed_after_every_step_and_so_is_what_resumes",
            "plugins/test_variants_rewards.py::test_moments_survive_a_resume_however_deep_they_lie",
            "law kl_controller.its_state_survives_json",
            "law policy.its_weights_survive_safetensors",
        ),
    ),
    Pitfall(
        "A constructor draws from, or seeds, the global generator; results depend on the order of completion",
        "trl#1648, verl",
        (
            "law every kind.nothing_happens_at_construction",
            f"{LOOP}test_the_same_stage_twice_gives_the_same_bytes",
            "core/test_streams.py::test_drawing_disturbs_nobody",
        ),
    ),
)

IN_TUTORIALS = (
    Pitfall(
        "The SFT mask starts at the length of the prompt after labels were shifted: the first response token is never trained",
        "tutorials",
        (f"{STAGES}test_the_loss_is_the_token_mean_over_responses", f"{LOGPROBS}test_padding_left_right_or_none"),
    ),
    Pitfall(
        "A “KL” that sums log-ratios over the vocabulary",
        "tutorials",
        (
            f"{KL}test_sequence_kl_sums_over_the_response_and_nothing_else",
            f"{LOOP}test_recorded_kl_length_and_reward_are_those_of_the_samples",
        ),
    ),
    Pitfall("The ratio is clamped to [1 − ε, 1]", "tutorials", (f"{OBJECTIVES}test_slope_of_the_clipped_surrogate",)),
    Pitfall(
        "Sampling at τ = 0.7 and top-p 0.9, scoring at τ = 1",
        "tutorials",
        (
            f"{LOOP}test_before_the_first_update_everything_agrees",
            f"{SEAMS}test_what_a_models_generation_config_says_changes_nothing",
        ),
    ),
    Pitfall(
        "Token rewards are written to row 0 of the batch only",
        "tutorials",
        (f"{REWARDS}test_they_sum_to_the_score_minus_beta_kl",),
    ),
    Pitfall(
        "Freezing the reward model freezes the trunk that it shares with the policy, which then learns nothing",
        "tutorials",
        (f"{SEAMS}test_opening_a_frozen_reward_model_freezes_nothing_else",),
    ),
    Pitfall(
        "Old and new policy are one object, so that the ratio is always 1",
        "tutorials",
        (f"{SEAMS}test_from_the_second_step_on_a_batch_the_ratio_is_not_1", f"{LOOP}test_the_gradient_of_an_optimiser_step"),
    ),
    Pitfall(
        "No causal mask",
        "tutorials",
        (
            f"{LOGPROBS}test_only_the_path_before_a_token_matters",
            f"{SCALAR}test_values_are_causal",
            "law policy.only_the_past_matters",
        ),
    ),
    Pitfall(
        "The reward is read at a pad position",
        "tutorials",
        (f"{SCALAR}test_a_padded_batch_scores_like_single_texts",),
    ),
)


def page() -> str:
    """README.md."""
    head = (
        "# Pitfalls\n\nWhat published systems and tutorials of RLHF got wrong, often for months, and what keeps it out of "
        "here. Generated by `python tests/pitfalls/pitfalls.py` from the list in that file; a test checks that each named test "
        "exists.\n"
    )
    return head + section("Systems", IN_SYSTEMS) + section("Tutorials", IN_TUTORIALS)


def section(title: str, pitfalls: tuple[Pitfall, ...]) -> str:
    lines = [f"\n## {title}\n", "| | pitfall | seen in | here |", "|---|---|---|---|"]
    for number, one in enumerate(pitfalls, 1):
        here = "<br>".join([*(f"`{test}`" for test in one.tests), *([one.remark] if one.remark else [])])
        lines.append(f"| {number} | {one.what} | {one.seen} | {here} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
