"""The framework beside the frozen single file: the same rows, from files that a spec exports, by nothing that they share."""

import ast
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from rlhf_lab_experiments.one_file import compare, rlhf

import rlhf_lab
from rlhf_lab.cli import main
from rlhf_lab.errors import DataError, SpecError
from rlhf_lab.results.tables import load

HERE = Path(rlhf.__file__).parent
# Names of the same setting in the spec and in the file. Short enough for seconds, long enough for every branch: two epochs of
# SFT and reward model, a last batch that is smaller, responses that never end, three updates of four minibatches.
SHORT = {
    "data.sentences=300": None, "sft.epochs=2": "sft_epochs=2", "sft.warmup_steps=3": "sft_warmup=3",
    "model.hidden_size=16": "hidden=16", "model.intermediate_size=32": "inner=32", "model.heads=2": "heads=2",
    "comparisons.prompts=150": "pairs=150", "comparisons.validation_prompts=40": "held_out_pairs=40",
    "rl.steps=3": "steps=3", "rl.batch_size=16": "batch=16", "rl.evaluation.every=2": "every=2",
    "rl.evaluation.prompts=16": "prompts=16", "rl.gold.samples=64": "unit_samples=64", "seeds=3": "seed=3",
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The spec, shortened, run by the framework."""
    out = tmp_path_factory.mktemp("one_file")
    result = CliRunner().invoke(main, ["run", str(HERE / "spec.yaml"), *SHORT, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out / "one_file"


@pytest.fixture(scope="module")
def exported(results):
    """What the spec exported, for the file to read."""
    (path,) = results.glob("stages/*/world.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows(exported):
    """The rows of the file under the same settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name, text in (setting.split("=") for setting in SHORT.values() if setting):
            patch.setattr(rlhf.CFG, name, type(getattr(rlhf.CFG, name))(text))
        patch.setattr(rlhf, "ROWS", [])
        return pd.DataFrame(rlhf.main(exported))


def test_the_rows_agree(results, rows):
    """To 1e-6, on 23 rows or more of three stages; 1e-6 of a loss is what one wrong mask or one ulp too many is not."""
    table = compare.differences(load(results), rows)
    assert (table["difference"] < 1e-6).all(), table[table["difference"] >= 1e-6].to_string()
    compared = table.groupby(["stage", "split"])["rows"].first().to_dict()
    assert compared == {
        ("sft", "train"): 8, ("sft", "validation"): 2, ("reward_model", "train"): 10, ("reward_model", "validation"): 2,
        ("reward_model", "normalization"): 1, ("rl", "train"): 3, ("rl", "validation"): 3,
    }  # fmt: skip
    assert {"kl", "reward_proxy", "reward_gold", "entropy"} <= set(table[table["split"] == "validation"]["column"])
    assert {"loss_ppo_clip", "loss_value_clip", "kl", "score"} <= set(table[table["stage"] == "rl"]["column"])


def test_something_happened_in_every_stage(rows):
    """Equal rows of a run in which nothing is learned would show nothing."""
    train = rows[rows["split"] == "train"]
    sft, rl = train[train["stage"] == "sft"], train[train["stage"] == "rl"]
    assert sft["loss"].iloc[-1] < sft["loss"].iloc[0] - 0.1
    assert rl["kl"].iloc[0] == 0 and rl["kl"].iloc[-1] != 0 and rl["grad_norm_critic"].min() > 0
    assert (rl["score"] < rl["reward_proxy"]).any()  # a response without EOS is among them


def test_the_comparison_can_fail(results, rows):
    """A loss that is off by 1e-5, and a row too many."""
    off = rows.copy()
    off.loc[0, "loss"] += 1e-5
    assert compare.differences(load(results), off)["difference"].max() > 1e-6
    with pytest.raises(DataError, match="not each of these rows"):
        compare.differences(load(results), pd.concat([rows, rows.tail(1).assign(step=99)]))


# What kind of file it is


def tree():
    return ast.parse((HERE / "rlhf.py").read_text(encoding="utf-8"))


def test_it_is_one_short_file():
    assert len((HERE / "rlhf.py").read_text(encoding="utf-8").splitlines()) <= 300


def test_it_imports_nothing_of_the_package():
    nodes = list(ast.walk(tree()))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    outside = {module.split(".")[0] for module in modules} - sys.stdlib_module_names
    assert outside == {"torch", "transformers", "numpy"}


def test_its_steps_are_numbered_in_order():
    lines = (HERE / "rlhf.py").read_text(encoding="utf-8").splitlines()
    marks = [line.strip(" #").split(" ")[0] for line in lines if line.strip().startswith("# ") and line.strip()[2].isdigit()]
    assert [mark.rstrip(".") for mark in marks] == [*map(str, range(11)), *(f"10.{i}" for i in range(1, 7))]


def test_its_streams_are_those_of_the_documented_rule():
    """streams.py's rule on both sides; the reference is numpy's own generator."""
    from rlhf_lab.streams import shuffled_batches, stream

    for counters in ((), (4,), (2, 7)):
        assert rlhf.stream(5, "rollout", *counters).random(3).tolist() == stream(5, "rollout", *counters).random(3).tolist()
    theirs = [x for position in (0, 4, 8) for x in rlhf.shuffled(list("abcde"), 4, position, 1, "prompts")]
    ours = ["abcde"[i] for position in (0, 4, 8) for i in shuffled_batches(5, 4, position, 1, "prompts")]
    assert theirs == ours and sorted(ours[:5]) == sorted("abcde")


# What is exported


def test_the_exported_tables_are_those_of_the_gold_reward(exported):
    """VADER's own lexicon, and pairs of words that occur in the world's clean reviews."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon = SentimentIntensityAnalyzer().lexicon
    assert exported["valence"]["great"] == lexicon["great"] == 3.1
    assert set(exported["valence"]) == set(exported["vocabulary"]) & set(lexicon)
    follows = {first: set(seconds) for first, seconds in exported["follows"].items()}
    assert "was" in follows["soup"] and "soup" in follows["the"] and "<eos>" in follows["."] and "soup" not in follows["very"]


def test_only_a_gold_reward_with_tables_can_be_exported(run_stage):
    with pytest.raises(SpecError, match="has no tables to export; use grammar_gold"):
        run_stage("export_world", {"gold": "length"})


def test_gold_of_the_file_is_gold_of_the_framework(exported):
    """On texts with every kind of fault; the framework's number for one of them by hand: 4·3.1/√(3.1² + 64) and no penalty."""
    import torch

    from rlhf_lab.contracts import Rollout

    responses = ["the soup was great .", "very soup", "great great great great great", "", "the soup was awful !"]
    ended = torch.tensor([True, True, False, False, True])
    prompts = ("today we visited the cafe with family :",) * len(responses)
    ids = torch.zeros(len(responses), 1, dtype=torch.long)
    rollout = Rollout(prompts, tuple(responses), ids, ids.bool(), ids, ids.bool(), ended, ids[:, 0])
    component = rlhf_lab.registry.discover([]).choose("reward", "grammar_gold")
    batch = rlhf.Batch(prompts, responses, *[None] * 4, ended)
    ours, theirs = component.open(None)(rollout).scores_B, rlhf.gold(exported, batch)
    assert torch.equal(ours, theirs) and theirs[0].item() == pytest.approx(4 * 3.1 / (3.1**2 + 64) ** 0.5, rel=1e-6)
