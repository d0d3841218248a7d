"""Bad input, one sentence each: what is wrong at planning time creates nothing, what a run finds leaves the rest untouched."""

import json

import pytest
import tiny_world
from micro_spec import PLUGINS, lab, refused, write_spec

from rlhf_lab.declaration.overrides import parse_override
from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.registry import discover
from rlhf_lab.running.plan import plan_sweep
from rlhf_lab.running.runner import prepare
from rlhf_lab.store.files import COMMIT, read_json
from rlhf_lab.worker import execute

TINY = tiny_world.__file__

FILES = """\
experiment: tiny
base:
  data:
    name: jsonl
    prompts: {train: prompts.jsonl, validation: prompts.jsonl}
    demonstrations: {train: demonstrations.jsonl, validation: demonstrations.jsonl}
    rankings: {train: rankings.jsonl}
  model: {name: hf, folder: model}
  sft: {batch_size: 4, log_samples: 0}
  reward_model: {batch_size: 4, normalize: demonstrations}
  rl:
    steps: 1
    batch_size: 4
    response_length: 4
    evaluation: {prompts: 2}
    critic: {init: sft}
resources: {workers: 1, threads: 1}
"""
LINES = {
    "prompts": [{"prompt": "w1 w2"}, {"prompt": "w3"}],
    "demonstrations": [{"prompt": "w1 w2", "completion": "w3 w4"}, {"prompt": "w3", "completion": "w4 w5"}],
    "rankings": [{"prompt": "w1", "completions": ["w2", "w3", "w4"], "ratings": [1, 2, 2]}],
}


@pytest.fixture
def spec(tmp_path):
    """A spec that reads a folder with a model and three files of records; all of it is good."""
    for name, records in LINES.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tiny_world.save_policy(tmp_path / "model")
    path = tmp_path / "spec.yaml"
    path.write_text(FILES)
    return path


def computed(path, *overrides, plugins=()):
    """Executes the first run of a spec in this process; (status, error, names of the committed stages)."""
    registry = discover(plugins, {"RLHF_LAB_LOAD_PLUGINS": ""})
    sweep = load_sweep(path, [parse_override(text) for text in overrides], registry)
    plan, results = plan_sweep(sweep, registry), path.parent / "results"
    prepare(sweep, plan, results, plugins)
    folder = results / "runs" / plan.runs[0].run_id
    execute(folder)
    status, stages = read_json(folder / "status.json"), read_json(folder / "run.json")["stages"]
    done = {name for name, stage in stages.items() if (results / "stages" / stage / COMMIT).is_file()}
    return status["status"], status.get("error"), done


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_good_spec_runs(spec):
    before = contents(spec.parent)
    assert computed(spec) == ("done", None, {"sft", "reward_model", "rl"})
    after = contents(spec.parent)
    assert {path: after[path] for path in before} == before, "what was read is left as it was"


