"""Deltas and overrides. Expected values are written out by hand; laws are checked on random data."""

import math
from copy import deepcopy

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf_lab.declaration.overrides import (
    Override,
    apply_override,
    delete_path,
    expand_dotted,
    format_override,
    format_value,
    get_path,
    has_path,
    locate,
    merge,
    parse_override,
    set_path,
)
from rlhf_lab.errors import SpecError

CONFIG = {
    "name": "kl",
    "rl": {
        "kl": {"name": "fixed", "beta": 0.02},
        "advantage": "gae",
        "objective": [{"name": "ppo_clip", "clip": 0.2}, "entropy", {"name": "value_clip", "weight": 0.5}],
        "steps": 10,
        "critic": None,
    },
}


def refused(function, *arguments):
    with pytest.raises(SpecError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(text, data=CONFIG):
    return apply_override(data, parse_override(text))


# merge


@pytest.mark.parametrize(
    ("base", "delta", "expected"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 9}}, {"a": 1, "b": {"c": 9, "d": 3}}),
        ({"a": {"b": 1}}, {"a": 5}, {"a": 5}),
        ({"a": 5}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": 1}, {"a": None}, {"a": None}),
        # lists replace
        ({"a": [1, 2, 3]}, {"a": [4]}, {"a": [4]}),
        # a component: another name replaces, the same or none merges
        ({"kl": {"name": "fixed", "b": 1}}, {"kl": {"name": "adaptive", "t": 6}}, {"kl": {"name": "adaptive", "t": 6}}),
        ({"kl": {"name": "fixed", "b": 1}}, {"kl": {"name": "fixed", "t": 2}}, {"kl": {"name": "fixed", "b": 1, "t": 2}}),
        ({"kl": {"name": "fixed", "beta": 1}}, {"kl": {"beta": 2}}, {"kl": {"name": "fixed", "beta": 2}}),
        ({"kl": {"name": "fixed", "beta": 1}}, {"kl": "fixed"}, {"kl": "fixed"}),
        ({"kl": {"beta": 1}}, {"kl": {"name": "fixed"}}, {"kl": {"name": "fixed", "beta": 1}}),
        # a bare name counts as {"name": …}
        ({"kl": "fixed"}, {"kl": {"beta": 2}}, {"kl": {"name": "fixed", "beta": 2}}),
        ({"kl": "fixed"}, {"kl": {"name": "fixed", "beta": 2}}, {"kl": {"name": "fixed", "beta": 2}}),
        ({"kl": "fixed"}, {"kl": {"name": "adaptive", "target": 6}}, {"kl": {"name": "adaptive", "target": 6}}),
        ({"kl": "fixed"}, {"kl": {}}, {"kl": "fixed"}),
        # single items of a list
        ({"o": [{"name": "a", "w": 1}, "b"]}, {"o": {"a": {"w": 2}}}, {"o": [{"name": "a", "w": 2}, "b"]}),
        ({"o": [{"name": "a", "w": 1}, "b"]}, {"o": {"1": {"w": 2}}}, {"o": [{"name": "a", "w": 1}, {"name": "b", "w": 2}]}),
        ({"o": [{"name": "a", "w": 1}, "b"]}, {"o": {"a": {"name": "c"}}}, {"o": [{"name": "c"}, "b"]}),
    ],
)
def test_merge(base, delta, expected):
    assert merge(base, delta) == expected


def test_merge_names_the_list_item_that_is_not_there():
    delta = {"rl": {"objective": {"ppo_clp": {"clip": 0.1}}}}
    assert refused(merge, CONFIG, delta) == "rl.objective has no item 'ppo_clp' (did you mean 'ppo_clip'?)"
    assert refused(merge, {"o": [1, 2]}, {"o": {"2": 3}}).startswith("o has no item '2'")
    twice = {"o": [{"name": "a"}, {"name": "a"}]}
    assert refused(merge, twice, {"o": {"a": {"w": 1}}}) == "o has several items named 'a'; use the index, 0 to 1"
    assert merge(twice, {"o": {"1": {"w": 1}}}) == {"o": [{"name": "a"}, {"name": "a", "w": 1}]}


