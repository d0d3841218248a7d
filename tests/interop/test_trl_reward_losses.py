"""TRL 1.12.0's RewardTrainer beside our reward model and reward losses: scores, loss and gradient on the same pairs.

Tolerance 1e-5, as in the other TRL tests: two fp32 forward passes with other padding differ by about 1e-6.
"""

import pytest

pytest.importorskip("trl", reason="TRL is not installed; `make interop` makes an environment that has it")

import tiny_world
import torch
import trl_ppo

from rlhf_lab.contracts import Ranking
from rlhf_lab.lm.scalar import load_scalar_model
from rlhf_lab_plugins.stage.reward_model import score_rankings

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-5
MARGINS = [0.5, 1.0, 0.0, 2.0, 1.5]


def pairs():
    """Five comparisons with responses of unlike length, the better one first; ratings differ by MARGINS."""
    prompts, words = tiny_world.TinyWorld(tiny_world.TinyData()).prompts("train"), tiny_world.WORDS
    return [
        Ranking(prompts[i], (" ".join(words[i : i + 4]), " ".join(words[2 * i : 2 * i + 1 + i % 3])), (margin, 0.0))
        for i, margin in enumerate(MARGINS)
    ]


def by_trl(folder, tmp_path, rankings, margins, coefficient):
    """Scores, loss and gradient of RewardTrainer.compute_loss on one batch; the EOS is part of the ids, as it is with us."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    encoder = tiny_world.encoder()
    ids = [[encoder.prompt_ids(r.prompt) + encoder.response_ids(text) for text in r.completions] for r in rankings]
    rows = {"chosen_ids": [chosen for chosen, _ in ids], "rejected_ids": [rejected for _, rejected in ids]}
    model = trl_ppo.sequence_classifier(folder / "reward_model")
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(tmp_path),
            center_rewards_coefficient=coefficient,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            max_length=None,
        ),
        processing_class=tiny_world.tokenizer(),
        train_dataset=Dataset.from_dict({**rows, **({"margin": margins} if margins else {})}),
    )
    examples = [{key: values[i] for key, values in rows.items()} for i in range(len(rankings))]
    for example, margin in zip(examples, margins or [], strict=bool(margins)):
        example["margin"] = margin
    loss, outputs = trainer.compute_loss(model, trainer.data_collator(examples), return_outputs=True)
    loss.backward()
    gradients = {name: p.grad for name, p in trl_ppo.AsOurs(model).named_parameters()}
    return outputs.logits.detach().view(2, -1).T, loss.item(), gradients


@pytest.mark.parametrize(
    "loss, margins, coefficient",
    [
        ("kwise", None, None),
        ("pairwise", None, None),
        ({"name": "margin", "margin": 1.0}, MARGINS, None),
        ({"name": "centred", "coefficient": 0.05}, None, 0.05),
    ],
    ids=["kwise", "pairwise", "margin", "centred"],
)
def test_scores_losses_and_gradients(world, open_stage, tmp_path, loss, margins, coefficient):
    """Mean over four comparisons: the fifth, a tie, is another matter (below)."""
    rankings = [r for r in pairs() if r.ratings[0] > 0]
    margins = margins and [m for m in margins if m > 0]
    scores, value, gradients = by_trl(world, tmp_path, rankings, margins, coefficient)
    cfg, ctx = open_stage("reward_model", {"loss": loss})
    model = load_scalar_model(world / "reward_model").train()
    scores_BK, ratings_BK, mask_BK = score_rankings(ctx, model, tiny_world.encoder(), rankings)
    mean = cfg.loss.losses(scores_BK, ratings_BK, mask_BK).mean()
    mean.backward()
    assert torch.allclose(scores, scores_BK, atol=TOLERANCE, rtol=0)
    assert value == pytest.approx(mean.item(), abs=TOLERANCE)
    ours = {name: p.grad for name, p in model.named_parameters()}
    assert ours.keys() == gradients.keys()
    for name, gradient in ours.items():
        assert torch.allclose(gradients[name], gradient, atol=TOLERANCE, rtol=TOLERANCE), name


def test_a_margin_of_zero_is_a_tie_for_us(world, tmp_path, open_stage):
    """TRL takes the order of the columns for the verdict, also where ratings tie; we take the ratings, so a tie has loss 0."""
    tied = [r for r in pairs() if r.ratings[0] == 0]
    (scores, value, _), (cfg, ctx) = by_trl(world, tmp_path, tied, [0.0], None), open_stage("reward_model", {"loss": "margin"})
    bradley_terry = -torch.nn.functional.logsigmoid(scores[0, 0] - scores[0, 1]).item()
    assert value == pytest.approx(bradley_terry, abs=TOLERANCE) and value > 0.01
    model = load_scalar_model(world / "reward_model")
    assert cfg.loss.losses(*score_rankings(ctx, model, tiny_world.encoder(), tied)).tolist() == [0.0]
