"""Discovery, on distributions that are really installed: a folder on the path with metadata and entry points."""

import json
import os
import subprocess
import sys

import pytest
from micro_spec import PLUGINS, lab, refused, write_spec

from rlhf_lab import contracts
from rlhf_lab.contracts import KINDS, Component
from rlhf_lab.errors import PluginError
from rlhf_lab.registry import OFFERS, Registry, check_component, discover, load_file

CONTROLLER = """
from rlhf_lab import Component, hookimpl, param

class Mine(Component):
    "A controller of somebody else's."
    kind, name = "kl_controller", {name!r}
    beta: float = param({beta}, "β", ge=0)

    def start(self):
        return {{"beta": self.beta}}

    def update(self, state, kl, n_sequences):
        return dict(state)

@hookimpl
def register_components(register):
    register(Mine)
"""


def controller(name="mine", beta=0.5):
    return CONTROLLER.format(name=name, beta=beta)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install("lab-acme", "acme_lab", source)` puts a distribution with one module on the path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))  # for processes that are started
    monkeypatch.delenv("RLHF_LAB_LOAD_PLUGINS", raising=False)

    def install(distribution, module, source, version="1.2"):
        (site / f"{module}.py").write_text(source)
        metadata = site / f"{module}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[rlhf_lab]\nplugin = {module}\n")

    yield install
    for name in [name for name, module in sys.modules.items() if str(site) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def owners(registry, kind="kl_controller"):
    return {r.name: (r.distribution, r.version) for r in registry.registrations() if r.kind == kind}


def test_built_ins_enter_by_the_entry_point_and_none_is_broken():
    registry = discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})
    assert registry.broken == []
    assert {"fixed", "adaptive"} <= set(registry.names("kl_controller"))
    assert {r.distribution for r in registry.registrations()} == {"rlhf-lab"}
    kinds = [r.kind for r in registry.registrations()]
    assert kinds == sorted(kinds, key=list(KINDS).index)
    for kind in set(kinds):
        names = [r.name for r in registry.registrations() if r.kind == kind]
        assert names == sorted(names)


def test_every_kind_that_is_a_component_has_a_protocol_to_check():
    assert set(OFFERS) == set(KINDS) - {"preset"}


def test_a_distribution_is_found(install):
    install("lab-acme", "acme_found", controller())
    assert owners(discover())["mine"] == ("lab-acme", "1.2")


def test_the_order_is_that_of_the_names_not_of_installation(install):
    install("b-lab", "b_ordered", controller("same"))
    install("a-lab", "a_ordered", controller("same"))
    assert [r.distribution for r in discover().found["kl_controller", "same"]] == ["a-lab", "b-lab"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", set()),
        ("lab-one", {"one"}),
        ("lab-one,lab-two", {"one", "two"}),
        (" lab_one , LAB.TWO ", {"one", "two"}),
        ("one", set()),
        (None, {"one", "two", "three"}),
    ],
)
def test_which_distributions_are_loaded(install, value, expected):
    for name in ("one", "two", "three"):
        install(f"lab-{name}", f"allowed_{name}", controller(name))
    registry = discover([], {} if value is None else {"RLHF_LAB_LOAD_PLUGINS": value})
    assert {"one", "two", "three"} & set(registry.names("kl_controller")) == expected
    assert "fixed" in registry.names("kl_controller")


BROKEN = {
    "import_error": ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
    "leaves": ("import sys\nsys.exit('bye')\n", "SystemExit: bye"),
    "misspelt_hook": (
        controller().replace("def register_components", "def register_component"),
        "unknown hook 'register_component'",
    ),
    "wrong_argument": (
        controller().replace("register_components(register)", "register_components(add)"),
        "Argument(s) {'add'}",
    ),
    "no_hook": (controller().replace("@hookimpl\n", ""), "registers nothing"),
    "hook_raises": (
        controller().replace("    register(Mine)", "    raise RuntimeError('not\\ntoday')"),
        "RuntimeError: not today",
    ),
    "too_few_arguments": (
        controller().replace("kl, n_sequences", "kl"),
        "PluginError: Mine.update() must take 3 arguments besides self",
    ),
    "no_method": (
        controller().replace("def start", "def begin"),
        "PluginError: Mine lacks the method start() of a kl_controller",
    ),
    "unknown_kind": (
        controller().replace('"kl_controller", ', '"kl_controler", '),
        "PluginError: Mine: unknown kind 'kl_controler' (did you mean 'kl_controller'?)",
    ),
    "no_name": (
        controller().replace("kind, name = \"kl_controller\", 'mine'", 'kind = "kl_controller"'),
        "PluginError: Mine lacks the class attribute 'name'",
    ),
    "no_component": (controller().replace("(Component)", ""), "PluginError: register() takes a Component class or a Preset"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_listed_with_its_reason_and_the_rest_works(install, case):
    source, reason = BROKEN[case]
    install("lab-broken", f"broken_{case}", source)
    install("lab-whole", f"whole_{case}", controller("whole"))
    registry = discover()
    (broken,) = registry.broken
    assert broken.distribution == "lab-broken" and reason in broken.reason and "\n" not in broken.reason
    assert "mine" not in registry.names("kl_controller")
    assert {"fixed", "whole"} <= set(registry.names("kl_controller"))


def test_of_a_plugin_whose_second_component_is_wrong_nothing_is_registered(install):
    install("lab-half", "half_wrong", controller().replace("    register(Mine)", "    register(Mine)\n    register(int)"))
    registry = discover()
    assert len(registry.broken) == 1 and "mine" not in registry.names("kl_controller")


def test_only_specs_that_use_a_broken_plugin_fail(install, tmp_path):
    install("lab-broken", "broken_used", "import no_such_library\n")
    path = write_spec(tmp_path)
    assert lab("plan", path).exit_code == 0
    message = refused(path, "rl.kl=mine", code=3)
    assert (
        "unknown kl_controller 'mine'" in message
        and "plugin: ModuleNotFoundError: No module named 'no_such_library'" in message
    )
    assert "\n" not in message


def test_broken_plugins_are_listed(install):
    install("lab-broken", "broken_listed", "import no_such_library\n")
    plain = lab("plugins", "list")
    assert plain.exit_code == 0 and "kl_controller\tfixed\trlhf-lab" in plain.stdout
    assert plain.stderr == "broken: plugin (lab-broken): ModuleNotFoundError: No module named 'no_such_library'\n"
    data = json.loads(lab("plugins", "list", "--json").stdout)
    assert data["broken"] == [
        {"plugin": "plugin", "from": "lab-broken", "reason": "ModuleNotFoundError: No module named 'no_such_library'"}
    ]
    assert {"kind": "objective", "name": "entropy"}.items() <= next(
        c for c in data["components"] if c["name"] == "entropy"
    ).items()


def test_a_name_that_two_distributions_claim_is_refused_with_both_names(install, tmp_path):
    install("lab-a", "claims_a", controller("shared", beta=0.25))
    install("lab-b", "claims_b", controller("shared", beta=0.75))
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    message = refused(path, "rl.kl=shared", code=3)
    assert "lab-a (claims_a)" in message and "lab-b (claims_b)" in message and "'<distribution>:shared'" in message
    assert lab("plan", path).exit_code == 0, "specs that do not name it are fine"
    for owner, beta in (("lab-a", 0.25), ("lab-b", 0.75)):
        (config,) = json.loads(lab("config", path, "--json", f"rl.kl={owner}:shared").stdout).values()
        assert config["rl"]["kl"]["beta"] == beta


def test_claiming_a_built_in_name_does_not_replace_it_silently(install):
    install("lab-a", "claims_fixed", controller("fixed"))
    with pytest.raises(PluginError, match=r"lab-a \(claims_fixed\) and rlhf-lab \(rlhf_lab_plugins.kl_controller.fixed\)"):
        discover().get("kl_controller", "fixed")


def test_two_files_of_one_name_are_two_plugins(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(controller(folder))
    registry = discover([tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py"], {"RLHF_LAB_LOAD_PLUGINS": ""})
    assert {"a", "b"} <= set(registry.names("kl_controller"))


def test_a_plugin_file_shadows_no_module(tmp_path):
    path = tmp_path / "json.py"
    path.write_text(controller())
    module = load_file(path)
    assert sys.modules["json"] is json and module.__name__ != "json" and load_file(path) is module


def test_a_plugin_file_that_fails_leaves_no_half_module(tmp_path):
    path = tmp_path / "half.py"
    path.write_text("x = 1\nraise RuntimeError\n")
    before = set(sys.modules)
    with pytest.raises(RuntimeError):
        load_file(path)
    assert set(sys.modules) == before


def test_an_edited_plugin_file_is_another_version(tmp_path):
    path = tmp_path / "mine.py"
    versions = []
    for beta in (0.1, 0.2, 0.1):
        path.write_text(controller(beta=beta))
        versions.append(owners(discover([path], {"RLHF_LAB_LOAD_PLUGINS": ""}))["mine"])
    assert versions[0] == versions[2] != versions[1]
    assert versions[0][0] == "mine.py" and versions[0][1].startswith("local+")


def test_nothing_is_loaded_from_the_working_directory(tmp_path):
    (tmp_path / "planted.py").write_text(controller("planted") + "\nopen('executed', 'w').close()\n")
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "planted_too.py").write_text(controller("planted") + "\nopen('executed', 'w').close()\n")
    metadata = tmp_path / "planted-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[rlhf_lab]\nplugin = planted\n")
    script = os.path.join(os.path.dirname(sys.executable), "rlhf-lab")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RLHF_LAB_LOAD_PLUGINS")}
    listed = subprocess.run(
        [script, "plugins", "list", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    assert "planted" not in listed.stdout and not (tmp_path / "executed").exists()


def test_a_plugin_file_that_is_not_there(tmp_path):
    message = refused(write_spec(tmp_path), "--plugin", tmp_path / "missing.py")
    assert message == f"--plugin {tmp_path / 'missing.py'}: there is no such file"


def test_a_plugin_file_that_is_broken_fails_the_spec_that_uses_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def register_components(:\n")
    path = write_spec(tmp_path)
    assert "SyntaxError" in refused(path, "--plugin", file, "rl.kl=mine", code=3)
    assert lab("plan", path, "--plugin", file).exit_code == 0


def test_components_are_chosen_by_name_or_mapping():
    registry = discover([PLUGINS / "velocity_pid.py"], {"RLHF_LAB_LOAD_PLUGINS": ""})
    assert registry.choose("kl_controller", "velocity_pid").p == 0.5
    assert registry.choose("kl_controller", {"name": "velocity_pid", "p": 2}).p == 2.0
    for wrong in (3, None, [], {}, {"p": 2}, {"name": 3}):
        with pytest.raises(
            ValueError, match="kl_controller must be a name, or a mapping with a 'name' in it: one of adaptive, "
        ):
            registry.choose("kl_controller", wrong)
    with pytest.raises(ValueError, match=r"unknown kl_controller 'adaptve' \(did you mean 'adaptive'\?\)"):
        registry.choose("kl_controller", "adaptve")


def test_a_parameter_may_not_be_called_name_or_kind():
    class Named(Component):
        kind = "kl_controller"
        name: str = "x"

    with pytest.raises(PluginError, match="Named lacks the class attribute 'name'"):
        check_component(Named)


def test_a_registry_is_an_object_without_global_state():
    one, two = discover([PLUGINS / "velocity_pid.py"], {}), discover([], {})
    assert "velocity_pid" in one.names("kl_controller") and "velocity_pid" not in two.names("kl_controller")
    assert Registry().registrations() == []


def test_the_whole_hook_surface_is_one_hook():
    assert [name for name in vars(contracts.Hooks) if not name.startswith("_")] == ["register_components"]
