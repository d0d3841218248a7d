"""What `rlhf-lab diff` says of specs, presets, sweeps and runs, and with which exit code."""

import json
import re
from pathlib import Path

import pytest
import tiny_world
from micro_spec import lab, write_spec

from rlhf_lab.declaration.consequences import CONSEQUENCES
from rlhf_lab.declaration.difference import Experiment, difference
from rlhf_lab.rl.parameters import RLParameters


def said(*arguments, code):
    """The JSON of a diff: field → (values of a, values of b, sentence)."""
    result = lab("diff", *arguments, "--json")
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert found["equal"] == (code == 0) == (not found["differences"])
    return {row["field"]: (row["a"], row["b"], row["sentence"]) for row in found["differences"]}


def values(found):
    return {field: (a, b) for field, (a, b, _) in found.items()}


# Specs


def test_a_spec_does_not_differ_from_itself(tmp_path):
    path = write_spec(tmp_path)
    assert said(path, path, code=0) == {}
    assert lab("diff", path, path).stdout == f"{path} and {path} do not differ\n"


def test_two_specs(tmp_path):
    """An axis shows all of its values, seeds count, and defaults that both leave out do not show."""
    (tmp_path / "b").mkdir()
    a = write_spec(tmp_path)
    b = write_spec(tmp_path / "b", axes="axes: {rl.kl.beta: [0.1], rl.whiten_ddof: [1]}", seeds="seeds: [0, 7]")
    found = said(a, b, code=1)
    assert values(found) == {"rl.kl.beta": ([0.1, 1.0], [0.1]), "rl.whiten_ddof": ([0], [1]), "seeds": ([0, 1], [0, 7])}
    assert "√((n − 1)/n)" in found["rl.whiten_ddof"][2]
    lines = lab("diff", a, b).stdout.splitlines()
    assert lines[0].split("\t") == ["field", str(a), str(b), "what it changes"]
    assert lines[1].split("\t")[:3] == ["rl.kl.beta", "0.1 | 1.0", "0.1"]


def test_the_order_of_a_sweep_is_no_difference(tmp_path):
    (tmp_path / "b").mkdir()
    turned = write_spec(tmp_path / "b", axes="axes: {rl.kl.beta: [1, 0.1]}", seeds="seeds: [1, 0]")
    assert said(write_spec(tmp_path), turned, code=0) == {}


def test_shipped_experiments_have_names():
    """quickstart has its three β and a best-of-n, one_file one β and an export: else they are one spec."""
    found = said("quickstart", "one_file", code=1)
    assert set(found) == {"rl.kl.beta", "best_of_n", "export_world", "seeds"}
    assert found["rl.kl.beta"][:2] == ([0.02, 0.2, 1.0], [0.2])
    assert found["best_of_n"][:2] == (["best_of_n"], []) and found["best_of_n"][2].startswith("E[proxy] and E[gold]")


# Results


def test_results_do_not_differ_from_their_spec(finished):
    assert said(finished.parents[1] / "spec.yaml", finished, code=0) == {}
    assert said(finished, finished.parents[1] / "spec.yaml", code=0) == {}


def test_one_run_of_a_sweep(finished):
    """Against all: fewer values of β, fewer seeds. Against another with the other β: one field."""
    runs = {}
    for folder in sorted((finished / "runs").iterdir()):
        run = json.loads((folder / "run.json").read_text())
        runs[run["axes"]["rl.kl.beta"], run["seed"]] = folder
    assert values(said(finished, runs[0.1, 0], code=1)) == {"rl.kl.beta": ([0.1, 1.0], [0.1]), "seeds": ([0, 1], [0])}
    assert values(said(runs[0.1, 1], runs[1, 1], code=1)) == {"rl.kl.beta": ([0.1], [1.0])}


# Presets


def test_two_presets():
    """FACTS: TRL whitens with ddof 1 and pays one place after the EOS; OpenRLHF with ddof 0, at the EOS, λ = 1."""
    found = said("trl", "openrlhf", code=1)
    assert found["rl.whiten_ddof"][:2] == ([1], [0])
    assert found["rl.score_at"][:2] == (["post_eos"], ["eos"])
    assert found["rl.advantage.lam"][:2] == ([0.95], [1.0])
    assert "rl.whiten_advantages" not in found and "rl.policy" not in found
    assert not [field for field in found if field.startswith(("sft", "data", "seeds", "rl.gold"))]
    assert said("trl", "trl", code=0) == {}
    printed = {line.split("\t")[0]: line.split("\t")[1:3] for line in lab("diff", "trl", "openrlhf").stdout.splitlines()}
    assert printed["rl.batch_size"] == ["64 (default)", "1024"] and printed["rl.temperature"] == ["0.7", "1.0"]


