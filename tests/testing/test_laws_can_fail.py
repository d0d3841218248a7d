"""Each law of the kit on a component that breaks it and nothing else: a law that cannot fail proves nothing."""

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest
import torch
from pydantic import ConfigDict

from rlhf_lab.contracts import Estimate, Loss, Preset, Ranking, Scores, param
from rlhf_lab.skeletons.critic import Skeleton as PlainCritic
from rlhf_lab.skeletons.critic import Values
from rlhf_lab.skeletons.data import Skeleton as PlainData
from rlhf_lab.skeletons.model import Skeleton as PlainModel
from rlhf_lab.skeletons.policy import Skeleton as PlainPolicy
from rlhf_lab.skeletons.template import Skeleton as PlainTemplate
from rlhf_lab.testing import LAWS, laws_of, verdicts
from rlhf_lab.testing import every_kind as all_kinds
from rlhf_lab.testing.catalogue import statement
from rlhf_lab_plugins.advantage.gae import GAE, gae
from rlhf_lab_plugins.advantage.monte_carlo import MonteCarlo, discounted_returns
from rlhf_lab_plugins.advantage.rloo import RLOO
from rlhf_lab_plugins.kl_controller.adaptive import Adaptive
from rlhf_lab_plugins.kl_controller.fixed import Fixed
from rlhf_lab_plugins.objective.entropy import Entropy
from rlhf_lab_plugins.objective.ppo_clip import PPOClip
from rlhf_lab_plugins.objective.value_plain import ValuePlain
from rlhf_lab_plugins.preference_loss.dpo import DPO
from rlhf_lab_plugins.reward.length import Length
from rlhf_lab_plugins.reward_loss.kwise import KWise

BROKEN = []


def breaks(*laws):
    """The decorated class must break just these laws."""

    def remember(component):
        BROKEN.append((component, frozenset(laws)))
        return component

    return remember


# Every kind


@breaks("it_says_what_it_is")
class Wordless(Fixed):
    """Beta."""


@breaks("each_parameter_says_what_it_is")
class Undescribed(Fixed):
    """A constant without a word on it."""

    beta: float = 0.1


@breaks("sources_and_units_are_texts")
class WrongUnit(Fixed):
    """A constant in units of 1."""

    beta: float = param(0.1, "the constant", unit=1)


@breaks("unknown_parameters_are_refused")
class Permissive(Fixed):
    """Ignores what it does not know."""

    model_config = ConfigDict(extra="ignore")


@breaks("it_is_frozen")
class Mutable(Fixed):
    """May be changed afterwards."""

    model_config = ConfigDict(frozen=False)


@breaks("it_survives_json")
class Lossy(Fixed):
    """Writes something else than it holds."""

    def model_dump_json(self):
        return json.dumps({"name": self.name, "beta": self.beta + 1})


@breaks("nothing_happens_at_construction")
class Draws(Fixed):
    """Draws a number when it is made."""

    def model_post_init(self, context):
        random.random()


@breaks("each_parameter_counts")
class Ignores(Fixed):
    """Has a parameter that it never reads."""

    gain: float = param(0.1, "changes nothing")


@breaks("each_parameter_counts")
class NotOnlyMemory(Fixed):
    """Has a parameter that is not what it says."""

    microbatch_size: int = param(4, "sequences at a time; changes memory, not numbers", ge=1)

    def start(self):
        return {"beta": self.beta * self.microbatch_size}


# KL controllers


@breaks("beta_is_finite_and_not_negative")
class Explodes(Fixed):
    """Grows without end."""

    def update(self, state, kl, n_sequences):
        return {"beta": state["beta"] * (1e200 if kl > 5 else 1.0) - 0.0, "seen": torch.inf if kl > 1e8 else 0.0}


@breaks("an_update_is_pure")
class Remembers(Fixed):
    """Writes into the state that it is given."""

    def update(self, state, kl, n_sequences):
        state["beta"] = self.beta + abs(state["beta"]) / (1 + abs(state["beta"])) * 0.5
        return state


@breaks("its_state_survives_json")
class NumbersItsKeys(Fixed):
    """Has a state whose keys are numbers; as JSON they are texts."""

    def start(self):
        return {"beta": self.beta, 1: 0.0}

    def update(self, state, kl, n_sequences):
        return {"beta": self.beta + state.get(1, 0.0), 1: 0.01}


@breaks("it_reaches_its_target")
class Backwards(Adaptive):
    """Turns the wrong way, within bounds."""

    def update(self, state, kl, n_sequences):
        error = max(-self.clip, min(self.clip, (self.target - kl) / self.target))
        return {"beta": min(1e9, max(1e-9, state["beta"] * (1 + self.gain * error)))}


