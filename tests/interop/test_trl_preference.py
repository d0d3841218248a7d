"""TRL 1.12.0's trainers of the DPO family beside our preference stage: loss and gradient on the same comparisons.

Each trainer is really built, prepares the texts in its own way, and computes its loss on one batch of them; ours is the stage's
own step. Policy and reference are two different models, so that no log-ratio is 0.

Tolerance 1e-5 in the loss, and in the gradient in units of its largest entry where that is above 1: two fp32 forward passes
with other padding differ by about 1e-6, a missing EOS or another normalisation by more than 1e-2.
"""

import pytest

pytest.importorskip("trl", reason="TRL is not installed; `make interop` makes an environment that has it")

import tiny_world
import torch

from rlhf_lab.contracts import AdvantageInputs, Ranking, Rollout
from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab.rl import update
from rlhf_lab.rl.actors import open_actors
from rlhf_lab.rl.update import Batch

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-5
BETA = 0.3
MOVED = {"name": "causal_lm", "init": "moved", "reference": "sft"}


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """The folder of a policy that is not the reference."""
    folder = tmp_path_factory.mktemp("moved")
    tiny_world.save_policy(folder, seed=5)
    return folder


def rankings(n=5, prompts=("<bos> w0", "<bos> w5 w3 w2", "<bos> w7 w8", "<bos> w4", "<bos> w11 w0"), alike=False):
    """Comparisons with responses of unlike length, the better one first; with `alike`, chosen ones of one length."""
    words = tiny_world.WORDS
    return [
        Ranking(prompts[i], tuple(" ".join(words[slice(*edges)]) for edges in edges_of(i, alike)), (1.0, 0.0)) for i in range(n)
    ]


def edges_of(i, alike):
    return (i, i + (3 if alike else 1 + i % 4)), (2 * i + 3, 2 * i + 4 + i % 3)


def rows(found):
    """As TRL wants text: a blank before a response, the EOS written out."""
    return [
        {"prompt": r.prompt, "chosen": f" {r.completions[0]} <eos>", "rejected": f" {r.completions[1]} <eos>"} for r in found
    ]


def config(config_class, folder, n, **changes):
    fixed = {"output_dir": str(folder), "per_device_train_batch_size": n, "bf16": False, "use_cpu": True,
             "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True}  # fmt: skip
    return config_class(**fixed, **changes)


def by_trl(trainer_class, config_class, world, moved, tmp_path, data, reference=True, **changes):
    """Loss and gradients of the trainer's own `compute_loss` on its own batch of all rows."""
    from datasets import Dataset

    model, frozen = load_causal_lm(moved), load_causal_lm(world / "sft")
    trainer = trainer_class(
        model=model,
        **({"ref_model": frozen} if reference else {}),
        args=config(config_class, tmp_path, len(data), **changes),
        train_dataset=Dataset.from_list(data),
        processing_class=tiny_world.tokenizer(),
    )
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters()}


def by_us(open_stage, world, moved, found, loss):
    """One step's gradient by the stage itself."""
    cfg, ctx = open_stage("preference", {"loss": loss, "policy": MOVED, "batch_size": 64}, inputs={"moved": moved})
    policy, examples = cfg.policy.build(ctx), cfg.loss.examples(found)
    for split in ctx.folder.glob("reference.*"):
        split.unlink()
    row = cfg.gradient(ctx, policy, examples, cfg.reference(ctx, policy, examples, "train"))
    return row["loss"], {name: p.grad for name, p in policy.module.named_parameters()}


def assert_alike(theirs, ours):
    (loss, gradients), (our_loss, our_gradients) = theirs, ours
    assert loss == pytest.approx(our_loss, abs=TOLERANCE, rel=TOLERANCE)
    assert gradients.keys() == our_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    assert largest > 1e-3
    for name, gradient in gradients.items():
        assert (gradient - our_gradients[name]).abs().max().item() < TOLERANCE * max(1.0, largest), name