def test_merge_of_three_depends_on_the_order_where_names_change():
    a, b, c = {"k": {"name": "x", "p": 1}}, {"k": {"name": "y"}}, {"k": {"name": "x", "q": 2}}
    assert merge(merge(a, b), c) == {"k": {"name": "x", "q": 2}}
    assert merge(a, merge(b, c)) == {"k": {"name": "x", "p": 1, "q": 2}}


KEYS = st.sampled_from(["a", "b", "kl", "name", "objective"])
NAMES = st.sampled_from(["fixed", "adaptive", "", "x y"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), NAMES)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=12
)
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=4)

# data in which a key always holds the same kind of thing: capitals leaves, small letters mappings
LEAVES = st.one_of(st.integers(), st.lists(st.integers(), max_size=2))
SHAPED = st.recursive(
    st.dictionaries(st.sampled_from("PQ"), LEAVES, max_size=2),
    lambda inner: st.builds(
        lambda leaves, mappings: {**leaves, **mappings},
        st.dictionaries(st.sampled_from("PQ"), LEAVES, max_size=2),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    ),
    max_leaves=6,
)


def may_merge(base, delta):
    """None where the delta names list items that the base does not have."""
    try:
        return merge(base, delta)
    except SpecError:
        return None


@given(MAPPINGS)
def test_merge_with_itself_or_nothing_changes_nothing(a):
    assert merge(a, a) == a
    assert merge(a, {}) == a
    assert merge({}, a) == a


@given(MAPPINGS, MAPPINGS)
def test_merge_twice_is_merge_once(a, b):
    once = may_merge(a, b)
    if once is not None:
        again = may_merge(once, b)
        assert again is None or again == once


@given(SHAPED, SHAPED, SHAPED)
def test_merge_is_associative_on_data_of_one_shape(a, b, c):
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


def containers(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    own = {id(value)} if isinstance(value, dict | list) else set()
    return own.union(*map(containers, inner))


@given(MAPPINGS, MAPPINGS)
def test_merge_mutates_and_shares_nothing(a, b):
    before = deepcopy((a, b))
    result = may_merge(a, b)
    assert (a, b) == before
    assert not containers(result) & (containers(a) | containers(b))


# expand_dotted


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"rl.kl.beta": 0.2, "rl": {"steps": 3}}, {"rl": {"kl": {"beta": 0.2}, "steps": 3}}),
        ({"rl": {"kl": {"name": "fixed"}}, "rl.kl.beta": 0.2}, {"rl": {"kl": {"name": "fixed", "beta": 0.2}}}),
        ({"rl": {"kl.beta": 1}}, {"rl": {"kl": {"beta": 1}}}),
        ({"rl.kl": "fixed", "rl.kl.beta": 1}, {"rl": {"kl": {"name": "fixed", "beta": 1}}}),
        ({"rl.kl.beta": 1, "rl.kl": "fixed"}, {"rl": {"kl": {"name": "fixed", "beta": 1}}}),
        ({"rl.o.0.w": 1, "rl.o[1].w": 2}, {"rl": {"o": {"0": {"w": 1}, "1": {"w": 2}}}}),
        ({"no dots": [{"a.b": 1}]}, {"no dots": [{"a.b": 1}]}),
        ({}, {}),
    ],
)
def test_expand_dotted(delta, expected):
    before = deepcopy(delta)
    assert expand_dotted(delta) == expected
    assert expand_dotted(expected) == expected
    assert delta == before


@pytest.mark.parametrize(
    ("delta", "says"),
    [
        ({"rl.kl.beta": 1, "rl": {"kl": {"beta": 1}}}, "rl.kl.beta is given twice"),
        ({"rl.kl": 5, "rl.kl.beta": 1}, "rl.kl is given twice"),
        ({"rl.kl": "fixed", "rl.kl.name": "adaptive"}, "rl.kl.name is given twice"),
        ({"rl.o": [1], "rl.o.0": 2}, "rl.o is given twice"),
        ({"rl..kl": 1}, "'rl..kl' is not a path"),
        ({".rl": 1}, "'.rl' is not a path"),
    ],
)
def test_expand_dotted_conflicts(delta, says):
    assert says in refused(expand_dotted, delta)