# Advantage estimators


@breaks("masked_places_are_0", "padding_changes_nothing")
class Unmasked(MonteCarlo):
    """Leaves numbers in the padding."""

    def estimate(self, batch, state):
        returns_BT = discounted_returns(batch.rewards_BT, batch.mask_BT, self.gamma)
        return Estimate(torch.where(batch.mask_BT, returns_BT, 1.0), returns_BT)


@breaks("padding_changes_nothing")
class WhitensPadding(MonteCarlo):
    """Takes the mean over all places, padding included (AlpacaFarm, trlX)."""

    def estimate(self, batch, state):
        returns_BT = discounted_returns(batch.rewards_BT, batch.mask_BT, self.gamma)
        return Estimate((returns_BT - returns_BT.mean()).masked_fill(~batch.mask_BT, 0.0), returns_BT)


@breaks("padding_changes_nothing")
class MultipliesByTheMask(MonteCarlo):
    """NaN times 0 is NaN."""

    def estimate(self, batch, state):
        returns_BT = (batch.rewards_BT * batch.mask_BT).flip(1).cumsum(1).flip(1) * self.gamma
        return Estimate(torch.where(batch.mask_BT, returns_BT, 0.0), torch.where(batch.mask_BT, returns_BT, 0.0))


@breaks("order_changes_nothing", "it_reads_all_that_it_needs")
class FirstOfItsGroup(RLOO):
    """Compares with whichever response of the batch stands first, and not with its group."""

    def estimate(self, batch, state):
        returns_B = batch.rewards_BT.masked_fill(~batch.mask_BT, 0.0).sum(1)
        return Estimate(*[torch.where(batch.mask_BT, (returns_B - returns_B[0])[:, None], 0.0)] * 2)


@breaks("an_estimate_is_pure", "it_reads_nothing_that_it_does_not_need")
class WritesIntoItsInput(MonteCarlo):
    """Scales the rewards in place."""

    def estimate(self, batch, state):
        batch.rewards_BT.mul_(0.5)
        return super().estimate(batch, state)


@breaks("its_state_survives_json")
class StateOfNaN(MonteCarlo):
    """Keeps what JSON has not."""

    def estimate(self, batch, state):
        return super().estimate(batch, state)._replace(state={"mean": torch.nan})


@breaks("it_reads_nothing_that_it_does_not_need")
class ReadsInSecret(MonteCarlo):
    """Reads values without saying so."""

    def estimate(self, batch, state):
        estimate = super().estimate(batch, state)
        return estimate._replace(advantages_BT=(estimate.advantages_BT - batch.values_BT).masked_fill(~batch.mask_BT, 0.0))


@breaks("it_reads_all_that_it_needs")
class NeedsForNothing(MonteCarlo):
    """Has a critic trained for nothing; what comes after is worth its value, though."""

    needs = frozenset({"values"})

    def estimate(self, batch, state):
        rewards_BT = batch.rewards_BT
        if batch.after_B is not None:
            last_B1 = batch.mask_BT.sum(1, keepdim=True) - 1
            rewards_BT = rewards_BT.scatter_add(1, last_B1, self.gamma * batch.after_B[:, None])
        returns_BT = discounted_returns(rewards_BT, batch.mask_BT, self.gamma)
        return Estimate(returns_BT, returns_BT)


@breaks("what_comes_after_is_worth_its_value")
class EndsEverywhere(GAE):
    """Takes every response for one that ended."""

    def estimate(self, batch, state):
        advantages_BT = gae(batch.rewards_BT, batch.values_BT, batch.mask_BT, self.gamma, self.lam)
        return Estimate(advantages_BT, (advantages_BT + batch.values_BT).masked_fill(~batch.mask_BT, 0.0))


# Loss terms


@breaks("masked_places_change_nothing")
class CountsPadding(PPOClip):
    """Weighs the padding like tokens."""

    def loss(self, new, batch):
        loss = super().loss(new, batch)
        return Loss(
            loss.value + 1e-3 * self.eps * (new.logprobs_BT * batch.weights_BT.max()).sum() * 0 + hidden(new, batch),
            loss.metrics,
        )


def hidden(new, batch):
    return 1e-3 * new.logprobs_BT.masked_fill(batch.mask_BT, 0.0).sum()


@breaks("parts_add_up")
class OwnMean(PPOClip):
    """Takes the mean of what it is given, so that it matters how it is split."""

    def loss(self, new, batch):
        return (
            super()
            .loss(new, batch)
            ._replace(value=-(new.logprobs_BT * batch.advantages_BT * batch.mask_BT * self.eps).sum() / batch.mask_BT.sum())
        )