# Found while planning: nothing is created


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "batch_size: 4, log",
            "batchsize: 4, log",
            "spec.yaml:9:9: unknown key 'batchsize' in sft (did you mean 'batch_size'?)",
        ),
        ("steps: 1", "steps: many", "spec.yaml:12:5: rl.steps must be a whole number, not 'many'"),
        ("steps: 1", "steps: 1.5", "spec.yaml:12:5: rl.steps must be a whole number, not 1.5"),
        ("steps: 1", "kl: [fixed]", "spec.yaml:12:5: kl_controller must be a name, or a mapping with a 'name' in it"),
        ("steps: 1", "kl: adaptiv", "spec.yaml:12:5: unknown kl_controller 'adaptiv' (did you mean 'adaptive'?)"),
        ("steps: 1", "kl: {name: adaptive, target: 0}", "spec.yaml:12:26: rl.kl.target must be > 0 nats per sequence, not 0"),
        ("steps: 1", "minibatches: 3", "must be divisible by samples_per_prompt × minibatches = 3"),
        ("steps: 1", "advantage: rloo", "rloo compares samples of one prompt; set samples_per_prompt: 2 or more"),
        ("{init: sft}", "none", "need values, but critic is 'none'"),
        (
            "steps: 1",
            "objective: [ppo_clip, value_clip, pretrain_mix]",
            "spec.yaml:12:39: pretrain_mix needs pretraining text, and data 'jsonl' has none; add `pretraining`",
        ),
        ("steps: 1", "kl: step_kl_doubling", "spec.yaml:12:5: the β of step_kl_doubling weighs the KL of the update"),
        ("steps: 1", "objective: [ppo_clip, kl_loss]", "set kl_placement: loss, or both if that is meant"),
        ("steps: 1", "kl: {name: adaptive, beta: 0}", "spec.yaml:12:26: rl.kl.beta must be > 0, not 0"),
        ("steps: 1", "seed: -1", "spec.yaml:12:5: rl.seed must be ≥ 0 or 'run', not -1"),
        ("steps: 1", "adam_betas: [0.9, 1]", "spec.yaml:12:23: rl.adam_betas[1] must be < 1, not 1"),
        ("steps: 1", "advantage: grpo", "grpo compares samples of one prompt; set samples_per_prompt: 2 or more"),
        ("{train: prompts.jsonl, validation: prompts.jsonl}", "5", "data.prompts must be a mapping, not 5"),
    ],
)
def test_a_wrong_spec(spec, old, new, message):
    assert old in FILES
    spec.write_text(FILES.replace(old, new))
    said = refused(spec)
    assert message in said and said.count("\n") == 0


def test_a_spec_that_is_no_spec(tmp_path):
    path = tmp_path / "spec.yaml"
    for text, message in [
        ("", "spec.yaml: the file is empty; a spec is a mapping of keys"),
        ("- 1\n", "spec.yaml:1:1: a spec is a mapping of keys ('key: value'), not a list"),
        (
            "experiment: a\nexperiment: b\n",
            "spec.yaml:2:1: the key 'experiment' is already given in line 1; keep one of the two",
        ),
        ("experiment: !!python/object:os.system a\n", "spec.yaml:1:13: the tag '!!python/object:os.system' is not allowed"),
    ]:
        path.write_text(text)
        assert refused(path).startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts", None, "cannot read the data file {path}: No such file or directory"),
        ("prompts", b"", "the data file {path} is empty"),
        ("prompts", b"\n \n", "the data file {path} is empty"),
        ("demonstrations", b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', "{path}:2: not a line of JSON in UTF-8"),
        (
            "demonstrations",
            b'{"prompt": "a", "completion": "b"}\n\n{"prompt": "a"}\n',
            "{path}:3: field 'completion' is missing",
        ),
        (
            "demonstrations",
            b'{"prompt": "a", "completion": 3}\n',
            "{path}:1: field 'completion' must be a string, not a number",
        ),
        ("demonstrations", b'["a", "b"]\n', "{path}:1: a line must hold one JSON object, not a list"),
        ("prompts", b'{"prompt": "\xff"}\n', "{path}:1: not a line of JSON in UTF-8"),
        (
            "rankings",
            b'{"prompt": "a", "completions": ["b"], "ratings": [1]}\n',
            "{path}:1: a ranking needs at least 2 completions",
        ),
        ("rankings", b'{"prompt": "a", "completions": ["b", "c"], "ratings": [1, 1]}\n', "{path}:1: all 2 ratings are equal"),
        ("rankings", b'{"prompt": "a", "completions": ["b", "c"], "ratings": [1]}\n', "{path}:1: 2 completions but 1 ratings"),
        (
            "rankings",
            b'{"prompt": "a", "completions": ["b", "c"], "ratings": [1, NaN]}\n',
            "{path}:1: each of 'ratings' must be",
        ),
    ],
)
def test_a_wrong_data_file(spec, name, content, message):
    path = spec.parent / f"{name}.jsonl"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    before = contents(spec.parent)
    said = refused(spec, code=1)
    assert said.startswith(message.format(path=path)) and said.count("\n") == 0
    assert contents(spec.parent) == before


def test_a_model_folder_that_is_not_there(spec):
    assert refused(spec, "model.folder=modle", code=1).startswith(f"there is no model folder {spec.parent / 'modle'}")