@pytest.mark.parametrize(
    "loss, changes",
    [
        ({"name": "dpo", "beta": BETA}, {"loss_type": "sigmoid", "beta": BETA}),
        ({"name": "ipo", "beta": BETA, "per_token": True}, {"loss_type": "ipo", "beta": BETA}),
        ({"name": "hinge", "beta": BETA}, {"loss_type": "hinge", "beta": BETA}),
    ],
    ids=["dpo", "ipo", "hinge"],
)
def test_dpo_trainer(world, moved, open_stage, tmp_path, loss, changes):
    from trl import DPOConfig, DPOTrainer

    found = rankings()
    theirs = by_trl(DPOTrainer, DPOConfig, world, moved, tmp_path, rows(found), **changes)
    assert_alike(theirs, by_us(open_stage, world, moved, found, loss))


def test_ipo_on_sums_is_another_loss(world, moved, open_stage, tmp_path):
    """The paper's sums and TRL's means over tokens are not the same number: which is meant has to be said."""
    from trl import DPOConfig, DPOTrainer

    found = rankings()
    theirs, _ = by_trl(DPOTrainer, DPOConfig, world, moved, tmp_path, rows(found), loss_type="ipo", beta=BETA)
    ours, _ = by_us(open_stage, world, moved, found, {"name": "ipo", "beta": BETA})
    assert abs(theirs - ours) > 1


@pytest.mark.parametrize("number", range(3))
def test_conservative_dpo_is_trls_aot_on_a_single_pair(world, moved, open_stage, tmp_path, number):
    """TRL 1.12 has no label smoothing in its sigmoid loss, but in AOT, which sorts a batch first; one pair is in order."""
    from trl import DPOConfig, DPOTrainer

    found = rankings()[number : number + 1]
    theirs = by_trl(DPOTrainer, DPOConfig, world, moved, tmp_path, rows(found), loss_type="aot", beta=BETA, label_smoothing=0.2)
    assert_alike(theirs, by_us(open_stage, world, moved, found, {"name": "cdpo", "beta": BETA, "flip": 0.2}))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