def test_a_dotted_delta_changes_one_item_of_a_list():
    delta = expand_dotted({"rl.objective.ppo_clip.clip": 0.1, "rl.objective[1].weight": 0.01})
    assert merge(CONFIG, delta)["rl"]["objective"] == [
        {"name": "ppo_clip", "clip": 0.1},
        {"name": "entropy", "weight": 0.01},
        {"name": "value_clip", "weight": 0.5},
    ]


# Paths


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rl.kl.beta", 0.02),
        ("rl.objective.0.clip", 0.2),
        ("rl.objective[0].clip", 0.2),
        ("rl.objective.ppo_clip.clip", 0.2),
        ("rl.objective.value_clip", {"name": "value_clip", "weight": 0.5}),
        ("rl.objective.entropy", "entropy"),
        ("rl.objective.entropy.name", "entropy"),
        ("rl.advantage.name", "gae"),
        ("rl.critic", None),
        (("rl", "steps"), 10),
        ((), CONFIG),
    ],
)
def test_get_path(path, value):
    assert get_path(CONFIG, path) == value
    assert has_path(CONFIG, path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("rl.kl.betta", "rl.kl has no key 'betta' (did you mean 'beta'?)"),
        ("rll.kl", "the spec has no key 'rll' (did you mean 'rl'?)"),
        ("rl.objective.entropi", "rl.objective has no item 'entropi' (did you mean 'entropy'?)"),
        ("rl.objective.7", "rl.objective has no item '7'; there are ppo_clip, entropy, value_clip"),
        ("rl.objective." + "9" * 5000, "rl.objective has no item '999"),
        ("rl.steps.x", "rl.steps is 10, so it has no key 'x'"),
        ("rl.critic.x", "rl.critic is null, so it has no key 'x'"),
        ("rl..x", "'rl..x' is not a path; write keys joined by dots, such as rl.kl.beta"),
    ],
)
def test_paths_that_are_not_there(path, says):
    assert refused(get_path, CONFIG, path).startswith(says)
    assert not has_path(CONFIG, path)


def test_locate_gives_the_loc_that_models_report():
    assert locate(CONFIG, "rl.objective.value_clip.weight") == ("rl", "objective", 2, "weight")
    assert locate(CONFIG, "rl.objective[1].weight") == ("rl", "objective", 1, "weight")
    assert locate(CONFIG, "rl.kl.betta.x") == ("rl", "kl", "betta", "x")
    assert locate(CONFIG, "rl.critic.x") == ("rl", "critic", "x")
    assert "no item" in refused(locate, CONFIG, "rl.objective.zzz.weight")


def test_set_path():
    assert set_path({"a": {"b": 1}}, "a.b", 2) == {"a": {"b": 2}}
    assert set_path({}, "a.b.c", 1) == {"a": {"b": {"c": 1}}}
    assert set_path({"a": None}, "a.b", 1) == {"a": {"b": 1}}
    assert set_path({"a": "fixed"}, "a.b", 1) == {"a": {"name": "fixed", "b": 1}}
    assert set_path({"o": [{"name": "x"}, "y"]}, "o.y.w", 1) == {"o": [{"name": "x"}, {"name": "y", "w": 1}]}
    assert set_path({"o": [1, 2]}, "o.1", 9) == {"o": [1, 9]}
    assert set_path({}, "a", 1, create=False) == {"a": 1}
    assert refused(set_path, {"ab": {}}, "ac.b", 1, False).startswith("the spec has no key 'ac'")
    assert refused(set_path, {"a": 5}, "a.b", 1) == "a is 5, so it has no key 'b'"
    assert refused(set_path, {"o": []}, "o.0", 1).startswith("o has no item '0'")