# Found by a run: its stage does not count, what others made is left as it was


def test_prompts_that_do_not_fit_the_context(spec):
    long = " ".join(["w1"] * 31)
    (spec.parent / "prompts.jsonl").write_text(json.dumps({"prompt": long}) + "\n")
    status, error, done = computed(spec)
    assert status == "failed" and done == {"sft", "reward_model"}
    assert error.startswith("a prompt of 31 tokens and a response of 4 exceed the model's context of 32 tokens")


def test_a_demonstration_that_does_not_fit_the_context(spec):
    record = {"prompt": "w1", "completion": " ".join(["w1"] * 40)}
    (spec.parent / "demonstrations.jsonl").write_text(json.dumps(record) + "\n")
    status, error, done = computed(spec)
    assert (status, done) == ("failed", set())
    assert error.startswith("a prompt of 1 tokens and a response of 41 exceed the model's context of 32 tokens")


def test_a_tokenizer_without_padding_works(spec):
    tiny_world.tokenizer(pad=None).save_pretrained(spec.parent / "model")
    assert computed(spec) == ("done", None, {"sft", "reward_model", "rl"})


def test_a_tokenizer_without_eos(spec):
    tokenizer = tiny_world.tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(spec.parent / "model")
    status, error, done = computed(spec)
    assert (status, done) == ("failed", set())
    assert "has no EOS token" in error and "tokenizer.eos_token" in error


def test_a_checkpoint_of_another_architecture(spec):
    tiny_world.causal_lm("gpt2").save_pretrained(spec.parent / "other")
    (spec.parent / "model" / "model.safetensors").write_bytes((spec.parent / "other" / "model.safetensors").read_bytes())
    status, error, done = computed(spec)
    assert (status, done) == ("failed", set())
    assert error.startswith(f"the weights in {spec.parent / 'model'} do not fit the architecture of its config")


def test_a_checkpoint_of_another_width(spec):
    tiny_world.causal_lm(width=32).save_pretrained(spec.parent / "other")
    (spec.parent / "model" / "model.safetensors").write_bytes((spec.parent / "other" / "model.safetensors").read_bytes())
    status, error, done = computed(spec)
    assert (status, done) == ("failed", set()) and str(spec.parent / "model") in error


def test_weights_that_are_none(spec):
    (spec.parent / "model" / "model.safetensors").write_bytes(b"no weights")
    status, error, done = computed(spec)
    assert (status, done) == ("failed", set()) and "holds no causal language model that can be loaded" in error


@pytest.mark.parametrize(
    ("reward", "error"),
    [
        ("nan", "reward 'nan' returned nan for the response "),
        ("one_too_many", "reward 'one_too_many' returned scores of shape (3,) for 2 responses"),
    ],
)
def test_a_reward_that_cannot_be_used(spec, reward, error):
    plugins = [PLUGINS / "troubles.py"]
    status, said, done = computed(spec, f"rl.reward={reward}", plugins=plugins)
    assert status == "failed" and said.startswith(error) and done == {"sft", "reward_model"}


def test_what_was_finished_is_left_untouched_by_a_later_failure(spec):
    computed(spec)
    results = spec.parent / "results"
    before = contents(results)
    status, _, _ = computed(spec, "rl.reward=nan", plugins=[PLUGINS / "troubles.py"])
    assert status == "failed"
    after = contents(results)
    changed = {path for path in before if after[path] != before[path]}
    assert changed <= {results / "plan.json"}


def test_data_that_lacks_a_part_that_a_stage_reads(spec):
    spec.write_text("\n".join(line for line in FILES.splitlines() if "rankings" not in line) + "\n")
    status, error, done = computed(spec)
    assert (status, done) == ("failed", {"sft"})
    assert error.startswith("the data has no rankings: add `rankings: {train: FILE}`")


def test_the_exit_code_of_a_sweep_with_a_bad_run_is_1(tmp_path):
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    result = lab("run", path, "--out", tmp_path / "out", "rl.response_length=500")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if " failed: " in line]
    assert "exceed the model's context of 128 tokens" in line
