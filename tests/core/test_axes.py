"""The grammar of axes. Expected combinations are written out or enumerated with itertools; laws are checked on random grids."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.declaration.axes import (
    MISSING,
    AxesError,
    blocks_of,
    combinations,
    holds,
    with_axis,
    without_axis,
)


def expanded(axes):
    """Each block's combinations as plain assignments, on a flat state; conditions as they stand."""

    def fits(when, state):
        return holds(when, lambda path: state.get(path, MISSING))

    def assigned(state, path, choice):
        return {**state, path: choice.value}

    found = [pair for block in blocks_of(axes) for pair in of_block(block, assigned, fits)]
    return [{path: choice.value for path, choice in chosen.items()} for chosen in found]


def of_block(block, assigned, fits):
    for chosen, state in combinations(block, {}, assigned, lambda state, group: fits(group.when, state)):
        if fits(block.when, state):
            yield chosen


def wrong(axes):
    with pytest.raises(AxesError) as caught:
        blocks_of(axes)
    assert "\n" not in str(caught.value)
    return caught.value.loc, str(caught.value)


def as_set(points):
    return {frozenset(point.items()) for point in points}


# Grid


@pytest.mark.parametrize("axes", [None, {}, []])
def test_no_axes_are_one_combination_of_nothing(axes):
    assert expanded(axes) == [{}]


def test_a_grid_is_a_product_in_the_order_of_the_file():
    expected = [{"a.x": x, "a.y": y} for x, y in itertools.product([1, 2], [3, 4, 5])]
    assert expanded({"a.x": [1, 2], "a.y": [3, 4, 5]}) == expected
    assert expanded({"grid": {"a.x": [1, 2], "a.y": [3, 4, 5]}}) == expected


PATHS = st.sampled_from([f"{stage}.{key}" for stage in ("sft", "rl") for key in "pqrs"])
GRIDS = st.dictionaries(PATHS, st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=4)


@given(GRIDS)
def test_there_are_as_many_combinations_as_the_product_says(grid):
    assert len(expanded(grid)) == math.prod(map(len, grid.values())) == blocks_of(grid)[0].size


@given(GRIDS, st.randoms(use_true_random=False))
def test_the_order_of_axes_and_values_changes_only_the_order(grid, random):
    shuffled = {path: random.sample(values, len(values)) for path, values in random.sample(sorted(grid.items()), len(grid))}
    assert as_set(expanded(shuffled)) == as_set(expanded(grid))
    assert len(expanded(shuffled)) == len(expanded(grid))


@given(GRIDS)
def test_the_same_axes_give_the_same_combinations_in_the_same_order(grid):
    assert expanded(grid) == expanded(dict(grid))


@given(GRIDS, GRIDS, st.booleans())
def test_blocks_add_up_in_any_order(one, other, swap):
    blocks = [other, one] if swap else [one, other]
    assert len(expanded(blocks)) == len(expanded(one)) + len(expanded(other))
    assert as_set(expanded(blocks)) == as_set(expanded(one)) | as_set(expanded(other))


def test_one_factor_at_a_time_is_a_list_of_blocks():
    points = expanded([{"a.x": [1, 2]}, {"a.y": [3, 4]}, {}])
    assert points == [{"a.x": 1}, {"a.x": 2}, {"a.y": 3}, {"a.y": 4}, {}]


# Zip


def test_a_zip_goes_in_step():
    assert expanded({"zip": {"a.x": [1, 2], "a.y": [3, 4]}}) == [{"a.x": 1, "a.y": 3}, {"a.x": 2, "a.y": 4}]


@given(st.integers(1, 4), st.integers(1, 4), GRIDS)
def test_a_zip_counts_once_beside_a_grid(n, m, grid):
    zips = [{"b.x": list(range(n)), "b.y": list(range(n))}, {"c.x": list(range(m)), "c.y": list(range(m))}]
    points = expanded({**grid, "zip": zips})
    assert len(points) == n * m * math.prod(map(len, grid.values()))
    assert all(point["b.x"] == point["b.y"] and point["c.x"] == point["c.y"] for point in points)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4).filter(lambda sizes: len(set(sizes)) > 1))
