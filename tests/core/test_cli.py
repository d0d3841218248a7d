"""What the command line prints, where, and with which exit code."""

import json
import re
import shutil

import click
import pytest
from micro_spec import lab, plan_of, write_spec

import rlhf_lab
from rlhf_lab.cli import main
from rlhf_lab.cli.conventions import speaks_plainly
from rlhf_lab.errors import DataError, LabError, ModelError, NumericsError, PluginError, RewardError, SpecError

# Output


def test_quiet_says_nothing(finished):
    again = lab("run", finished.parents[1] / "spec.yaml", "--out", finished.parent, "--quiet")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "")


def test_a_summary_line(finished):
    again = lab("run", finished.parents[1] / "spec.yaml", "--out", finished.parent)
    assert again.stdout == f"0 runs done, 4 reused, 0 failed: {finished}\n" and again.stderr == ""


def test_json_is_one_object(finished):
    again = json.loads(lab("run", finished.parents[1] / "spec.yaml", "--out", finished.parent, "--json").stdout)
    assert again["results"] == str(finished) and len(again["reused"]) == 4
    assert again["done"] == [] and again["failed"] == {}


def test_without_a_terminal_progress_is_plain_lines(tmp_path):
    result = lab("run", write_spec(tmp_path, axes="axes: {}"), "--out", tmp_path / "out", "rl.steps=30")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert [line for line in lines if "done" in line] == [
        line for line in lines if re.fullmatch(r"base seed=[01]: done  \([12]/2 runs, about \d+ s left\)", line)
    ]
    assert len([line for line in lines if "done" in line]) == 2
    assert any(re.fullmatch(r"base seed=[01]: (sft|rl) \d+/\d+  .*", line) for line in lines)
    assert "\x1b" not in result.stderr + result.stdout


def test_runs_that_are_done_already_count_as_done(finished, tmp_path):
    shutil.copytree(finished.parents[1], tmp_path, dirs_exist_ok=True)
    result = lab("run", tmp_path / "spec.yaml", "--out", tmp_path / "out", "seeds=0,1,2", "rl.kl.beta=0.1")
    (line,) = [line for line in result.stderr.splitlines() if "runs, about" in line]
    assert line == "base seed=2: done  (3/3 runs, about 0 s left)"


def test_dry_run_and_plan_print_the_same_and_create_nothing(tmp_path):
    path = write_spec(tmp_path)
    shown = [lab(*command, path, "--out", tmp_path / "out") for command in (["run", "--dry-run"], ["plan"])]
    assert shown[0].stdout == shown[1].stdout and not (tmp_path / "out").exists()
    runs, rest = shown[0].stdout.splitlines()[:4], shown[0].stdout.splitlines()[4:]
    assert rest == [
        "stage sft: 1 to compute; shared by 4 runs",
        "stage rl: 4 to compute; reads sft",
        "4 runs (0 done, 0 duplicates dropped); stages: 1 sft, 4 rl",
        "estimated time: unknown, for nothing of the size of 1 sft, 4 rl is finished here",
    ]
    assert [line[16:] for line in runs] == [
        f"  to run   base beta={beta} seed={seed}" for beta in ("0.1", "1") for seed in (0, 1)
    ]


def test_plan_knows_what_is_done(finished):
    path = finished.parents[1] / "spec.yaml"
    *_, sft, rl, total, _ = lab("plan", path, "seeds=0,1,2", "--out", finished.parent).stdout.splitlines()
    assert total == "6 runs (4 done, 0 duplicates dropped); stages: 1 sft (1 done), 6 rl (4 done)"
    assert sft == "stage sft: 0 to compute, 1 done; shared by 6 runs"
    assert rl == "stage rl: 2 to compute, 4 done; reads sft"
    data = plan_of(path, "--out", finished.parent)
    assert data["stages_done"] == {"sft": 1, "rl": 4} and all(run["done"] for run in data["runs"])
    assert data["runs"][2]["axes"] == {"rl.kl.beta": 1} and data["runs"][2]["seed"] == 0


def test_config_prints_every_default(tmp_path):
    shown = json.loads(lab("config", write_spec(tmp_path), "seeds=0", "--json").stdout)
    assert list(shown) == ["base beta=0.1 seed=0", "base beta=1 seed=0"]
    assert shown["base beta=0.1 seed=0"]["rl"]["kl"] == {"name": "fixed", "beta": 0.1}
    assert shown["base beta=0.1 seed=0"]["template"] == {"name": "none"}


# Plugins


