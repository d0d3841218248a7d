"""Both figures: what is drawn, what is written, and that nothing overlaps or leaks."""

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.image import imread

from rlhf_lab.errors import DataError
from rlhf_lab_analysis import curves as curves_module
from rlhf_lab_analysis import reward_vs_kl as frontier_module
from rlhf_lab_analysis import style
from rlhf_lab_analysis.curves import curves
from rlhf_lab_analysis.endpoints import endpoints
from rlhf_lab_analysis.matched_kl import dots
from rlhf_lab_analysis.reward_vs_kl import reward_vs_kl

ANALYSIS = Path(frontier_module.__file__).parent


def panels(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def thick(axes):
    return [line for line in axes.lines if line.get_linewidth() == 1.5]


def thin(axes):
    return [line for line in axes.lines if line.get_linewidth() == 0.5]


def legend_labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_frontier_has_a_line_per_seed_a_mean_and_a_band(sweep):
    figure = reward_vs_kl(sweep)
    for axes, reward in zip(panels(figure), ["proxy", "gold"], strict=True):
        assert len(thin(axes)) == 9 and len(thick(axes)) == 3
        assert axes.get_ylabel() == f"{reward} reward (score)"
        assert "KL" in axes.get_xlabel() and "nats" in axes.get_xlabel()
        assert len(axes.containers) == 1  # best-of-n with its standard errors
    assert legend_labels(figure) == ["beta = 0.02", "beta = 0.2", "beta = 1", "best of n ≤ 256 (SFT)"]
    assert "n = 3 seeds" in figure.legends[0].get_title().get_text()


@pytest.mark.parametrize("x, power", [("kl", 1.0), ("sqrt_kl", 0.5)])
def test_mean_curve_is_the_mean_at_equal_step(sweep, x, power):
    rows = sweep[(sweep["rl.kl.beta"] == 0.02) & (sweep["split"] == "validation") & (sweep["stage"] == "rl")]
    line = thick(panels(reward_vs_kl(sweep, x=x))[1])[0]
    per_step = [part for _, part in sorted(rows.groupby("step"), key=lambda item: item[0])]
    np.testing.assert_allclose(line.get_xdata(), [np.mean(part["kl"].to_numpy()) ** power for part in per_step])
    np.testing.assert_allclose(line.get_ydata(), [np.mean(part["reward_gold"].to_numpy()) for part in per_step])


def test_training_rows_are_not_in_the_frontier(sweep):
    loud = sweep.assign(reward_proxy=sweep["reward_proxy"].where(sweep["split"] == "validation", 1e6))
    assert panels(reward_vs_kl(loud))[0].get_ylim()[1] < 10


def test_among_too_many_groups_means_stand_alone(sweep):
    """Ten arms of which each has the seeds of one: ten lines in a panel, no band, and the caption says so."""
    one = sweep[(sweep["stage"] == "rl") & (sweep["arm"] == sweep["arm"].iloc[0])]
    many = pd.concat([one.assign(arm=f"a{i}", run_id=one["run_id"] + f"a{i}") for i in range(10)])
    for figure in (reward_vs_kl(many, hue="arm"), curves(many, hue="arm")):
        assert {len(panel.get_lines()) for panel in panels(figure)} == {10}
        assert not any(panel.collections for panel in panels(figure))
        assert "too many lines" in figure.legends[0].get_title().get_text().replace("\n", " ")


def test_negative_estimates_of_kl_are_drawn_at_zero(one_run):
    figure = reward_vs_kl(one_run.assign(kl=one_run["kl"].where(one_run["step"] > 0, -0.01)))
    assert thick(panels(figure)[0])[0].get_xdata()[0] == 0


def test_one_seed_has_one_line_no_band_and_says_so(one_run):
    (proxy, _) = panels(reward_vs_kl(one_run))
    assert len(proxy.lines) == 1 and not proxy.collections
    assert "n = 1 seed" in reward_vs_kl(one_run).legends[0].get_title().get_text()


@pytest.mark.parametrize("error, bars", [(0.03, 1), (np.nan, 0)])
def test_best_of_n_has_bars_where_its_error_is_known(sweep, error, bars):
    (container,) = panels(reward_vs_kl(sweep.assign(reward_proxy_se=error)))[0].containers
    assert len(container.lines[2]) == bars


def test_groups_of_unequal_size_carry_their_n(sweep):
    lost = sweep[~((sweep["rl.kl.beta"] == 0.2) & (sweep["seed"] == 2))]
    assert legend_labels(reward_vs_kl(lost))[:2] == ["beta = 0.02 (n = 3)", "beta = 0.2 (n = 2)"]


def test_no_gold_no_gold_panel(without_gold):
    assert [axes.get_title() for axes in panels(reward_vs_kl(without_gold))] == ["proxy: what RL maximises"]
    assert "gold reward" not in [axes.get_title() for axes in panels(curves(without_gold))]
    with pytest.raises(DataError, match="no finite kl with a reward"):
        reward_vs_kl(without_gold.assign(reward_proxy=np.nan))


def test_endpoints_are_the_last_rows_of_the_runs(sweep):
    """Each run once, at √KL and reward of its last step on validation prompts; those beyond `near` not in the second row."""
    rows = sweep[(sweep["stage"] == "rl") & (sweep["split"] == "validation")].sort_values("step")
    last = rows.groupby("run_id").last()
    near = float(last["kl"].sort_values().iloc[:-1].max())
    for close, found in enumerate(np.array_split(panels(endpoints(sweep, near=near)), 2)):
        wanted = last[last["kl"] <= near] if close else last
        for panel, reward in zip(found, ("reward_proxy", "reward_gold"), strict=True):
            scattered = [drawn for drawn in panel.collections if isinstance(drawn, PathCollection)]
            points = np.concatenate([group.get_offsets() for group in scattered])
            expected = np.column_stack([np.sqrt(wanted["kl"]), wanted[reward]])
            np.testing.assert_allclose(sorted(map(tuple, points)), sorted(map(tuple, expected)))


def test_endpoints_show_the_best_of_n_of_each_arm(sweep):
    """One curve where the arms share it; one each where they do not."""
    betas = sweep["rl.kl.beta"].dropna().unique()
    own = sweep.copy()
    own.loc[(own["stage"] == "best_of_n") & (own["rl.kl.beta"] == betas[0]), "reward_proxy"] += 1
    for frame, n in ((sweep, 1), (own, len(betas))):
        assert len(panels(endpoints(frame, hue="rl.kl.beta"))[0].containers) == n > 0


def test_curves_have_a_panel_per_column_with_units(sweep):
    figure = curves(sweep)
    assert [(axes.get_title(), axes.get_ylabel()) for axes in panels(figure)] == [
        ("KL to the SFT policy", "nats per sequence"),
        ("proxy reward", "score"),
        ("gold reward", "score"),
        ("entropy", "nats per token"),
        ("response length", "tokens"),
        ("KL coefficient β (training)", "reward per nat"),
    ]
    assert [axes.get_xlabel() for axes in panels(figure)] == ["", "", "", "step", "step", "step"]
    assert all(len(thin(axes)) == 9 and len(thick(axes)) == 3 for axes in panels(figure))


def test_curves_of_chosen_columns(sweep):
    assert [axes.get_title() for axes in panels(curves(sweep, ["entropy", "kl"]))] == ["entropy", "KL to the SFT policy"]
    with pytest.raises(DataError, match=r"no number in a column 'entropie'; choose among: .*entropy"):
        curves(sweep, ["entropie"])


@pytest.mark.parametrize("n", range(1, 9))
def test_groups_differ_in_lightness(n):
    """CIE lightness of the colours, by the formula of the standard, rises by at least 4 from group to group."""
    linear = np.array([[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb] for rgb in style.colours(n)])
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    assert (np.diff(lightness) >= 4).all() and lightness[-1] < 75


@pytest.mark.parametrize("n", [8, 13])
def test_groups_differ_in_more_than_colour(n):
    chosen = style.styles(n)
    assert len({s.color for s in chosen}) == n
    assert all((a.linestyle, a.marker) != (b.linestyle, b.marker) for a, b in itertools.combinations(chosen, 2))


@pytest.mark.parametrize("make", [reward_vs_kl, curves, dots, endpoints, lambda frame: reward_vs_kl(frame, width=3.3)])
@pytest.mark.parametrize("name", ["sweep", "eight_arms", "one_run", "without_gold"])
def test_nothing_overlaps_and_nothing_is_cut_off(request, make, name):
    figure = make(request.getfixturevalue(name))
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in panels(figure)] + [figure.legends[0].get_window_extent(renderer)]
    for a, b in itertools.combinations(boxes, 2):
        assert min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1
    assert all(b.x0 > -1 and b.y0 > -1 and b.x1 < figure.bbox.x1 + 1 and b.y1 < figure.bbox.y1 + 1 for b in boxes)