def test_kto_trainer(world, moved, open_stage, tmp_path, weights):
    """Unpaired, in the order in which we have them, so that both see the same mismatched responses."""
    from trl import KTOConfig, KTOTrainer

    found = rankings()
    data = [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for row in rows(found)
        for key in ("chosen", "rejected")
    ]
    theirs = by_trl(
        KTOTrainer, KTOConfig, world, moved, tmp_path, data, beta=BETA, desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )  # fmt: skip
    loss = {"name": "kto", "beta": BETA, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    assert_alike(theirs, by_us(open_stage, world, moved, found, loss))


def test_simpo_by_the_cpo_trainer(world, moved, open_stage, tmp_path):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    found = rankings()
    theirs = by_trl(
        CPOTrainer, CPOConfig, world, moved, tmp_path, rows(found), reference=False, loss_type="simpo", cpo_alpha=0.0,
        beta=2.0, simpo_gamma=0.7,
    )  # fmt: skip
    assert_alike(theirs, by_us(open_stage, world, moved, found, {"name": "simpo", "beta": 2.0, "gamma": 0.7}))


def test_orpo_trainer(world, moved, open_stage, tmp_path):
    """TRL's fine-tuning term is over all tokens of prompt and response in a batch: with a prompt of one token, which nothing
    predicts, and chosen responses of one length it is ours."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    found = rankings(4, ("<bos>",) * 4, alike=True)
    theirs = by_trl(ORPOTrainer, ORPOConfig, world, moved, tmp_path, rows(found), reference=False, beta=BETA)
    assert_alike(theirs, by_us(open_stage, world, moved, found, {"name": "orpo", "weight": BETA}))


def test_orpo_on_longer_prompts_trains_on_them_in_trl(world, moved, open_stage, tmp_path):
    """There the two disagree by the prompt's tokens: ours is the loss of the paper's equation 6, which has responses only."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    found = rankings(4, ("<bos> w1 w2 w3",) * 4, alike=True)
    theirs, _ = by_trl(ORPOTrainer, ORPOConfig, world, moved, tmp_path, rows(found), reference=False, beta=BETA)
    ours, _ = by_us(open_stage, world, moved, found, {"name": "orpo", "weight": BETA})
    model, ids = load_causal_lm(moved), tiny_world.ids_of
    per_row = [(ids(r.prompt), [*ids(r.completions[0]), tiny_world.EOS]) for r in found]
    responses = [-sum(tiny_world.plain_logprobs(model, *row)) for row in per_row]
    wholes = [-sum(tiny_world.plain_logprobs(model, p[:1], p[1:] + y)) for p, y in per_row]
    difference = sum(wholes) / (4 * 7) - sum(responses) / (4 * 4)
    assert theirs - ours == pytest.approx(difference, abs=TOLERANCE) and abs(difference) > 1e-2


# Online


def scored(prompts, completions, completion_ids, **_):
    """Known by arithmetic to both sides; hardly ever a tie."""
    return [sum((3 * i + 7 * token) % 11 + token / 100 for i, token in enumerate(ids)) for ids in completion_ids]


@pytest.mark.parametrize("name, loss_type", [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_online_dpo_trainer(world, moved, open_stage, tmp_path, name, loss_type):
    """One training step of TRL, with what it sampled recorded; then our advantage and objective on the same samples.

    At temperature 1: at another one TRL samples at it and yet computes log-probs at 1, ours are those of the sampler.
    """
    from datasets import Dataset
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    tokenizer, prompts = tiny_world.tokenizer(), ["w0", "w5 w3", "w7 w8 w9", "w2"]
    tokenizer.padding_side = "left"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trainer = OnlineDPOTrainer(
            model=load_causal_lm(moved),
            ref_model=load_causal_lm(world / "sft"),
            reward_funcs=scored,
            args=config(OnlineDPOConfig, tmp_path, 4, beta=BETA, loss_type=loss_type, max_new_tokens=6, temperature=1.0),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
        )
        generate, sampled = trainer._generate, []

        def generating(*arguments, **keywords):
            sampled[:] = generate(*arguments, **keywords)
            return tuple(sampled)

        trainer._generate = generating
        trainer.create_optimizer()
        loss = trainer.training_step(trainer.model, {"prompt": prompts}).item()
    theirs = {key: p.grad for key, p in trainer.model.named_parameters()}

    prompt_ids_BP, prompt_mask_BP, response_ids_BT, mask_BT = sampled
    mask_BT, group_B = mask_BT.bool(), torch.arange(4).repeat(2)
    ended_B = ((response_ids_BT == tiny_world.EOS) & mask_BT).any(1)
    rollout = Rollout(("",) * 8, ("",) * 8, prompt_ids_BP, prompt_mask_BP.bool(), response_ids_BT, mask_BT, ended_B, group_B)
    scores_B = torch.tensor(scored(None, None, response_ids_BT.tolist()))
    assert (scores_B[:4] != scores_B[4:]).all()
    online = {
        "policy": MOVED, "critic": "none", "kl": "none", "reward": "words", "objective": ["policy_gradient"],
        "advantage": {"name": "preference_pairs", "loss": {"name": name, "beta": BETA}}, "whiten_advantages": "none",
        "aggregation": "constant", "samples_per_prompt": 2, "batch_size": 8, "response_length": 6,
    }  # fmt: skip
    cfg, ctx = open_stage("rl", online, inputs={"moved": moved})
    actors = open_actors(cfg, ctx)
    with torch.no_grad():
        logprobs_BT = actors.policy.forward(rollout, temperature=1.0).logprobs_BT
        ref_BT = actors.policy.reference_logprobs(rollout, temperature=1.0)
    nothing_BT = torch.zeros_like(ref_BT)
    given = AdvantageInputs(nothing_BT, mask_BT, scores_B, group_B, ended_B, logprobs_BT=logprobs_BT, ref_logprobs_BT=ref_BT)
    estimate = cfg.advantage.estimate(given, {})
    batch = Batch(rollout, logprobs_BT, ref_BT, *estimate[:2], None, scores_B, 0.0)
    update.backward(cfg, ctx, actors, cfg.objective, rollout, update.select(cfg, batch, torch.arange(8)), {})
    ours = {key: cfg.response_length * p.grad for key, p in actors.policy.module.named_parameters()}
    ratio_B = (logprobs_BT - ref_BT).sum(1)
    margin_B = (ratio_B[:4] - ratio_B[4:]) * (scores_B[:4] - scores_B[4:]).sign()
    if name == "dpo":
        our_loss = -torch.nn.functional.logsigmoid(BETA * margin_B).mean().item()
    else:
        our_loss = (margin_B - 1 / (2 * BETA)).square().mean().item()
    assert_alike((loss, theirs), (our_loss, ours))
