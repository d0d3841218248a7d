"""Faults 14 to 18: hostile specs, sweeps, labels and plugins. Each is refused in one message, or taken as data."""

import json

import pytest
from micro_spec import SPEC, lab, plan_of, refused, write_spec

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
STEPS = "    steps: 3\n"
assert STEPS in SPEC


def with_steps(value):
    return SPEC.replace("steps: 3", f"steps: {value}")


# Fault 16: what a file may hold

REFUSED = {
    "typo": (
        SPEC.replace("inner_epochs", "iner_epochs"),
        "spec.yaml:14:5: unknown key 'iner_epochs' in rl (did you mean 'inner_epochs'?)",
    ),
    "typo at the top": (SPEC.replace("seeds:", "seed:"), "spec.yaml:19:1: unknown key 'seed' (did you mean 'seeds'?)"),
    "typo in a name": (
        with_steps("3").replace("name: fixed", "name: fixt"),
        "spec.yaml:11:5: unknown kl_controller 'fixt' (did you mean 'fixed'?)",
    ),
    "duplicate key": (
        SPEC.replace(STEPS, STEPS + STEPS),
        "spec.yaml:13:5: the key 'steps' is already given in line 12; keep one of the two",
    ),
    "no is text": (with_steps("no"), "spec.yaml:12:5: rl.steps must be a whole number, not 'no'"),
    "yes is no number": (with_steps("yes"), "spec.yaml:12:5: rl.steps must be a whole number, not 'yes'"),
    "true is no number": (with_steps("true"), "spec.yaml:12:5: rl.steps must be a whole number, not true"),
    "a number in quotes": (with_steps("'3'"), "spec.yaml:12:5: rl.steps must be a whole number, not '3'"),
    "null": (with_steps("null"), "spec.yaml:12:5: rl.steps must be a whole number, not null"),
    "a fraction": (with_steps("1e-5"), "spec.yaml:12:5: rl.steps must be a whole number, not 1e-05"),
    "infinite": (with_steps(".inf"), "spec.yaml:12:5: rl.steps must be a finite number, not inf"),
    "a number of a mile": (with_steps("9" * 2000), "spec.yaml:12:12: this number has more than 1000 digits"),
    "tab": (SPEC.replace("    steps", "\tsteps"), "spec.yaml:12:1: a tab cannot be used for indentation; use spaces"),
    "empty": ("", "spec.yaml: the file is empty; a spec is a mapping of keys"),
    "only a comment": ("# nothing\n", "spec.yaml: the file is empty; a spec is a mapping of keys"),
    "a list": ("- experiment: x\n", "spec.yaml:1:1: a spec is a mapping of keys ('key: value'), not a list"),
    "two documents": (
        SPEC + "---\n" + SPEC,
        "spec.yaml:21:1: a second document starts here; a spec is one document, so remove '---'",
    ),
    "5 MB": (
        SPEC + "# " + "x" * 5_000_000 + "\n",
        "spec.yaml: the file is larger than 1 MB; keep data in files that the spec names",
    ),
    "5000 deep": (
        "experiment: " + "[" * 5000 + "]" * 5000 + "\n",
        "spec.yaml:1:63: more than 50 levels deep; is a bracket too many here?",
    ),
    "5000 mappings deep": ("".join(f"{' ' * n}a:\n" for n in range(1000)), "spec.yaml:52:52: more than 50 levels deep"),
    "alias bomb": (ALIASES, "spec.yaml:5:"),
    "an alias of itself": (
        "a: &a [*a]\n",
        "spec.yaml:1:8: '*a' stands inside its own anchor and so refers to itself; write the value out",
    ),
    "merge key": (SPEC + "x: {<<: {}}\n", "spec.yaml:21:5: merge keys ('<<') are not part of YAML 1.2; write the keys out"),
    "an object": (
        with_steps("!!python/object/apply:os.system [ls]"),
        "spec.yaml:12:12: the tag '!!python/object/apply:os.system' is not allowed",
    ),
    "a dotted path": (SPEC.replace("name: fixed", "_target_: os.system"), "spec.yaml:11:10: unknown key '_target_' in rl.kl"),
    "wrong type": (
        SPEC.replace("kl: {name: fixed, beta: 0.2}", "kl: [1, 2]").replace("rl.kl.beta: [0.1, 1]", "rl.steps: [1]"),
        "spec.yaml:11:5: kl_controller must be a name, or a mapping",
    ),
    "base is a list": ("experiment: x\nbase: [1]\n", "spec.yaml:2:1: base must be a mapping, not a list"),
    "unknown plugin": (
        SPEC.replace("reward: length", "reward: lenght"),
        "spec.yaml:7:5: unknown reward 'lenght' (did you mean 'length'?)",
    ),
    "unknown data": (
        SPEC.replace("name: micro", "name: http://example.com"),
        "spec.yaml:3:3: unknown data 'http://example.com'",
    ),
    "a control character": (
        SPEC.replace("tiny", "ti\x07ny"),
        "spec.yaml:1:15: there is a control character (U+0007) here; remove it",
    ),
    "NUL": (SPEC.replace("tiny", "ti\0ny"), "spec.yaml:1:15: there is a control character (U+0000) here; remove it"),
    "not UTF-8": (SPEC.encode() + b"\xff\xfe", "spec.yaml:21: byte 0xff is not UTF-8; save the file as UTF-8"),
    "UTF-16": (SPEC.encode("utf-16"), "spec.yaml:1: byte 0xff is not UTF-8; save the file as UTF-8"),
    "a way out": (
        SPEC.replace("experiment: tiny", "experiment: ../../etc"),
        "spec.yaml:1:1: experiment must match the pattern",
    ),
    "a device": (
        SPEC.replace("experiment: tiny", "experiment: nul.txt"),
        "spec.yaml:1:1: experiment names a folder, and 'nul.txt' is no name",
    ),
    "a circle": (SPEC.replace("sft: {", "sft: {init: sft, "), "spec.yaml:5:9: stages read each other in a circle: sft → sft"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_spec_that_is_refused(tmp_path, case):
    text, message = REFUSED[case]
    path = tmp_path / "spec.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refused(path)
    assert said.startswith(message), said
    assert "\n" not in said and len(said) < 500
    assert all(char.isprintable() for char in said)


ACCEPTED = {
    "as it is": SPEC.encode(),
    "BOM": b"\xef\xbb\xbf" + SPEC.encode(),
    "CRLF": SPEC.replace("\n", "\r\n").encode(),
    "old Macintosh": SPEC.replace("\n", "\r").encode(),
    "no newline at the end": SPEC.rstrip("\n").encode(),
    "a fraction without remainder": with_steps("3.0").encode(),
    "an exponent": with_steps("0.3e1").encode(),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_spec_that_is_the_same_spec(tmp_path, case):
    path = tmp_path / "spec.yaml"
    path.write_bytes(SPEC.encode())
    expected = plan_of(path)["runs"]
    path.write_bytes(ACCEPTED[case])
    assert plan_of(path)["runs"] == expected


def test_1e_5_is_a_number(tmp_path):
    path = write_spec(tmp_path, SPEC.replace(STEPS, STEPS + "    learning_rate: 1e-5\n"))
    shown = json.loads(lab("config", path, "--json").stdout)
    assert {run["rl"]["learning_rate"] for run in shown.values()} == {0.00001}


# Fault 17: sweeps

SWEEPS = {
    "no values": ("axes: {rl.steps: []}", "axis 'rl.steps' has no values, so there is nothing to run"),
    "no arms": ("arms: {}", "arms must have at least 1 item, not 0"),
    "no seeds": ("seeds: []", "seeds must have at least 1 item, not 0"),
    "a seed twice": ("seeds: [0, 0]", "a seed is listed twice"),
    "a million": (
        f"axes: {{rl.steps: {list(range(1, 1001))}, rl.batch_size: {list(range(1, 1001))}}}",
        "the sweep has 2000000 runs, more than max_runs: 10000",
    ),
    "a zip that does not fit": (
        "axes: {zip: {rl.steps: [1, 2], rl.batch_size: [4]}}",
        "the axes of a zip go in step, so they need equally many values: rl.steps has 2, rl.batch_size has 1",
    ),
    "an axis of no stage": (
        "axes: {rll.steps: [1]}",
        "no arm uses axis 'rll.steps': no stage is called 'rll' (did you mean 'rl'?)",
    ),
    "an axis of no parameter": ("axes: {rl.stps: [1]}", "unknown key 'stps' in rl (did you mean 'steps'?)"),
    "an axis that no condition lets in": (
        "axes: {rl.steps: {values: [1], when: {rl.kl: adaptive}}}",
        "no arm uses axis 'rl.steps': its `when` never holds",
    ),
    "the last point is wrong": ("axes: {rl.steps: [1, 2, 3, 0]}", "rl.steps must be ≥ 1, not 0"),
    "a truth value among numbers": ("axes: {rl.steps: [1, true]}", "rl.steps must be a whole number, not true"),
    "a truth value as seed": ("seeds: [true]", "seeds[0] must be a whole number, not true"),
    "a negative seed": ("seeds: [-1]", "seeds[0] must be ≥ 0, not -1"),
    "a seed beyond every table": (f"seeds: [{2**64}]", "seeds[0] must be < 9223372036854775808, not 18446744073709551616"),
    "a truth value as number of workers": ("resources: {workers: true}", "resources.workers must be a whole number, not true"),
}


@pytest.mark.parametrize("case", SWEEPS)
def test_a_sweep_that_is_refused(tmp_path, case):
    block, message = SWEEPS[case]
    said = refused(write_spec(tmp_path, **{block.split(":")[0]: block}))
    place, _, rest = said.partition(": ")
    assert place.startswith("spec.yaml:") and rest.startswith(message) and "\n" not in said


def test_points_that_are_listed_twice_are_one_run_and_counted(tmp_path):
    plan = plan_of(write_spec(tmp_path, axes="axes: {rl.kl.beta: [0.1, 0.1, 1e-1]}"))
    assert (len(plan["runs"]), plan["duplicates"]) == (2, 4)


# Fault 18: labels

LABELS = [
    "../x", "/", "/etc/passwd", "\\", "..", ".", "~", "CON", "a" * 300, "=1+1", "-rf", "@cmd", "+1", "*", "$(ls)", "`ls`",
    "a b", "a\u00e4\u4e2d", "{}", "#", "a:b", "%s", "'", '"', "null", "0", "<script>", "\u05d0\u05d1",
]  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
def test_a_label_is_data_and_names_no_folder(tmp_path, label):
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]", arms=f"arms: {{{json.dumps(label)}: {{}}}}")
    plan = plan_of(path)
    (run,) = plan["runs"]
    assert run["arm"] == label
    assert len(run["run_id"]) == 16 and set(run["run_id"]) <= set("0123456789abcdef")
    assert plan["results"].endswith("/tiny")


@pytest.mark.parametrize("label", ["", "a\0b", "a\x1b[31m", "a\nb", "\u202eabc", "a\u200fb", "\x9b31m", "\u2028", "a\tb"])
def test_a_label_that_would_steer_a_terminal_does_not(tmp_path, label):
    """In the tables it stays what it is; on the screen it cannot act."""
    path = write_spec(tmp_path, arms=f"arms: {{{json.dumps(label)}: {{}}}}")
    assert {run["arm"] for run in plan_of(path)["runs"]} == {label}
    shown = lab("plan", path).stdout + lab("config", path).stdout + lab("config", path, "--json").stdout
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_a_run_with_a_hostile_label_stays_in_its_folder(tmp_path):
    """The worst of them, computed: the folder is the hash, and nothing is written outside of it."""
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]", arms="arms: {../../../x: {}}")
    before = {p for p in tmp_path.parent.rglob("*")}
    result = lab("run", path, "--out", tmp_path / "out", "rl.steps=1", "--quiet")
    assert result.exit_code == 0, result.stderr
    new = {p for p in tmp_path.parent.rglob("*")} - before
    assert new and all(p.is_relative_to(tmp_path / "out") for p in new)


# Fault 14: plugins

PLUGIN = """
from rlhf_lab import Component, hookimpl

class Mine(Component):
    "Mine."
    kind, name = "kl_controller", "mine"

    def start(self):
        return {"beta": 0.0}

    def update(self, state, kl, n_sequences):
        return dict(state)

@hookimpl
def register_components(register):
    register(Mine)
"""
BROKEN = {
    "it cannot be imported": ("import no_such_library\n" + PLUGIN, "ModuleNotFoundError: No module named 'no_such_library'"),
    "it is no Python": (PLUGIN + "def (:\n", "SyntaxError: invalid syntax"),
    "its hook raises": (PLUGIN.replace("register(Mine)\n", "1 / 0\n"), "ZeroDivisionError: division by zero"),
    "it leaves": ("raise SystemExit(0)\n" + PLUGIN, "SystemExit: 0"),
    "its method has other arguments": (
        PLUGIN.replace("state, kl, n_sequences", "state"),
        "PluginError: Mine.update() must take 3 arguments besides self",
    ),
    "it needs a later rlhf-lab": (
        "requires_api = 99\n" + PLUGIN,
        "PluginError: needs version 99 of the plugin API, this rlhf-lab has 1; upgrade rlhf-lab",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_fails_only_the_spec_that_uses_it_and_has_a_place(tmp_path, case):
    source, reason = BROKEN[case]
    plugin = tmp_path / "mine.py"
    plugin.write_text(source)
    path = write_spec(tmp_path, SPEC.replace("{name: fixed, beta: 0.2}", "mine"), axes="axes: {}")
    said = refused(path, "--plugin", plugin, code=3)
    unknown = "unknown kl_controller 'mine', and these plugins could not be loaded: "
    assert said.startswith(f"spec.yaml:11:5: {unknown}{plugin}: {reason}") and "\n" not in said
    said = refused(write_spec(tmp_path), "--plugin", plugin, "rl.kl=mine", code=3)
    assert said.startswith(f"override rl.kl=mine: {unknown}")
    assert lab("plan", write_spec(tmp_path), "--plugin", plugin).exit_code == 0
    assert reason in lab("plugins", "list", "--plugin", plugin).stderr
