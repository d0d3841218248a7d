"""The house rules that a machine can check, read off the syntax trees of all source files."""

import ast
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rlhf_lab
from rlhf_lab.registry import discover

ROOT = Path(rlhf_lab.__file__).parents[1]
FOLDERS = {
    "rlhf_lab": "rlhf_lab",
    "plugins": "rlhf_lab_plugins",
    "analysis": "rlhf_lab_analysis",
    "experiments": "rlhf_lab_experiments",
}


def module_name(path):
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(part for part in rest if part != "__init__")])


def sources(*folders):
    return {module_name(path): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def walk(node, *, inside_functions):
    """All nodes but those that only type checkers see, and, if asked, those that run when a function is called."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child) or (
            not inside_functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        ):
            continue
        yield child
        yield from walk(child, inside_functions=inside_functions)


def imported(path, known, *, inside_functions=True):
    """The modules of `known` that a file imports; `from package import module` counts as the module."""
    found = set()
    for node in walk(tree(path), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            candidates = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            found |= {next((candidate for candidate in candidates if candidate in known), parts[0])}
    return found


ALL = sources(*FOLDERS)
CORE = sources("rlhf_lab")


def test_the_files_are_found():
    assert {"rlhf_lab.rl.loop", "rlhf_lab_plugins.kl_controller.fixed", "rlhf_lab_analysis.reward_vs_kl"} <= set(ALL)


@pytest.mark.parametrize("inside_functions", [False, True])
def test_no_import_cycles(inside_functions):
    """When modules are loaded there is none at all; inside functions the package's lazy `load` may look back."""
    graph = {name: imported(path, ALL, inside_functions=inside_functions) & set(ALL) - {name} for name, path in ALL.items()}
    if inside_functions:
        graph["rlhf_lab"] = set()
    graph = {name: needed - {"rlhf_lab"} for name, needed in graph.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_core_imports_no_plugin_and_no_trainer_imports_a_figure():
    for name, path in CORE.items():
        others = {module.split(".")[0] for module in imported(path, ALL)}
        assert "rlhf_lab_plugins" not in others, name
        if not name.startswith("rlhf_lab.cli"):
            assert not others & {"rlhf_lab_analysis", "rlhf_lab_experiments"}, name


def test_plugins_do_not_look_at_figures_or_experiments():
    for name, path in sources("plugins").items():
        ours = {module.split(".")[0] for module in imported(path, ALL)}
        assert not ours & {"rlhf_lab_analysis", "rlhf_lab_experiments"}, name


MAY_BE_READ = {"rlhf_lab", "rlhf_lab.errors", "rlhf_lab.results.tables", "rlhf_lab.best_of_n"}


def test_analysis_reads_tables_never_a_trainer():
    for name, path in sources("analysis").items():
        modules = imported(path, ALL)
        ours = {module for module in modules if module.startswith("rlhf_lab") and not module.startswith("rlhf_lab_analysis")}
        assert ours <= MAY_BE_READ, f"{name} imports {ours - MAY_BE_READ}"
        assert not modules & {"torch", "transformers", "accelerate", "peft"}, name


def test_words_that_say_nothing_are_no_file_names():
    bad = re.compile(r"(utils?|helpers?|common|misc|base|lib|tools|stuff|shared)\d*$")
    assert not [str(path) for path in [*ALL.values(), *(ROOT / "tests").rglob("*.py")] if bad.fullmatch(path.stem)]


# Names of variants

DEFAULTS_OF_A_PIPELINE = {
    # The default pipeline is a spec that one need not write; where it stands is stated here.
    "rlhf_lab.rl.parameters": {"causal_lm", "value_model", "reward_model", "fixed", "gae", "ppo_clip", "value_clip", "none"},
    "rlhf_lab.declaration.run_config": {"none"},
    "rlhf_lab.declaration.resources": {"local"},
    "rlhf_lab.testing.world": {"reward_model"},  # the folder of a finished stage
}


def registered_names():
    """Names that are unmistakably those of variants: not the name of a kind or of a stage, nor one that means much else."""
    registry = discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})
    kinds = {r.kind for r in registry.registrations()}
    everyday = {"none", "length", "entropy", "pairwise", "scratch", "chat", "table", "tabular", "schedule", "margin", "linear"}
    everyday |= {"pid"}  # of a process
    return {r.name for r in registry.registrations() if r.kind != "stage"} - kinds - everyday


def strings(path):
    """String constants of a file that are no docstrings."""
    parsed = tree(path)
    holders = [node for node in ast.walk(parsed) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docs = {id(node.body[0].value) for node in holders if node.body and isinstance(node.body[0], ast.Expr)}
    return {n.value for n in ast.walk(parsed) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs}


def test_the_core_names_no_variant():
    variants = registered_names()
    assert {"fixed", "adaptive", "gae", "rloo", "ppo_clip", "kwise", "grammar_gold", "micro", "instructgpt"} <= variants
    for name, path in CORE.items():
        named = strings(path) & variants - DEFAULTS_OF_A_PIPELINE.get(name, set())
        assert not named, f"{name} names {sorted(named)}"


def test_the_core_asks_no_component_for_its_name():
    """No `if x.name == "…"` in the core, but for the absence of a critic, which is checked where the spec is."""
    for name, path in CORE.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "name":
                constants = {c.value for c in node.comparators if isinstance(c, ast.Constant)}
                assert not constants or (name, constants) == ("rlhf_lab.rl.parameters", {"none"}), f"{name}:{node.lineno}"


# Inheritance


def test_nothing_inherits_but_from_contracts():
    """Components inherit from Component (or the parameters that supervised stages share); depth stays at two."""
    bases = Counter()
    for path in CORE.values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                bases.update(ast.unparse(base) for base in node.bases)
    foreign = {"BaseModel", "NamedTuple", "Protocol", "Exception", "str", "nn.Module", "torch.autograd.Function"}
    own = {"Component", "LabError"}
    assert set(bases) <= foreign | own, set(bases) - foreign - own


# Nothing that runs what it reads

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "imp"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "torch.save",
}


@pytest.mark.parametrize("name", sorted(ALL))
def test_nothing_executes_what_it_reads(name):
    for node in ast.walk(tree(ALL[name])):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES, f"{name}:{node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] not in FORBIDDEN_MODULES, f"{name}:{node.lineno}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called not in FORBIDDEN_CALLS, f"{name}:{node.lineno} calls {called}"
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", f"{name}:{node.lineno}"
            assert keywords.get("trust_remote_code") in (None, "False"), f"{name}:{node.lineno}"
            assert keywords.get("shell") in (None, "False"), f"{name}:{node.lineno}"
            assert keywords.get("allow_pickle") in (None, "False"), f"{name}:{node.lineno}"


def test_the_rules_can_fail(tmp_path):
    """Each check on a file that breaks it."""
    path = tmp_path / "bad.py"
    seen = ["import rlhf_lab.rl.loop", "from rlhf_lab.running import plan"]
    imports = [*seen, "if TYPE_CHECKING:", "    import rlhf_lab.declaration.sweep"]
    path.write_text("\n".join([*imports, "def f():", "    import rlhf_lab.store.files", ""]))
    assert imported(path, ALL) == {"rlhf_lab.rl.loop", "rlhf_lab.running.plan", "rlhf_lab.store.files"}
    assert imported(path, ALL, inside_functions=False) == {"rlhf_lab.rl.loop", "rlhf_lab.running.plan"}
    path.write_text('"gae"\nx = "rloo"\n')
    assert strings(path) == {"rloo"}