@breaks("a_term_is_pure", "it_reads_nothing_that_it_does_not_need")
class ScalesInPlace(PPOClip):
    """Writes into the batch."""

    def loss(self, new, batch):
        batch.advantages_BT.mul_(1.0 + 1e-3)
        return super().loss(new, batch)


@breaks("it_reads_nothing_that_it_does_not_need")
class SecretEntropy(Entropy):
    """Reads the entropy without saying so."""

    needs = frozenset()


@breaks("it_reads_all_that_it_needs")
class IdleNeed(ValuePlain):
    """Has the reference computed for nothing."""

    needs = frozenset({"values", "ref_logprobs"})


@breaks("it_is_a_scalar_with_a_weight", "parts_add_up", "masked_places_change_nothing")
class MetricPerToken(PPOClip):
    """Logs a number per token."""

    def loss(self, new, batch):
        loss = super().loss(new, batch)
        return loss._replace(metrics={**loss.metrics, "logprobs": new.logprobs_BT.detach()})


# Losses of the reward model


@breaks("ties_contribute_nothing")
class TrainsOnTies(KWise):
    """Pulls scores together where the ratings tie."""

    def losses(self, scores_BK, ratings_BK, mask_BK):
        tied_BKK = (ratings_BK[:, :, None] == ratings_BK[:, None, :]) & mask_BK[:, :, None] & mask_BK[:, None, :]
        scores_BK = scores_BK.masked_fill(~mask_BK, 0.0)
        pull_B = torch.where(tied_BKK, (scores_BK[:, :, None] - scores_BK[:, None, :]).square(), 0.0).sum((1, 2))
        return super().losses(scores_BK, ratings_BK, mask_BK) + 0.01 * pull_B


@breaks("padding_of_k_changes_nothing")
class MeanOverPadding(KWise):
    """Divides by the width."""

    def losses(self, scores_BK, ratings_BK, mask_BK):
        return super().losses(scores_BK, ratings_BK, mask_BK) / mask_BK.shape[1]


@breaks("only_differences_count_unless_it_is_said")
class Anchored(KWise):
    """Holds the scores of a prompt to 0 and does not say so; not where all tie."""

    def losses(self, scores_BK, ratings_BK, mask_BK):
        losses_B = super().losses(scores_BK, ratings_BK, mask_BK)
        return losses_B + torch.where(losses_B > 0, scores_BK.masked_fill(~mask_BK, 0.0).sum(1).square(), 0.0)


@breaks("prompts_do_not_hear_each_other")
class OverTheBatch(KWise):
    """Divides by the size of the batch within the loss (trlX)."""

    def losses(self, scores_BK, ratings_BK, mask_BK):
        return super().losses(scores_BK, ratings_BK, mask_BK) / len(scores_BK)


@breaks("a_better_order_costs_less")
class UpsideDown(KWise):
    """Prefers what was rated lower."""

    def losses(self, scores_BK, ratings_BK, mask_BK):
        return super().losses(-scores_BK, ratings_BK, mask_BK)


@breaks("examples_are_rankings")
class EatsItsInput(KWise):
    """Empties the list that it is given."""

    def examples(self, rankings):
        return [rankings.pop() for _ in range(len(rankings))]


# Preference losses


@breaks("there_is_a_loss_for_each_example", "examples_do_not_hear_each_other")
class OneNumber(DPO):
    """Takes the mean over the batch."""

    def losses(self, batch):
        return super().losses(batch).mean()


@breaks("examples_do_not_hear_each_other")
class CentredOverTheBatch(DPO):
    """Subtracts the batch mean of the margins."""

    def losses(self, batch):
        losses_B = super().losses(batch)
        return losses_B + 0.1 * (losses_B - losses_B.mean().detach()).detach() * losses_B


@breaks("only_differences_count_unless_it_is_said")
class PullsBothUp(DPO):
    """Adds the negative log-likelihood of the preferred response and does not say so."""

    def losses(self, batch):
        return super().losses(batch) - 0.1 * batch.logprobs_BK[:, 0]


@breaks("the_preferred_response_is_pushed_up")
class PrefersTheLoser(DPO):
    """Has winner and loser exchanged."""

    def losses(self, batch):
        return super().losses(batch.swapped())


@breaks("it_reads_what_it_needs_and_nothing_else")
class IdleReference(DPO):
    """Has the reference computed for nothing."""

    def losses(self, batch):
        preferred_B, other_B = batch.logprobs_BK.unbind(1)
        return torch.nn.functional.softplus(-self.beta * (preferred_B - other_B))