def test_files_are_written_the_same_each_time(sweep, tmp_path):
    first, again = (style.save(reward_vs_kl(sweep), tmp_path / name, "figure") for name in ("a", "b"))
    png, svg = first
    image = imread(png)
    assert image.shape[1] == 1100 and image[..., :3].std() > 0.05
    assert svg.read_text(encoding="utf-8").count("<path") > 50
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_global_settings_are_left_alone(sweep):
    before = dict(mpl.rcParams)
    curves(sweep)
    reward_vs_kl(sweep)
    assert dict(mpl.rcParams) == before


@pytest.fixture
def results(sweep, tmp_path):
    """A results folder with the tables as a run writes them."""
    runs = sweep[["run_id", "arm", "seed", "rl.kl.beta"]].drop_duplicates().assign(status="done", seconds=1.0)
    runs.to_parquet(tmp_path / "runs.parquet")
    sweep.drop(columns="rl.kl.beta").to_parquet(tmp_path / "steps.parquet")
    return tmp_path


def test_draw_writes_into_the_results_folder(results):
    assert [p.relative_to(results).as_posix() for p in frontier_module.draw(results)] == [
        "figures/reward_vs_kl.png",
        "figures/reward_vs_kl.svg",
    ]
    assert [p.name for p in curves_module.draw(results, results / "elsewhere")] == ["curves.png", "curves.svg"]
    assert (results / "elsewhere" / "curves.svg").stat().st_size > 10_000


@pytest.mark.parametrize("command", ["reward_vs_kl.py --x kl", "curves.py --column kl", "report.py"])
def test_scripts_run_by_path(results, command):
    """As a file: the analysis folder is then first on the path, and must not hide a module of the standard library."""
    script, *options = command.split()
    done = subprocess.run([sys.executable, ANALYSIS / script, results, *options], capture_output=True, text=True, check=True)
    assert ("| rl.kl.beta |" if script == "report.py" else f"figures/{script[:-3]}.svg") in done.stdout


def test_scripts_say_what_is_wrong_in_one_line(results, capsys):
    assert curves_module.main([str(results), "--column", "nonsense"]) == 1
    assert capsys.readouterr().err.startswith("error: stage 'rl' has no number in a column 'nonsense'")


def test_no_file_hides_a_module_of_the_standard_library():
    assert not {path.stem for path in ANALYSIS.glob("*.py")} & (sys.stdlib_module_names - {"__init__"})
