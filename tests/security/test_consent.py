"""What a spec gets only if the command line says so: hosts, files outside its folder, code that comes with weights."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from hostile_server import serving
from micro_spec import PLUGINS, lab, lab_process, refused, write_spec

from rlhf_lab.contracts import Component
from rlhf_lab.declaration.consent import CODE, HOST, PATH, checked, from_environment, is_given, outside, typed_paths
from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.errors import SpecError
from rlhf_lab.registry import discover
from rlhf_lab.running.plan import plan_sweep
from rlhf_lab.running.pool import WORKER
from rlhf_lab.running.runner import prepare
from rlhf_lab.worker import execute

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# Hosts


def test_no_host_is_asked_unless_it_is_allowed(tmp_path, monkeypatch):
    with serving() as server:
        path = write_spec(tmp_path)
        path.write_text(path.read_text().replace("reward: length", f"reward: {{name: http, url: '{server.url}'}}"))
        said = f"reward 'http' wants to send prompts and responses to {server.host}; if you want that, add --allow-host "
        assert refused(path).startswith(said)
        assert refused(path, "--allow-host", "example.org").startswith(said)
        assert refused(path, "--allow-host", "127.0.0.1").startswith(said), "another port is another server"
        assert lab("plan", path, "--allow-host", server.host).exit_code == 0
        monkeypatch.setenv("RLHF_LAB_ALLOW_HOSTS", f"example.org, {server.host}")
        assert lab("plan", path).exit_code == 0
    assert server.asked == []


def test_it_is_asked_for_however_deep_it_stands(tmp_path):
    path = write_spec(tmp_path)
    inner = "{name: clipped, low: 0, high: 1, source: {name: http, url: 'https://a.example.org/x'}}"
    path.write_text(path.read_text().replace("reward: length", f"reward: length\n    gold: {inner}"))
    assert "--allow-host a.example.org" in refused(path)


def test_a_worker_asks_too(tmp_path):
    """It refuses by itself where its record grants nothing, whoever started it."""
    path = write_spec(tmp_path, seeds="seeds: [0]", axes="axes: {}")
    path.write_text(path.read_text().replace("reward: length", "reward: {name: http, url: 'https://a.example.org/x'}"))
    registry = discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})
    sweep = load_sweep(path, [], registry)
    plan = plan_sweep(sweep, registry)
    prepare(sweep, plan, tmp_path / "out", [])
    run_dir = tmp_path / "out" / "runs" / plan.runs[0].run_id
    assert json.loads((run_dir / "run.json").read_text())["consent"] == []
    assert execute(run_dir) == "failed" and not (tmp_path / "out" / "stages").exists()
    assert "--allow-host a.example.org" in json.loads((run_dir / "status.json").read_text())["error"]
    allowed = replace(sweep, consent=frozenset([(HOST, "a.example.org")]))
    prepare(allowed, plan, tmp_path / "out", [])
    assert json.loads((run_dir / "run.json").read_text())["consent"] == [[HOST, "a.example.org"]]


# Paths


def test_outside_is_where_a_path_leads_once_links_are_followed(tmp_path):
    spec, other = tmp_path / "spec", tmp_path / "other"
    for folder in (spec / "data", other):
        folder.mkdir(parents=True)
    (spec / "link").symlink_to(other)
    (spec / "inner").symlink_to(spec / "data")
    for name in ("data/a", "./data/../a", "inner/a", None, str(spec / "data"), "not there", "."):
        assert outside(spec, name) == [], name
    for name, place in (
        ("../other/a", other / "a"),
        ("link/a", other / "a"),
        (str(other), other),
        ("..", tmp_path),
        ("/", "/"),
    ):
        assert outside(spec, name) == [(PATH, str(place))], name
    assert outside(spec, str(tmp_path / "spec2")) == [(PATH, str(tmp_path / "spec2"))], "a neighbour with a longer name"
    with pytest.raises(SpecError, match="is no path"):
        outside(spec, "a\0b")


def test_a_folder_is_allowed_with_all_that_is_in_it():
    consent = frozenset([(PATH, "/data")])
    assert is_given((PATH, "/data/a/b"), consent) and is_given((PATH, "/data"), consent)
    assert not is_given((PATH, "/database"), consent) and not is_given((HOST, "/data"), consent)


def data_spec(folder, files):
    path = write_spec(folder)
    text = path.read_text().replace("data: {name: micro, sentences: 64, pretraining_sentences: 8}", f"data: {files}")
    path.write_text(text.replace("layers: 1, heads: 1}", "layers: 1, heads: 1, tokenizer: tokenizer}"))
    return path


def test_a_spec_reads_no_file_outside_its_folder(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (tmp_path / "spec").mkdir()
    home.mkdir()
    secret = home / "secret.jsonl"
    secret.write_text(json.dumps({"prompt": "the password is hunter2", "completion": ""}) + "\n")
    (tmp_path / "spec" / "link.jsonl").symlink_to(secret)
    for name in ("../home/secret.jsonl", str(secret), "link.jsonl"):
        path = data_spec(tmp_path / "spec", f"{{name: jsonl, prompts: {{train: {name}}}}}")
        message = refused(path)
        assert message.startswith(
            f"data 'jsonl' wants to read {secret}, which lies outside the folder of the spec; if you want that"
        )
        assert message.endswith(f"add --allow-path {secret} to the command") and "hunter2" not in message
    # allowed, it gets as far as the tokenizer that is not there
    assert "tokenizer" in refused(path, "--allow-path", home, code=1)
    assert "tokenizer" in refused(path, f"data.prompts.train={secret}", code=1), "what a person types, that person allows"
    monkeypatch.setenv("RLHF_LAB_ALLOW_PATHS", os.pathsep.join(["/nowhere", str(home)]))
    assert "tokenizer" in refused(path, code=1)


@pytest.mark.parametrize(
    "registration", discover([], {"RLHF_LAB_LOAD_PLUGINS": ""}).registrations(), ids=lambda r: f"{r.kind}.{r.name}"
)
def test_whatever_reads_a_file_asks_for_it(registration, tmp_path):
    """Each parameter of a built-in component whose description speaks of a file or folder, set to one elsewhere."""
    component = registration.component
    if not isinstance(component, type):
        return
    for name, field in component.model_fields.items():
        text = (field.description or "").lower()
        if str in (field.annotation, *getattr(field.annotation, "__args__", ())) and "relative to the spec" in text:
            made = component.model_construct(**{**{f: None for f in component.model_fields}, name: "/elsewhere"})
            assert (PATH, "/elsewhere") in component.asks(made, tmp_path), f"{component.name}.{name}"
    if hasattr(component, "fingerprint") and issubclass(component, Component) and registration.kind in ("data", "model"):
        reads = any("relative to the spec" in (f.description or "") for f in component.model_fields.values())
        assert hasattr(component, "asks") or not reads


def test_typed_values_are_searched_for_paths(tmp_path):
    typed = typed_paths([{"name": "hf", "folder": "/models/a"}, ["../x"], 3, None, "plain", ""], tmp_path / "spec")
    assert typed == {(PATH, "/models/a"), (PATH, str(tmp_path / "x"))}


# Code


@pytest.mark.parametrize(
    "value", ["org/model", "org/model@main", f"org/model@{COMMIT[:8]}", f"@{COMMIT}", f"org/model@{COMMIT.upper()}", ""]
)
def test_code_is_allowed_for_one_commit_only(value):
    with pytest.raises(SpecError, match="all 40 digits"):
        checked(CODE, [value])
    assert checked(CODE, [f"org/model@{COMMIT}"]) == [(CODE, f"org/model@{COMMIT}")]


def test_no_variable_allows_code(monkeypatch):
    environ = {"RLHF_LAB_ALLOW_HOSTS": "a, b:1,", "RLHF_LAB_ALLOW_PATHS": "/x", "RLHF_LAB_TRUST_REMOTE_CODE": f"o/m@{COMMIT}"}
    assert from_environment(environ) == {(HOST, "a"), (HOST, "b:1"), (PATH, "/x")}


def test_a_spec_alone_runs_no_code_of_a_model(tmp_path):
    path = write_spec(tmp_path)
    spec = path.read_text()
    path.write_text(
        spec.replace(
            "{name: scratch, hidden_size: 8, layers: 1, heads: 1}",
            f"{{name: hf, hub: org/model, revision: {COMMIT!r}, trust_remote_code: true}}",
        )
    )
    said = f"model 'hf' wants to run the Python code that comes with org/model@{COMMIT}; if you want that, add --trust-"
    assert refused(path).startswith(said)
    assert refused(path, "--trust-remote-code", f"org/other@{COMMIT}").startswith(said)
    assert "takes NAME@COMMIT" in refused(path, "--trust-remote-code", "org/model")
    path.write_text(
        spec.replace(
            "{name: scratch, hidden_size: 8, layers: 1, heads: 1}", "{name: hf, hub: org/model, trust_remote_code: true}"
        )
    )
    assert "`trust_remote_code` goes with `hub` and a `revision` of 40 digits" in refused(path)


# Plugin files


def test_no_plugin_is_found_in_the_working_directory(tmp_path, monkeypatch):
    """Neither a plugin file nor a module that shadows one of ours or a library's."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PLUGINS / "velocity_pid.py", tmp_path / "velocity_pid.py")
    for name in ("rlhf_lab_plugins", "rlhf_lab", "transformers", "sitecustomize", "rlhf_lab_evil"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    assert "velocity_pid" not in lab("plugins", "list").stdout
    assert refused(path, "rl.kl=velocity_pid").startswith("override rl.kl=velocity_pid: unknown kl_controller 'velocity_pid'")
    process = lab_process("plan", path, PYTHONSAFEPATH="1")
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert not (tmp_path / "ran").exists() and "-P" in WORKER, "nor do workers look there"


def test_without_plugins_only_our_own_are_there(monkeypatch):
    monkeypatch.setenv("RLHF_LAB_LOAD_PLUGINS", "")
    rows = json.loads(lab("plugins", "list", "--json").stdout)["components"]
    assert len(rows) > 50 and {row["from"].split()[0] for row in rows} == {"rlhf-lab"}


def test_a_plugin_file_is_recorded_with_its_content(tmp_path):
    registry = discover([PLUGINS / "velocity_pid.py"])
    (found,) = [r for r in registry.registrations() if r.name == "velocity_pid"]
    changed = tmp_path / "velocity_pid.py"
    changed.write_text((PLUGINS / "velocity_pid.py").read_text() + "\n# another\n")
    (other,) = [r for r in discover([changed]).registrations() if r.name == "velocity_pid"]
    assert found.version.startswith("local+") and found.version != other.version and found.source_hash() != other.source_hash()