def test_a_zip_of_unequal_lengths_is_refused(sizes):
    loc, message = wrong({"zip": {f"a.{i}": [0] * n for i, n in enumerate(sizes)}})
    assert loc == ("zip",)
    told = ", ".join(f"a.{i} has {n}" for i, n in enumerate(sizes))
    assert message == f"the axes of a zip go in step, so they need equally many values: {told}"


# Random


def random_axes(n=5, seed=0, **distributions):
    return {"random": {"n": n, "seed": seed, "distributions": {f"a.{name}": d for name, d in distributions.items()}}}


@given(st.integers(1, 20), st.integers(0, 2**32), st.integers(1, 20))
def test_more_draws_begin_with_the_fewer(n, seed, more):
    fewer = expanded(random_axes(n, seed, x={"uniform": [0, 1]}))
    assert expanded(random_axes(n + more, seed, x={"uniform": [0, 1]}))[:n] == fewer and len(fewer) == n


@given(st.integers(0, 2**32), GRIDS)
def test_what_is_drawn_for_one_axis_does_not_depend_on_the_others(seed, grid):
    alone = [point["a.x"] for point in expanded(random_axes(5, seed, x={"log_uniform": [1e-5, 1e-2]}))]
    axes = {**grid, **random_axes(5, seed, y={"normal": [0, 1]}, x={"log_uniform": [1e-5, 1e-2]}, z={"choice": [1, 2]})}
    among_others = [point["a.x"] for point in expanded(axes)]
    assert among_others == alone * math.prod(map(len, grid.values()))


def test_another_seed_draws_other_values_and_two_axes_draw_their_own():
    one, two = (expanded(random_axes(8, seed, x={"uniform": [0, 1]}, y={"uniform": [0, 1]})) for seed in (0, 1))
    assert {p["a.x"] for p in one}.isdisjoint(p["a.x"] for p in two)
    assert {p["a.x"] for p in one}.isdisjoint(p["a.y"] for p in one)


def test_a_seed_of_0_is_the_default():
    axes = random_axes(3, 0, x={"uniform": [0, 1]})
    del axes["random"]["seed"]
    assert expanded(axes) == expanded(random_axes(3, 0, x={"uniform": [0, 1]}))


# Conditions


def test_an_axis_is_varied_only_where_its_condition_holds():
    axes = {"rl.kl": ["fixed", "adaptive"], "rl.target": {"values": [3, 6], "when": {"rl.kl": "adaptive"}}}
    assert expanded(axes) == [{"rl.kl": "fixed"}, {"rl.kl": "adaptive", "rl.target": 3}, {"rl.kl": "adaptive", "rl.target": 6}]
    assert as_set(expanded(dict(reversed(axes.items())))) == as_set(expanded(axes)), "in whichever order they are listed"


def test_the_condition_of_a_block_drops_combinations():
    axes = {"a.x": [1, 2, 3], "a.y": [1, 2], "when": {"a.x": {"gt": 1}, "a.y": 2}}
    assert expanded(axes) == [{"a.x": 2, "a.y": 2}, {"a.x": 3, "a.y": 2}]