def test_other_components_are_told_by_what_they_are():
    """oai2019 has a fixed β of 0.2, ziegler2019 an adaptive one from 0.15: one sentence on each, β beside them, no target."""
    found = said("oai2019", "ziegler2019", code=1)
    assert found["rl.kl"][:2] == (["fixed"], ["adaptive"])
    assert re.fullmatch(r"fixed: [^.]+; adaptive: .+\.", found["rl.kl"][2])
    assert found["rl.kl.beta"][:2] == ([0.2], [0.15]) and "rl.kl.target" not in found


def test_a_term_that_only_one_side_has_is_one_line():
    found = said("instructgpt", "nplus2024", code=1)
    assert found["rl.objective.pretrain_mix"][:2] == (["pretrain_mix"], [])
    assert not [field for field in found if field.startswith("rl.objective.pretrain_mix.")]
    assert not [field for field in found if field.startswith("rl_init")]  # a stage that the other does not speak of


def test_a_preset_and_a_spec_that_takes_it(tmp_path):
    """What the preset says, and nothing of what the spec adds: until the spec changes one of the preset's words."""
    base = Path(write_spec(tmp_path)).read_text()
    spec = tmp_path / "taken.yaml"
    added = "base:\n  preset: nplus2024\n  data: {name: micro, sentences: 64}\n  model: scratch\n  sft: {}\n"
    added += "  comparisons: {labeler: grammar_gold}\n  reward_model: {comparisons: comparisons}\n  rl: {gold: length}\n"
    spec.write_text("experiment: taken\n" + added + "seeds: [0, 1]\n")
    assert base and said("nplus2024", spec, code=0) == {}
    spec.write_text(spec.read_text().replace("gold: length", "gold: length, inner_epochs: 2"))
    assert values(said(spec, "nplus2024", code=1)) == {"rl.inner_epochs": ([2], [4])}


# Bad input


@pytest.mark.parametrize("name", ["no_such_thing", "instruct_gpt", "missing.yaml"])
def test_what_is_not_there(name):
    result = lab("diff", name, "trl")
    assert result.exit_code == 2 and result.stdout == "" and name in result.stderr
    assert ("did you mean 'instructgpt'" in result.stderr) == (name == "instruct_gpt")


def test_results_that_cannot_be_read(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    result = lab("diff", tmp_path, "trl")
    assert result.exit_code == 2 and "is no folder of results that can be read" in result.stderr


def test_a_wrong_spec_is_told_as_elsewhere(tmp_path):
    path = write_spec(tmp_path, seeds="seeds: many")
    assert lab("diff", path, path).exit_code == 2 and "seeds must be a list" in lab("diff", path, path).stderr


# Sentences


def test_every_sentence_is_of_a_parameter_that_exists_and_is_one_sentence():
    for key, sentence in CONSEQUENCES.items():
        kind, parameter = key.split(".")
        owners = [r.component for r in tiny_world.registry().registrations() if r.kind == kind and kind != "preset"]
        assert any(parameter in owner.model_fields for owner in owners), key
        assert sentence.endswith(".") and sentence.count(". ") == 0, key


CONVENTIONS = {
    "score_at", "kl_estimator", "whiten_advantages", "whiten_rewards", "whiten_ddof", "no_eos_score", "no_eos_penalty",
    "aggregation", "temperature",
}  # fmt: skip


def test_every_convention_has_a_sentence_of_its_own():
    assert {f"stage.{name}" for name in CONVENTIONS} <= set(CONSEQUENCES)
    assert set(RLParameters.model_fields) >= CONVENTIONS


def test_any_other_parameter_is_told_in_its_own_words():
    one, other = (Experiment(str(steps), [{"rl": {"name": "rl", "steps": steps}}]) for steps in (10, 20))
    (found,) = difference(one, other, tiny_world.registry())
    assert found.field == "rl.steps" and found.sentence == "Iterations of rollout and update."


def test_a_component_that_nobody_knows_is_still_compared():
    """Results of a plugin that is not loaded."""
    one, other = (Experiment(name, [{"rl": {"name": "rl", "kl": {"name": name, "x": 1}}}]) for name in ("mine", "yours"))
    (found,) = difference(one, other, tiny_world.registry())
    assert (found.field, found.a, found.b) == ("rl.kl", ("mine",), ("yours",))
