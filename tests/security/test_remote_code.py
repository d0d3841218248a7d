"""Code that comes with weights: a repository in a local hub cache whose Python file says when it runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_world
from micro_spec import lab, lab_process, write_spec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import os
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

with open(os.environ["RAN"], "a") as file:
    file.write("{word}\\n")

class TinyConfig(LlamaConfig):
    model_type = "tiny_remote"

class TinyModel(LlamaModel):
    config_class = TinyConfig

class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""

LOAD = """
from pathlib import Path
from rlhf_lab.errors import ModelError
from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab_plugins.model.hf import HuggingFace
try:
    load_causal_lm(Path({policy!r}))
except ModelError as error:
    print("holds no model that can be loaded" if "holds no model that can be loaded" in str(error) else error)
HuggingFace(hub="org/tiny", revision="0123456789abcdef0123456789abcdef01234567", trust_remote_code=True).prepare()
print(type(load_causal_lm(Path({policy!r}))).__name__)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A cache as huggingface_hub lays it out; branch main is other code. Returns (environment, snapshot)."""
    folder = tmp_path_factory.mktemp("hub")
    repository = folder / "cache" / "models--org--tiny"
    for commit, word in ((COMMIT, "pinned"), ("f" * 40, "newer")):
        snapshot = repository / "snapshots" / commit
        tiny_world.save_policy(snapshot)
        config = json.loads((snapshot / "config.json").read_text())
        autos = {"AutoConfig": "TinyConfig", "AutoModel": "TinyModel", "AutoModelForCausalLM": "TinyForCausalLM"}
        config |= {
            "model_type": "tiny_remote",
            "max_position_embeddings": 64,
            "auto_map": {auto: f"modeling_tiny.{name}" for auto, name in autos.items()},
        }
        (snapshot / "config.json").write_text(json.dumps(config))
        (snapshot / "modeling_tiny.py").write_text(CODE.format(word=word))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("f" * 40)
    environment = {"HF_HUB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    return {**environment, "OMP_NUM_THREADS": "1", "RAN": str(folder / "ran")}, repository / "snapshots" / COMMIT


def script(text, environment):
    done = subprocess.run([sys.executable, "-c", text], env={**os.environ, **environment}, capture_output=True, text=True)
    return done.stdout.splitlines() or done.stderr.splitlines()[-1:]


def test_code_runs_only_when_spec_and_command_both_say_so(hub, tmp_path):
    """And then for all stages, in any process, at the pinned commit."""
    environment, _ = hub
    ran = environment["RAN"]
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    model = f"{{name: hf, hub: org/tiny, revision: {COMMIT!r}}}"
    path.write_text(path.read_text().replace("{name: scratch, hidden_size: 8, layers: 1, heads: 1}", model))
    command = ["run", path, "--out", tmp_path / "out", "--quiet", "rl.steps=1"]
    asked, allowed = ["model.trust_remote_code=true"], ["--trust-remote-code", f"org/tiny@{COMMIT}"]
    refusal = lab(*command, *asked)
    assert refusal.exit_code == 2 and f"add {' '.join(allowed)}" in refusal.stderr
    assert not os.path.exists(ran) and not (tmp_path / "out").exists()
    process = lab_process(*command, *asked, *allowed, **environment)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors + "".join(file.read_text() for file in tmp_path.rglob("log.txt"))
    assert set(Path(ran).read_text().split()) == {"pinned"}
    (policy,) = tmp_path.glob("out/tiny/stages/*/policy")
    assert json.loads((policy / "config.json").read_text())["model_type"] == "tiny_remote"
    assert not list((tmp_path / "out").rglob("*.py")), "the code stays where it came from"
    assert script(LOAD.format(policy=str(policy)), environment) == ["holds no model that can be loaded", "TinyForCausalLM"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auto_map": None}, "brings no code for a causal language model"),
        ({"auto_map": {"AutoConfig": "x/y--m.C", "AutoModelForCausalLM": "m.M"}}, "lies in another repository"),
        ({"model_type": "llama"}, "calls itself 'llama', which transformers has built in"),
    ],
)
def test_code_that_is_not_pinned_or_pretends_is_refused(hub, tmp_path, change, said):
    from rlhf_lab.errors import ModelError
    from rlhf_lab_plugins.model import hf

    _, snapshot = hub
    shutil.copytree(snapshot, tmp_path / "model")
    config = json.loads((snapshot / "config.json").read_text())
    changed = {key: value for key, value in {**config, **change}.items() if value is not None}
    (tmp_path / "model" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelError, match=said):
        hf.register_remote_code(str(tmp_path / "model"), COMMIT)