@pytest.mark.parametrize("group", ["grid", "zip", "random"])
def test_a_group_may_have_a_condition(group):
    body = {"n": 2, "distributions": {"a.y": {"choice": [7]}}} if group == "random" else {"a.y": [7, 7]}
    points = expanded({"a.x": [0, 1], group: {**body, "when": {"a.x": 1}}})
    assert points == [{"a.x": 0}, {"a.x": 1, "a.y": 7}, {"a.x": 1, "a.y": 7}]


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (1, 1, True),
        (1, 2, False),
        (1, [1, 2], True),
        (True, 1, False),
        (1.0, 1, True),
        ({"name": "adaptive", "target": 3}, "adaptive", True),
        ({"name": "fixed"}, ["adaptive", "none"], False),
        (["ppo_clip", {"name": "entropy", "weight": 1}], "entropy", True),
        (["ppo_clip"], "entropy", False),
        ([1, 2], [1, 2], True),
        (0.2, {"gt": 0.1, "le": 0.2}, True),
        (0.2, {"lt": 0.2}, False),
        (0.2, {"ge": 0.3}, False),
        ("text", {"gt": 0}, False),
        (True, {"gt": 0}, False),
        ("a", {"not": "b"}, True),
        ("a", {"not": ["a", "b"]}, False),
        (None, None, True),
        (MISSING, {"not": "b"}, False),
        (MISSING, None, False),
    ],
)
def test_what_a_condition_wants(value, wanted, expected):
    assert holds({"p": wanted}, lambda path: value) is expected


def test_all_parts_of_a_condition_must_hold():
    assert holds({"p": 1, "q": 2}, {"p": 1, "q": 2}.get) and not holds({"p": 1, "q": 3}, {"p": 1, "q": 2}.get)
    assert holds({}, {}.get)


def test_a_component_comes_before_its_parameters():
    points = expanded({"rl.kl.beta": [1, 2], "rl.kl": ["fixed"]})
    assert [list(point) for point in points] == [["rl.kl", "rl.kl.beta"]] * 2


# What is refused


@pytest.mark.parametrize(
    ("axes", "loc", "message"),
    [
        (5, (), "axes must be a mapping, or a list of mappings (blocks that add up), not 5"),
        ([{}, 5], (), "axes must be a mapping, or a list of mappings (blocks that add up), not a list"),
        ({"a.x": 5}, ("a.x",), "axis 'a.x' must be a list of values, not 5"),
        ({"a.x": []}, ("a.x",), "axis 'a.x' has no values, so there is nothing to run"),
        (
            {"a.x": {"uniform": [0, 1]}},
            ("a.x",),
            "axis 'a.x' must be a list of values, not a mapping; write {values: […], when: {…}}, or a distribution under ",
        ),
        ({"a.x": {"values": [1], "whn": {}}}, ("a.x", "whn"), "unknown key 'whn' in axis 'a.x' (did you mean 'when'?)"),
        ({"a..x": [1]}, ("a..x",), "'a..x' is not a path; write keys joined by dots, such as rl.kl.beta"),
        ([{"a.x": [1]}, {"a.y": 1}], (1, "a.y"), "axis 'a.y' must be a list of values, not 1"),
        ({"a.x": [1], "grid": {"a.x": [2]}}, ("grid", "a.x", 0), "axis 'a.x' is given twice in one block; keep one of the two"),
        ({"a.o[0].x": [1], "a.o.0.x": [2]}, ("a.o.0.x", 0), "axis 'a.o.0.x' is given twice in one block; keep one of the two"),
        ({"zip": [1]}, ("zip", 0), "zip must be a mapping of axes, such as {rl.kl.beta: [0.02, 0.2]}, not 1"),
        ({"zip": {}}, ("zip",), "zip has no axes; write zip: {rl.kl.beta: [0.02, 0.2]}"),
        ({"when": 5}, ("when",), "when must be a mapping of paths, such as {rl.kl: adaptive}, not 5"),
        ({"when": {"a..b": 1}}, ("when", "a..b"), "'a..b' is not a path; write keys joined by dots, such as rl.kl.beta"),
        ({"when": {"a.b": {}}}, ("when", "a.b"), "the condition on a.b is empty; write a value, a list, or {gt: 1}"),
        (
            {"when": {"a.b": {"nto": 1}}},
            ("when", "a.b", "nto"),
            "unknown key 'nto' in the condition on a.b (did you mean 'not'?)",
        ),
        ({"when": {"a.b": {"gt": "x"}}}, ("when", "a.b", "gt"), "gt compares numbers, so it takes a number, not 'x'"),
        ({"random": 5}, ("random",), "random must be {n: …, seed: …, distributions: {…}}, not 5"),
        ({"random": {"n": 1}}, ("random", "distributions"), "random needs distributions, such as {rl.learning_rate: "),
        ({"random": {"m": 1}}, ("random", "m"), "unknown key 'm' in random; it has n, seed, distributions, when"),
        (random_axes(0, 0, x={"uniform": [0, 1]}), ("random", "n"), "random.n must be a whole number ≥ 1, not 0"),
        (random_axes(True, 0, x={"uniform": [0, 1]}), ("random", "n"), "random.n must be a whole number ≥ 1, not true"),
        (random_axes(1, -1, x={"uniform": [0, 1]}), ("random", "seed"), "random.seed must be a whole number ≥ 0, not -1"),
        (
            random_axes(1, 0, x={"uniformly": [0, 1]}),
            ("random", "distributions", "a.x"),
            "unknown distribution 'uniformly' (did you mean 'uniform'?); there are {uniform: [low, high]}, ",
        ),
        (
            {"a.x": {"values": [1], "when": {"a.y": 1}}, "a.y": {"values": [1], "when": {"a.x": 1}}},
            ("a.x", "values"),
            "axes depend on each other in a circle: a.x → a.y → a.x",
        ),
    ],
)
def test_what_is_wrong_with_axes(axes, loc, message):
    found, said = wrong(axes)
    assert found == loc and said.startswith(message)


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 5), st.sampled_from(["fixed", "a.b", "zip", ""])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["a.b", "rl.kl", "grid", "zip", "random", "when", "values", "n", "seed", "distributions", "uniform", "gt", ".."]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=15,
)


