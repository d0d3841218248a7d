"""RELIABILITY's list of surfaces, those that no other file here is about: spec files, checkpoints, archives, names."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from micro_spec import lab, refused, write_spec
from safetensors.torch import load_file

import rlhf_lab

ROOT = Path(rlhf_lab.__file__).parents[1]
OURS = [path for folder in ("rlhf_lab", "plugins", "analysis", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]
CALLS = [
    (path, node)
    for path in OURS
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call)
]


def called(node):
    return ast.unparse(node.func)


def keywords(node):
    return {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


# Spec files


@pytest.mark.parametrize(
    "reward",
    [
        "{_target_: os.system, command: id}",
        "{name: os.system}",
        "os.system",
        "{name: 'rlhf_lab.store.files:write_atomically'}",
        "!!python/object/apply:os.system [touch ran]",
        "!!python/name:os.system",
        "!include /etc/passwd",
        "${oc.env:HOME}",
        "{name: length, __class__: x}",
        "{name: length, model_config: {extra: allow}}",
    ],
)
def test_a_spec_names_registered_components_and_nothing_else(tmp_path, monkeypatch, reward):
    monkeypatch.chdir(tmp_path)
    path = write_spec(tmp_path)
    path.write_text(path.read_text().replace("reward: length", f"reward: {reward}"))
    said = refused(path)
    assert re.match(r"\S*spec\.yaml:\d+:\d+: ", said), said
    assert not (tmp_path / "ran").exists() and "root:" not in said


def test_the_environment_is_not_read_into_a_spec(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    path = write_spec(tmp_path, description='description: "${SECRET} $SECRET {{ SECRET }} %(SECRET)s"')
    assert "hunter2" not in lab("config", path).stdout and lab("config", path).exit_code == 0


def test_an_alias_bomb_and_a_deep_file_are_refused_at_once(tmp_path):
    bomb = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n" for p, c in zip("abcdefghi", "bcdefghij", strict=True)
    )
    for text in (bomb, "base: " + "[" * 5000, "base: " + "{a: " * 5000):
        path = tmp_path / "spec.yaml"
        path.write_text(f"experiment: bomb\n{text}")
        assert len(refused(path)) < 400


# Checkpoints


def test_only_numbers_and_json_are_written(finished):
    names = [re.sub(r"\.lease\.\d+$", ".lease", path.name) for path in finished.rglob("*") if path.is_file()]
    kinds = {Path(name).suffix for name in names}
    assert kinds <= {".safetensors", ".json", ".jsonl", ".parquet", ".yaml", ".txt", "", ".jinja", ".lease"}, kinds
    for path in finished.rglob("*"):
        if path.is_file():
            start = path.read_bytes()[:4]
            assert start[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and start != b"PK\x03\x04", path
    weights = list(finished.rglob("*.safetensors"))
    assert len(weights) == 5 and all(load_file(path) for path in weights)


def test_whoever_loads_with_torch_loads_weights_only():
    for path, node in CALLS:
        if called(node) in ("torch.load", "load") and "weights_only" in keywords(node):
            assert keywords(node)["weights_only"] == "True"
        if called(node) == "torch.load":
            assert keywords(node).get("weights_only") == "True", f"{path}:{node.lineno}"


def test_weights_come_as_safetensors_and_no_code_with_them():
    """Every from_pretrained of a model says so; trust_remote_code is never anything but False."""
    loads = [(path, node) for path, node in CALLS if called(node).endswith(".from_pretrained")]
    assert len(loads) >= 5
    for path, node in loads:
        given, owner = keywords(node), called(node).rpartition(".")[0]
        passed_on = None in given  # **settings, which the next test looks at
        said = given.get("trust_remote_code")
        assert said == "False" or (said is None and passed_on), f"{path}:{node.lineno}: unsaid it asks on the terminal"
        if "Tokenizer" not in owner and "Config" not in owner and "gguf_file" not in given:
            assert given.get("use_safetensors") == "True" or passed_on, f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_the_word_trust_is_said_where_it_is_refused_only():
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                said = {
                    k.value: ast.unparse(v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)
                }
                assert said.get("trust_remote_code", "False") == "False", path


def test_archives_are_opened_with_a_filter():
    for path, node in CALLS:
        if called(node).endswith((".extractall", ".extract")):
            assert keywords(node).get("filter") in ("'data'", '"data"'), f"{path}:{node.lineno}"
        assert not called(node).endswith("unpack_archive") or "filter" in keywords(node), f"{path}:{node.lineno}"


def test_nothing_of_ours_listens():
    """No server: no port is opened by any module."""
    for path, node in CALLS:
        name = called(node)
        assert not name.endswith((".listen", ".serve_forever", "create_server", "TCPServer", "HTTPServer")), (
            f"{path}:{node.lineno}"
        )


# Names


@pytest.mark.parametrize(
    "label", ["../x", "/etc/x", "a\\b", "x" * 300, "CON", "\u202edesrever", "=1+1", "-rf", "~", "a\x07b", ".."]
)
def test_a_label_is_data_and_no_path(tmp_path, label):
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]", arms="arms:\n  " + json.dumps(label) + ": {}")
    planned = lab("plan", path, "--json", "--out", tmp_path / "out")
    assert planned.exit_code == 0, planned.stderr
    (run,) = json.loads(planned.stdout)["runs"]
    assert run["arm"] == label and re.fullmatch("[0-9a-f]{16}", run["run_id"])
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", lab("plan", path).stdout)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "", ".", "..", "-rf", "a" * 65, "a\nb", "ä"])
def test_an_experiment_is_named_so_that_a_folder_can_be(tmp_path, name):
    assert "experiment" in refused(write_spec(tmp_path, experiment="experiment: " + json.dumps(name)))


def test_a_stage_is_not_called_like_a_path(tmp_path):
    path = write_spec(tmp_path)
    path.write_text(path.read_text().replace("  rl:\n", "  '../../rl':\n    name: rl\n"))
    planned = lab("plan", path, "--json")
    if planned.exit_code == 0:
        assert all("/" not in hash for run in json.loads(planned.stdout)["runs"] for hash in run["stages"].values())
    else:
        assert planned.exit_code == 2


def test_reports_and_exports_load_no_plugin_of_others(finished, tmp_path):
    """Everything that only reads tables does without the registry, so without anybody's code."""
    reading = [["status"], ["ls"], ["gc"], ["export", "--out", str(tmp_path / "a")], ["plot curves", "--out", str(tmp_path)]]
    script = f"""
import sys
from rlhf_lab.cli import main
for verb, *options in {reading!r}:
    try:
        main([*verb.split(), {str(finished)!r}, *options])
    except SystemExit as end:
        assert end.code == 0, (verb, end.code)
assert not [name for name in sys.modules if name.startswith("rlhf_lab_plugins")], sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