@breaks("a_loss_is_pure")
class LengthensInPlace(DPO):
    """Writes into the batch."""

    def losses(self, batch):
        batch.lengths_BK.add_(1)
        return super().losses(batch)


@breaks("examples_are_pairs_or_verdicts")
class KeepsRatings(DPO):
    """Gives pairs with the ratings that they had."""

    def examples(self, rankings):
        return [r for r in (Ranking(r.prompt, r.completions[:2], (3.0, 0.0)) for r in rankings)]


# Rewards


class Counted(Length):
    """The number of words of a response, as a reward to be broken."""

    def open(self, ctx):
        return lambda rollout: Scores(self.of(rollout) * self.weight + (self.target or 0))

    def of(self, rollout):
        return torch.tensor([float(len(text.split())) for text in rollout.responses])


@breaks("there_is_a_number_for_each_response")
class TakesAColumn(Counted):
    """Has a column with a name of the core."""

    def open(self, ctx):
        return lambda rollout: Scores(self.weight * self.of(rollout) + (self.target or 0), {"kl": self.of(rollout)})


@breaks("a_score_does_not_depend_on_its_neighbours")
class Relative(Counted):
    """Compares the responses of a batch."""

    def of(self, rollout):
        words_B = super().of(rollout)
        return words_B - words_B.mean()


@breaks("padding_changes_nothing", "a_score_does_not_depend_on_its_neighbours")
class ReadsThePadding(Counted):
    """Counts a token wherever it stands."""

    def of(self, rollout):
        return super().of(rollout) + (rollout.response_ids_BT == 0).sum(1).float()


@breaks("scoring_is_determined_and_pure", "a_score_does_not_depend_on_its_neighbours", "padding_changes_nothing",
        "its_state_survives_json")  # fmt: skip
class Noisy(Counted):
    """Adds noise of its own."""

    def of(self, rollout):
        return super().of(rollout) + 0.01 * torch.rand(len(rollout), generator=NOISE)


NOISE = torch.Generator().manual_seed(0)


@breaks("its_state_survives_json")
class Forgetful(Counted):
    """Counts its calls and does not save the count; so its first score is not its second."""

    def open(self, ctx):
        calls = []

        def score(rollout):
            calls.append(0)
            return Scores(self.weight * self.of(rollout) + (self.target or 0) + len(calls))

        score.state_dict, score.load_state_dict = dict, lambda state: None
        return score


@breaks("an_ensemble_is_no_better_than_its_mean")
class Hopeful(Counted):
    """Takes the best member."""

    def open(self, ctx):
        def score(rollout):
            members = [self.weight * self.of(rollout) + (self.target or 0), torch.zeros(len(rollout))]
            return Scores(torch.stack(members).amax(0), {f"member_{i}": x for i, x in enumerate(members)})

        return score


# Policies and critics


class ReadsTooLate(Values):
    """Reads one position later than it may, so it has seen the token that it judges."""

    def values(self, rollout):
        later = dataclasses.replace(
            rollout,
            prompt_ids_BP=torch.cat([rollout.prompt_ids_BP, rollout.response_ids_BT[:, :1]], 1),
            prompt_mask_BP=torch.cat([rollout.prompt_mask_BP, rollout.mask_BT[:, :1]], 1),
            response_ids_BT=torch.nn.functional.pad(rollout.response_ids_BT[:, 1:], (0, 1)),
            mask_BT=torch.nn.functional.pad(rollout.mask_BT[:, 1:], (0, 1)),
        )
        return super().values(later)


@breaks("values_know_only_the_past")
class Prophet(PlainCritic):
    """Values that know the future."""

    def build(self, ctx, policy):
        return ReadsTooLate(super().build(ctx, policy).module)


class KnowsItsWidth(Values):
    """Adds something of how wide the batch is."""

    def values(self, rollout):
        return super().values(rollout) + 0.01 * rollout.mask_BT.shape[1]


@breaks("padding_changes_no_value")
class CountsPositions(PlainCritic):
    """Values that depend on the padding."""

    def build(self, ctx, policy):
        return KnowsItsWidth(super().build(ctx, policy).module)


class Bent(PlainPolicy):
    """A policy to be broken: `bend` changes what was built."""

    def build(self, ctx):
        live = super().build(ctx)
        self.bend(live)
        return live


@breaks("it_starts_as_its_reference")
class OtherReference(Bent):
    """Is compared with another model than the one it starts from."""

    def bend(self, live):
        with torch.no_grad():
            next(live.reference.parameters()).add_(0.05)


@breaks("the_reference_stays")
class LiveReference(Bent):
    """Is compared with itself."""

    def bend(self, live):
        live.reference = live.module