def test_delete_path():
    assert delete_path({"a": {"b": 1, "c": 2}}, "a.b") == {"a": {"c": 2}}
    assert delete_path({"a": 1, "b": 2}, "a") == {"b": 2}
    assert delete_path({"o": [{"name": "x"}, "y"]}, "o.x") == {"o": ["y"]}
    assert delete_path({"o": [7, 8, 7]}, "o[2]") == {"o": [7, 8]}
    assert refused(delete_path, CONFIG, "rl.lr") == "rl has no key 'lr'; it has kl, advantage, objective, steps, critic"
    assert refused(delete_path, {}, "a") == "the spec has no key 'a'"


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)


NESTED = st.recursive(st.none(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=2), max_leaves=5)


@given(st.dictionaries(st.sampled_from("abc"), NESTED, max_size=2), PATHS, VALUES)
def test_what_is_set_can_be_read_and_deleted(data, path, value):
    before = deepcopy(data)
    after = set_path(data, path, value)
    assert get_path(after, path) == value
    assert get_path(after, ".".join(path)) == value
    assert data == before
    assert not containers(after) & (containers(data) | containers(value))
    assert not has_path(delete_path(after, path), path)
    assert set_path(after, path, value, create=False) == after


# Overrides


@pytest.mark.parametrize(
    ("text", "operation", "path", "values"),
    [
        ("rl.kl.beta=0.05", "set", ("rl", "kl", "beta"), (0.05,)),
        ("lr=1e-5", "set", ("lr",), (1e-5,)),
        ("a=no", "set", ("a",), ("no",)),
        ("a=true", "set", ("a",), (True,)),
        ("a=null", "set", ("a",), (None,)),
        ("a=~", "set", ("a",), (None,)),
        ("a=''", "set", ("a",), ("",)),
        ("a= 1 ", "set", ("a",), (1,)),
        ("a=x=y", "set", ("a",), ("x=y",)),
        ("a=two words", "set", ("a",), ("two words",)),
        ("a=it's", "set", ("a",), ("it's",)),
        ("a='it''s, so'", "set", ("a",), ("it's, so",)),
        (r'a="x\n\"y\", z"', "set", ("a",), ('x\n"y", z',)),
        ("a=http://host:1/x", "set", ("a",), ("http://host:1/x",)),
        ("a=[1, [2, x]]", "set", ("a",), ([1, [2, "x"]],)),
        ("a={b: 1, c: 'x,y'}", "set", ("a",), ({"b": 1, "c": "x,y"},)),
        ("rl.objective[0].lr=1", "set", ("rl", "objective", "0", "lr"), (1,)),
        ("rl.objective.my-package:clip.lr=1", "set", ("rl", "objective", "my-package:clip", "lr"), (1,)),
        ("+a.b=1", "add", ("a", "b"), (1,)),
        ("++a.b=1", "force", ("a", "b"), (1,)),
        ("~a.b", "delete", ("a", "b"), ()),
        # sweeps
        ("b=0,0.05,0.2", "set", ("b",), (0, 0.05, 0.2)),
        ("b=[1,2],[3],{c: 1, d: 2}", "set", ("b",), ([1, 2], [3], {"c": 1, "d": 2})),
        ("b='x,y', z", "set", ("b",), ("x,y", "z")),
        ("b=choice(a, [1,2], 'c,d')", "set", ("b",), ("a", [1, 2], "c,d")),
        ("b=choice(1)", "set", ("b",), (1,)),
        ("b=range(0,5)", "set", ("b",), (0, 1, 2, 3, 4)),
        ("b=range(3)", "set", ("b",), (0, 1, 2)),
        ("b=range(10,0,-4)", "set", ("b",), (10, 6, 2)),
        ("+b=1,2", "add", ("b",), (1, 2)),
        ("b='range(3)'", "set", ("b",), ("range(3)",)),
    ],
)
def test_parse_override(text, operation, path, values):
    parsed = parse_override(text)
    assert (parsed.operation, parsed.path, parsed.values) == (operation, path, values)
    assert [type(value) for value in parsed.values] == [type(value) for value in values]
    assert parsed.text == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write key=value"),
        ("rl.kl", "write key=value, or ~key"),
        ("=1", "'' is not a path"),
        ("~", "'' is not a path"),
        ("a..b=1", "'a..b' is not a path"),
        ("a b=1", "'a b' is not a path"),
        ("+++a=1", "'+a' is not a path"),
        ("--set a=1", "'--set a' is not a path"),
        ("../x=1", "'../x' is not a path"),
        ("~a=1", "write '~a', without a value"),
        ("a=", "a value is missing"),
        ("a=1,,2", "a value is missing"),
        ("a=1,", "a value is missing"),
        ("a=---", "a value is missing"),
        ("a=[1", "']' is missing"),
        ("a=[1}", "unexpected '}'"),
        ("a=1)", "unexpected ')'"),
        ("a='x", "the quote ' is never closed"),
        ("a=x #y", "put quotes around text with '#'"),
        ("a=b: c", "not one plain value"),
        ("a=- b", "not one plain value"),
        ("a=|", "not one plain value"),
        ("a=@b", "put quotes around it"),
        ("a=*b", "put quotes around"),
        ("a=!!python/name:os.system", "the tag"),
        ("a={b: 1, b: 2}", "already given"),
        ("a={b:1}", "lacks a space"),
        ("a={1: 2}", "the key 1 must be text"),
        ("a=1e999", "write .inf"),
        ("a=x\ny", "on one line"),
        ("a=\x07", "control character (U+0007)"),
        ("a=choise(1,2)", "there is no choise(…) (did you mean 'choice'?)"),
        ("a=choice(1,2),3", "choice(…) must stand alone"),
        ("a=choice()", "a value is missing"),
        ("a=range(0,1,0.1)", "range takes whole numbers"),
        ("a=range(0,true)", "range takes whole numbers"),
        ("a=range(0,5,0)", "range takes whole numbers"),
        ("a=range(1,2,3,4)", "range takes whole numbers"),
        ("a=range(5,0)", "this range is empty"),
        ("a=range(0,1000000000000)", "more than 10000 values"),
        ("a=" + "[" * 5000 + "]" * 5000, "levels deep"),
        ("a=" + "[" * 5000, "is missing"),
    ],
)
def test_overrides_that_are_refused(text, says):
    told = refused(parse_override, text)
    assert told.startswith("override '") or told.startswith('override "')
    assert says in told
    assert told.isprintable()
    assert len(told) < 300


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=30), st.text("ab=.,[]{}()'\"~+#:*&!|>% \t\n\\é", max_size=20).map("a=".__add__)))
def test_any_argument_is_an_override_or_one_sentence(text):
    try:
        assert parse_override(text).path
    except SpecError as error:
        told = str(error)
        assert told.startswith("override ")
        assert "\n" not in told and told.isprintable()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-05"),
        (0.2, "0.2"),
        (7, "7"),
        (True, "true"),
        (None, "null"),
        (math.inf, ".inf"),
        (-math.inf, "-.inf"),
        ("adaptive", "adaptive"),
        ("no", "no"),
        ("null", '"null"'),
        ("1e-5", '"1e-5"'),
        ("", '""'),
        ("a,b", '"a,b"'),
        ("<<", '"<<"'),
        ("a\nb", r'"a\nb"'),
        ("\x85\u2028\x1b", r'"\u0085\u2028\u001b"'),
        ([1, "x"], "[1, x]"),
        ({"b": 1, "1": {}}, '{b: 1, "1": {}}'),
    ],
)
def test_format_value(value, text):
    assert format_value(value) == text