@given(ANYTHING)
def test_whatever_is_written_is_understood_or_refused_in_one_sentence(axes):
    try:
        blocks = blocks_of(axes)
    except AxesError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert blocks and all(block.size >= 1 for block in blocks)


# From the command line


@given(GRIDS, PATHS)
def test_an_axis_that_is_taken_away_is_nowhere_and_the_rest_stays(grid, path):
    axes = {**grid, "zip": {"x.a": [1, 2], path: [1, 2]} if path not in grid else {"x.a": [1, 2]}}
    rest = without_axis(axes, tuple(path.split(".")))
    wanted = {frozenset((k, v) for k, v in point.items() if k != path) for point in expanded(axes)}
    assert as_set(expanded(rest)) == wanted


def test_groups_that_are_left_empty_go():
    path = ("a", "x")
    assert without_axis({"zip": {"a.x": [1]}}, path) == {}
    assert without_axis({"zip": {"a.x": [1], "when": {"b": 1}}}, path) == {}
    assert without_axis({"zip": [{"a.x": [1]}, {"b.x": [1]}]}, path) == {"zip": [{"b.x": [1]}]}
    assert without_axis({"random": {"n": 1, "distributions": {"a.x": {}}}}, path) == {}
    assert without_axis([{"a.x": [1]}, {"b.x": [1]}], path) == [{}, {"b.x": [1]}]
    assert without_axis({"a[0].x": [1]}, ("a", "0", "x")) == {}
    assert without_axis("nonsense", path) == "nonsense", "which is refused later"


def test_an_axis_that_is_added_goes_into_every_block():
    assert with_axis({"a.x": [1]}, "b", [2]) == {"a.x": [1], "b": [2]}
    assert with_axis([{"a.x": [1]}, {}], "b", [2]) == [{"a.x": [1], "b": [2]}, {"b": [2]}]
    assert with_axis(None, "b", [2]) == with_axis([], "b", [2]) == {"b": [2]}