def test_plugins_are_listed_by_kind_then_name():
    rows = [line.split("\t") for line in lab("plugins", "list").stdout.splitlines()]
    assert rows[0] == ["kind", "name", "from", "what it is"]
    assert ["kl_controller", "fixed", f"rlhf-lab {rlhf_lab.__version__}", "β_t = β_0."] in rows
    assert all(len(row) == 4 and row[3] for row in rows), "each says what it is"


def test_every_listed_plugin_can_be_shown():
    for row in json.loads(lab("plugins", "list", "--json").stdout)["components"]:
        shown = lab("plugins", "show", row["kind"], row["name"], "--json")
        assert shown.exit_code == 0, row
        assert json.loads(shown.stdout)["doc"]


def test_what_is_shown_of_a_parameter():
    rows = [line.split("\t") for line in lab("plugins", "show", "kl_controller", "adaptive").stdout.splitlines()]
    assert ["gain", "float", "0.1", "> 0, ≤ 1"] in [row[:4] for row in rows]
    shown = json.loads(lab("plugins", "show", "stage", "rl", "--json").stdout)["parameters"]
    types = {row["parameter"]: row["type"] for row in shown}
    assert (types["kl"], types["objective"], types["gold"]) == ("a kl_controller", "a objective", "a reward")
    assert types["kl_estimator"].startswith("Literal['k1'")


def test_the_numbers_of_a_preset_come_with_their_sources():
    rows = [line.split("\t") for line in lab("plugins", "show", "preset", "instructgpt").stdout.splitlines()]
    assert ["rl.kl.beta", "0.02"] in [row[:2] for row in rows]
    assert all(row[2] for row in rows if len(row) == 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kl_controler", "fixed"), "unknown kind 'kl_controler' (did you mean 'kl_controller'?); there are policy, "),
        (("kl_controller", "fixd"), "unknown kl_controller 'fixd' (did you mean 'fixed'?); there are "),
    ],
)
def test_plugins_that_are_not_there(arguments, message):
    result = lab("plugins", "show", *arguments)
    assert result.exit_code == 2 and result.stderr.startswith(message) and result.stdout == ""


# Errors


@pytest.mark.parametrize(
    ("error", "code"),
    [(LabError, 1), (DataError, 1), (ModelError, 1), (RewardError, 1), (NumericsError, 1), (SpecError, 2), (PluginError, 3)],
)
def test_each_error_has_its_exit_code_and_is_one_sentence(capsys, error, code):
    @speaks_plainly
    def command(as_json=False):
        raise error("this is wrong")

    for as_json in (False, True):
        with pytest.raises(SystemExit) as caught:
            command(as_json=as_json)
        out, err = capsys.readouterr()
        assert caught.value.code == code and err == "this is wrong\n"
        assert out == (json.dumps({"error": {"kind": error.__name__, "message": "this is wrong"}}) + "\n" if as_json else "")


def test_an_interrupt_is_130(capsys):
    @speaks_plainly
    def command():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 130 and capsys.readouterr().err.startswith("interrupted; the same command goes on")


def test_a_mistake_of_ours_is_not_hidden():
    @speaks_plainly
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command()


def test_wrong_usage_is_2():
    assert (
        lab("run").exit_code == 2 and lab("no-such-verb").exit_code == 2 and lab("run", "x", "--no-such-option").exit_code == 2
    )


def test_an_override_that_is_none(tmp_path):
    result = lab("plan", write_spec(tmp_path), "rl.kl.beta")
    assert result.exit_code == 2
    assert result.stderr == "override 'rl.kl.beta': write key=value, or ~key to delete a key\n"


def test_every_command_explains_itself():
    def walk(command, path):
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*path, name])

    for path, command in walk(main, []):
        assert command.help and lab(*path, "--help").exit_code == 0
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, (path, parameter.name)


# Plots and checks


def test_figures_of_a_real_sweep(finished, tmp_path):
    for name in ("frontier", "curves"):
        result = lab("plot", name, finished, "--out", tmp_path)
        assert result.exit_code == 0, result.stderr
        files = result.stdout.split()
        assert {file.rpartition(".")[2] for file in files} == {"png", "svg"}
    assert lab("plot", "frontier", finished, "--x", "kl", "--out", tmp_path).exit_code == 0


def test_figures_of_nothing(tmp_path):
    result = lab("plot", "frontier", tmp_path)
    assert result.exit_code == 1 and "is" in result.stderr and len(result.stderr.splitlines()) == 1
    assert lab("plot", "frontier", tmp_path / "missing").exit_code == 2