TRICKY = ["<<", "null", "~", "1e-5", "x: y", "a,b", "#", "'", '"', "\\", "😀", "\ufeff", "it's"]
TEXTS = st.one_of(st.text(max_size=12), st.sampled_from(TRICKY))
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["set", "add", "force"]),
    st.lists(st.from_regex(r"[a-z_][a-z0-9_-]{0,5}", fullmatch=True), min_size=1, max_size=3),
    st.lists(PLAIN, min_size=1, max_size=3),
)
@example("set", ["a"], ["<<", {"<<": "<<"}])
@example("set", ["a"], ["range(3)", "(", "x'y"])
def test_parse_reads_what_format_writes(operation, path, values):
    override = Override(operation, tuple(path), tuple(values))
    again = parse_override(format_override(override))
    assert again == override
    assert repr(again.values) == repr(override.values)  # 1 is not 1.0, nor True


def test_parse_reads_what_format_writes_for_a_deletion():
    assert parse_override(format_override(Override("delete", ("a", "0")))) == Override("delete", ("a", "0"))


def test_a_sweep_comes_apart_into_points():
    sweep = parse_override("rl.kl.beta=0,0.05")
    assert [point.values for point in sweep.each()] == [(0,), (0.05,)]
    assert [point.text for point in sweep.each()] == ["rl.kl.beta=0", "rl.kl.beta=0.05"]
    assert parse_override("~a").each() == (parse_override("~a"),)
    assert parse_override("a=1e-5").each()[0].origin == "override a=1e-5"
    assert Override("set", ("a",), (1,)).origin == "override a=1"


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("rl.kl.beta=0.05", "rl.kl", {"name": "fixed", "beta": 0.05}),
        ("rl.kl=adaptive", "rl.kl", "adaptive"),
        ("rl.kl={name: adaptive, target: 6}", "rl.kl", {"name": "adaptive", "target": 6}),
        ("rl.kl={beta: 1}", "rl.kl", {"name": "fixed", "beta": 1}),
        ("++rl.kl={beta: 1}", "rl.kl", {"beta": 1}),
        ("rl.kl.name=adaptive", "rl.kl", {"name": "adaptive"}),
        ("rl.kl.name=fixed", "rl.kl", {"name": "fixed", "beta": 0.02}),
        ("rl.advantage.lam=0.9", "rl.advantage", {"name": "gae", "lam": 0.9}),
        ("rl.objective.ppo_clip.clip=0.1", "rl.objective.0", {"name": "ppo_clip", "clip": 0.1}),
        ("rl.objective[1].weight=0.1", "rl.objective.1", {"name": "entropy", "weight": 0.1}),
        ("rl.objective=[entropy]", "rl.objective", ["entropy"]),
        ("rl.new.deep=1", "rl.new", {"deep": 1}),
        ("+rl.new=1", "rl.new", 1),
        ("+rl.kl.target=6", "rl.kl", {"name": "fixed", "beta": 0.02, "target": 6}),
        ("~rl.kl.beta", "rl.kl", {"name": "fixed"}),
        ("~rl.objective.entropy", "rl.objective", [{"name": "ppo_clip", "clip": 0.2}, {"name": "value_clip", "weight": 0.5}]),
    ],
)
def test_apply_override(text, path, value):
    before = deepcopy(CONFIG)
    after = changed(text)
    assert get_path(after, path) == value
    assert before == CONFIG
    assert not containers(after) & containers(CONFIG)
    # nothing else has changed
    assert set_path(after, path, 0) == set_path(before, path, 0)