@breaks("sampler_and_training_agree")
class HotSampler(Bent):
    """Samples at another temperature than it is asked for."""

    def bend(self, live):
        sample = live.rollout
        live.rollout = lambda prompts, rng, **options: sample(
            prompts, rng, **{**options, "temperature": 0.8 * options["temperature"]}
        )


@breaks("noise_is_the_streams")
class OwnNoise(Bent):
    """Draws from a generator of its own."""

    def bend(self, live):
        sample, own = live.rollout, np.random.default_rng(0)
        live.rollout = lambda prompts, rng, **options: sample(prompts, own, **options)


@breaks("padding_changes_nothing")
class KnowsThePadding(Bent):
    """Has log-probs that know how wide the batch is."""

    def bend(self, live):
        forward, reference = live.forward, live.reference_logprobs

        def wide(rollout):
            return 0.01 * (rollout.response_ids_BT.shape[1] == 7)

        live.forward = lambda rollout, **options: (out := forward(rollout, **options))._replace(
            logprobs_BT=out.logprobs_BT - wide(rollout)
        )
        live.reference_logprobs = lambda rollout, **options: reference(rollout, **options) - wide(rollout)


@breaks("probabilities_add_up", "sampler_and_training_agree")
class Unnormalised(Bent):
    """Has log-probs that are none."""

    def bend(self, live):
        forward, reference = live.forward, live.reference_logprobs
        live.forward = lambda rollout, **options: (out := forward(rollout, **options))._replace(
            logprobs_BT=out.logprobs_BT - 0.1
        )
        live.reference_logprobs = lambda rollout, **options: reference(rollout, **options) - 0.1


# Templates, data, models


@breaks("a_prompt_becomes_one_text", "each_parameter_counts")
class SaysTheSame(PlainTemplate):
    """Forgets the prompt."""

    def format(self, prompt, tokenizer):
        return "Say something."


@breaks("the_same_every_time")
class Reshuffled(PlainData):
    """Is in another order each time."""

    def open(self, ctx):
        dataset = super().open(ctx)
        ask = dataset.prompts
        dataset.prompts = lambda split: [f"w{next(COUNT) % 12}", *ask(split)]
        return dataset


COUNT = itertools.count()


@breaks("its_weights_are_determined")
class Unseeded(PlainModel):
    """Draws its weights from the global generator."""

    def open(self, ctx):
        model, tokenizer = super().open(ctx)
        with torch.no_grad():
            next(model.parameters()).add_(torch.rand(()))
        return model, tokenizer


@breaks("it_is_ready_to_be_read")
class Training(PlainModel):
    """Leaves dropout on, at a rate of 0."""

    def open(self, ctx):
        model, tokenizer = super().open(ctx)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model.train(), tokenizer


# The test itself


@pytest.mark.parametrize("component, laws", BROKEN, ids=lambda x: x.__name__ if isinstance(x, type) else "")
def test_just_these_laws_are_broken(component, laws):
    """And each is said in words."""
    broken = {v.law: v.seen for v in verdicts(component) if v.seen is not None}
    assert set(broken) == laws, broken
    assert all(component.name in seen and len(seen.split()) > 4 and "\n" not in seen for seen in broken.values())


def test_a_preset_without_sources():
    bad = Preset("bad", "A preset that names none.", {"rl.kl.beta": (0.1, "")})
    assert [v.law for v in verdicts(bad) if v.seen] == ["each_value_has_a_source"]


CHEAP = ("kl_controller", "advantage", "objective", "reward_loss", "preference_loss", "reward")


def test_every_law_of_these_kinds_is_broken_by_somebody():
    told = {(component.kind, law) for component, laws in BROKEN for law in laws}
    every = {("kl_controller", law.__name__) for law in all_kinds.LAWS}
    every |= {(kind, law.__name__) for kind in CHEAP for law in LAWS[kind]}
    counts = {(kind, "each_parameter_counts") for kind in CHEAP}
    assert every - counts <= told and ("kl_controller", "each_parameter_counts") in told


def test_each_law_says_in_a_sentence_what_it_asks():
    for law in {law for kind in LAWS for law in LAWS[kind]} | set(all_kinds.LAWS):
        assert statement(law).endswith(".") and len(statement(law).split()) >= 6, law


def test_what_a_component_is_tried_at_is_found_from_its_fields():
    from rlhf_lab.testing.settings import settings

    tried = settings(GAE)
    assert GAE() in tried and any(c.gamma not in (0.0, 1.0) for c in tried)
    assert len(laws_of(GAE)) == len(all_kinds.LAWS) + len(LAWS["advantage"])
