"""What another value of a setting does to the numbers, one sentence each; `rlhf-lab diff` shows them.

A setting that is not here is told in the words of its own description.
"""

from collections.abc import Mapping

# "<kind of the component>.<parameter>"
CONSEQUENCES: Mapping[str, str] = {
    "stage.score_at": (
        "Where the score is paid: each place more between a token and the score takes a factor γλ off what the token "
        "hears of it, unless the critic knows the score already, and the critic has more states to learn."
    ),
    "stage.kl_estimator": (
        "What a token pays for leaving the reference: in the reward only k1 gives the gradient of the KL and the others "
        "pull towards another optimum; in the loss k1 has none on average, k2 the right one, k3 that of the forward KL."
    ),
    "stage.kl_placement": (
        "A KL in the reward is credited, whitened and discounted along with the score, one in the loss is not, so that "
        "the same β restrains more or less and only the measured KL can be compared."
    ),
    "stage.kl_unit": (
        "The controller compares its target with nats per sequence or per token, which differ by the length of the "
        "responses, so that the same target asks for another policy."
    ),
    "stage.whiten_advantages": (
        "Whitened advantages have unit variance whatever the reward's scale, so that the size of a step no longer follows "
        "the size of the differences; over a minibatch, mean and variance are noisier than over the whole rollout."
    ),
    "stage.advantages_shift_mean": (
        "With the mean left in, a batch that went better than expected raises the probability of all that was said in it, "
        "and one that went worse lowers it."
    ),
    "stage.whiten_rewards": (
        "Token rewards are divided by their standard deviation in each batch: score and KL keep their ratio, but returns, "
        "values and the value loss change their scale from batch to batch."
    ),
    "stage.rewards_shift_mean": (
        "With the mean taken off, each token earns or costs the same constant, so that responses are paid for being long "
        "or short."
    ),
    "stage.whiten_ddof": (
        "Whitened numbers differ by the factor √((n − 1)/n): half a percent for 100 tokens, nothing that shows for 10,000."
    ),
    "stage.truncation": (
        "What comes after a response that was cut off: nothing, as after an EOS (terminal), what the critic expects "
        "(bootstrap), or the response leaves the loss altogether (mask)."
    ),
    "stage.no_eos_score": (
        "A response that never ends scores this instead of what the reward says, which teaches the policy how urgent an EOS is."
    ),
    "stage.no_eos_penalty": "A response that never ends loses this, on top of what the reward says.",
    "stage.baseline": (
        "A group's baseline is taken of returns with the KL in them or of scores alone: in the second case the KL comes "
        "after it, without a baseline, and its noise is in the advantages."
    ),
    "stage.aggregation": (
        "By token_mean the tokens of long and short responses count alike, by sequence_mean the responses do and a token "
        "of a long one counts less, and constant divides by the greatest length, which makes the loss smaller where "
        "responses are short."
    ),
    "stage.temperature": "The law that is sampled from is softmax(z/τ), and KL, entropy and every log-prob are of that law.",
    "stage.logprob_temperature": (
        "Log-probs at τ = 1 of text that was sampled at another τ are of a law that nobody sampled from: KL and ratios "
        "are then those of that law, and the gradient is not that of what was sampled."
    ),
    "stage.adam_eps": "Adam's step is g/(√v + ε): where gradients are not much larger than ε the steps are shorter.",
    "stage.max_grad_norm": (
        "Gradients longer than this are scaled down to it, policy and critic each, which bounds the step after a freak batch."
    ),
    "stage.inner_epochs": "Passes over each batch: in the later ones the ratio is away from 1, and the clip decides.",
    "stage.minibatches": (
        "Optimiser steps in each pass: more of them are more steps, and noisier ones, at the same learning rate."
    ),
    "stage.seed": "Another draw of everything that is random in this stage.",
    "kl_controller.beta": "At the optimum π ∝ ref·e^{r/β}: a smaller β buys more reward with more KL.",
    "kl_controller.target": "The KL that β is steered towards.",
    "advantage.gamma": (
        "With γ < 1 the score is worth γ to the power of the tokens before it, so that short responses are paid more."
    ),
    "advantage.lam": (
        "λ = 1 is the whole return minus the value, unbiased and noisy; a smaller λ believes the critic more, and takes "
        "its errors for a bias."
    ),
}