def test_the_name_of_the_spec_is_a_key_like_any_other():
    assert changed("name=other") == {**CONFIG, "name": "other"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("+rl.kl.beta=1", "override +rl.kl.beta=1: rl.kl.beta exists already; write rl.kl.beta=1 to change it"),
        ("~rl.kl.betta", "override ~rl.kl.betta: rl.kl has no key 'betta' (did you mean 'beta'?)"),
        (
            "~rl.objective.entropi",
            "override ~rl.objective.entropi: rl.objective has no item 'entropi' (did you mean 'entropy'?)",
        ),
        (
            "rl.objective.zzz.w=1",
            "override rl.objective.zzz.w=1: rl.objective has no item 'zzz'; there are ppo_clip, entropy, value_clip",
        ),
        ("++rl.steps.x=1", "override ++rl.steps.x=1: rl.steps is 10, so it has no key 'x'"),
        ("a=1,2", "override a=1,2: this is a sweep of 2 values; one is needed here"),
    ],
)
def test_overrides_that_do_not_apply(text, says):
    assert refused(changed, text) == says


@given(PATHS, VALUES)
def test_an_override_is_a_delta_of_one_path(path, value):
    base = {"a": {"b": {"name": "fixed", "c": 1}}, "b": "fixed"}
    override = Override("set", tuple(path), (value,))
    by_delta = merge(base, expand_dotted({".".join(path): deepcopy(value)}))
    assert apply_override(base, override) == by_delta
