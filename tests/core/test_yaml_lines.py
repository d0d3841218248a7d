"""YAML with lines. Expected values: the tables of YAML 1.2.2 (10.3.2), and lines and columns counted by hand."""

import math
import os
import time
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_lab.declaration.yaml_lines import load, loads, parse_value, spec_error, suggest
from rlhf_lab.errors import SpecError

SPEC = dedent("""\
    # an experiment
    base:
      rl:
        kl: {name: fixed, beta: 0.02}
        objective:
          - name: ppo_clip
            lr: 1e-5
          - entropy
    arms:
      plain: {}
      weak:
        rl.kl.beta: -1
    """)


def message(text, name="spec.yaml"):
    with pytest.raises(SpecError) as caught:
        loads(text, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E+3", 1000.0),
        ("1e5", 100000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.25", -0.25),
        ("-1e-3", -0.001),
        ("0", 0),
        ("-19", -19),
        ("+12", 12),
        ("012", 12),
        ("0o14", 12),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("+.Inf", math.inf),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("Null", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("NO", "NO"),
        ("tRUE", "tRUE"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("-0x10", "-0x10"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        (".", "."),
        ("1.2.3", "1.2.3"),
        ("١", "١"),
        ("'1'", "1"),
        ('"null"', "null"),
        ("'it''s'", "it's"),
        (r'"a\tb\u00e9"', "a\tbé"),
        (r'"\ud83d\ude00"', "😀"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
        ("{}", {}),
        ("[]", []),
        ("http://host:1/x", "http://host:1/x"),
    ],
)
def test_scalars_follow_the_core_schema(text, value):
    for read in (parse_value(text), loads(f"key: {text}\n").data["key"]):
        assert read == value
        assert type(read) is type(value)


def test_nan_and_block_text():
    assert math.isnan(loads("a: .nan").data["a"])
    assert loads("a: |\n  1\n  2\nb: >\n  x\n  y\n").data == {"a": "1\n2\n", "b": "x y\n"}


def test_data_is_plain_to_the_core():
    def kinds(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return {type(value)} | set().union(*map(kinds, inner))

    data = loads(SPEC + "all: [1, 1.5, 'y', true, null]\n").data
    assert kinds(data) == {dict, list, int, float, str, bool, type(None)}


# Places


@pytest.mark.parametrize(
    ("loc", "place"),
    [
        ((), "kl.yaml:2:1"),
        (("base",), "kl.yaml:2:1"),
        (("base", "rl", "kl"), "kl.yaml:4:5"),
        (("base", "rl", "kl", "name"), "kl.yaml:4:10"),
        (("base", "rl", "kl", "beta"), "kl.yaml:4:23"),
        (("base", "rl", "objective", 0), "kl.yaml:6:9"),
        (("base", "rl", "objective", 0, "lr"), "kl.yaml:7:9"),
        (("base", "rl", "objective", 1), "kl.yaml:8:9"),
        (("arms", "weak", "rl", "kl", "beta"), "kl.yaml:12:5"),
        # nearest ancestor
        (("base", "rl", "objective", 0, "clip"), "kl.yaml:6:9"),
        (("base", "rl", "objective", 7, "clip"), "kl.yaml:5:5"),
        (("base", "rl", "objective", 1, "weight"), "kl.yaml:8:9"),
        (("nowhere", "at", "all"), "kl.yaml:2:1"),
        (("arms", "weak", "rl", "kl"), "kl.yaml:11:3"),
    ],
)
def test_where(loc, place):
    assert loads(SPEC, "folder/kl.yaml").where(loc) == place


def test_has():
    document = loads(SPEC)
    assert document.has(("base", "rl", "objective", 1))
    assert document.has(("arms", "weak", "rl", "kl", "beta"))
    assert not document.has(("base", "rl", "objective", 2))
    assert not document.has(("base", "rl", "objective", "0"))
    assert not document.has(("base", "rl", "kl", "beta", "x"))


def test_a_dotted_key_is_found_beside_a_nested_one():
    document = loads("rl: {lr: 1}\nrl.kl: fixed\nrl.kl.beta: 2\n", "s.yaml")
    assert document.where(("rl", "kl", "beta")) == "s.yaml:3:1"
    assert document.where(("rl", "kl", "name")) == "s.yaml:2:1"
    assert document.where(("rl", "lr")) == "s.yaml:1:6"


def test_an_alias_is_copied_and_keeps_the_place_of_its_anchor():
    document = loads("a: &x\n  b: [1]\nc: *x\n", "s.yaml")
    assert document.data == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert document.data["a"]["b"] is not document.data["c"]["b"]
    assert document.where(("c",)) == "s.yaml:3:1"
    assert document.where(("c", "b")) == "s.yaml:2:3"


# What is accepted from editors


@pytest.mark.parametrize(
    "raw", [b"\xef\xbb\xbfa: 1\nb: x\n", b"a: 1\r\nb: x\r\n", b"a: 1\rb: x\r", b"a: 1\nb: x", b"---\na: 1\nb: x\n...\n"]
)
def test_bom_and_line_ends(tmp_path, raw):
    path = tmp_path / "s.yaml"
    path.write_bytes(raw)
    document = load(path)
    assert document.data == {"a": 1, "b": "x"}
    assert document.where(("b",)) == ("s.yaml:3:1" if raw.startswith(b"---") else "s.yaml:2:1")


# What is refused


@pytest.mark.parametrize(
    ("text", "start", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "spec.yaml:3:1: ", "'a' is already given in line 1"),
        ("a:\n  b: {c: 1, c: 2}\n", "spec.yaml:2:13: ", "'c' is already given in line 2"),
        ("a:\n\tb: 1\n", "spec.yaml:2:1: ", "use spaces"),
        ("a:\n  b: 1\n\tc: 2\n", "spec.yaml:3:1: ", "use spaces"),
        ("a: b: c\n", "spec.yaml:1:5: ", "put quotes around text that holds ': '"),
        ("a: 1\n b: 2\n", "spec.yaml:2:3: ", "align the key"),
        ("a:\n  b: 1\n c: 2\n", "spec.yaml:3:2: ", "indentation"),
        ("a: 1\nbeta:0.2\nc: 3\n", "spec.yaml:2:1: ", "write 'key: value'"),
        ("a: {beta:0.2}\n", "spec.yaml:1:5: ", "'beta:0.2' lacks a space"),
        ("a: [1, 2\nb: 3\n", "spec.yaml:1:4: ", "not closed"),
        ("a: {\n", "spec.yaml:1:5: ", "close them"),
        ("a: 1]\nb: ]\n", "spec.yaml:2:4: ", "unexpected ']'"),
        ("a: 'x\nb: 1\n", "spec.yaml:1:4: ", "never closed"),
        ('a: "x\nb: 1\n', "spec.yaml:1:4: ", "never closed"),
        ("a: 'b' c\n", "spec.yaml:1:8: ", "put quotes around the whole value"),
        ('a: "\\d"\n', "spec.yaml:1:6: ", "use single quotes"),
        ('a: "\\xzz"\n', "spec.yaml:1:7: ", "use single quotes"),
        ('a: "\\U99999999"\n', "spec.yaml: ", "not valid YAML"),
        ('a: "\\ud800"\n', "spec.yaml:1:4: ", "half a character"),
        ("a: @b\n", "spec.yaml:1:4: ", "put quotes around it"),
        ("a: %b\n", "spec.yaml:1:4: ", "put quotes around it"),
        ("a: *.py\n", "spec.yaml:1:4: ", "put quotes around"),
        ("a: - b\n", "spec.yaml:1:4: ", "line of its own"),
        ("a: !foo 1\n", "spec.yaml:1:4: ", "the tag '!foo' is not allowed"),
        ("a: !!python/object/apply:os.system ['true']\n", "spec.yaml:1:4: ", "python/object/apply:os.system' is not allowed"),
        ("a: !!float 1\n", "spec.yaml:1:4: ", "the tag '!!float' is not allowed"),
        ("!!map {a: 1}\n", "spec.yaml:1:1: ", "the tag '!!map' is not allowed"),
        ("%YAML 1.1\n---\na: no\n", "spec.yaml:1:1: ", "remove the line '%YAML 1.1'"),
        ("a: 1\n---\nb: 2\n", "spec.yaml:2:1: ", "second document"),
        ("a: &x 1\nb:\n  <<: *x\n", "spec.yaml:3:3: ", "merge keys"),
        ("a: *x\n", "spec.yaml:1:4: ", "refers to no anchor"),
        ("a: &x [1, *x]\n", "spec.yaml:1:11: ", "refers to itself"),
        ("a: &x 1\nb: &x [*x]\n", "spec.yaml:2:8: ", "refers to itself"),
        ("a: {1: 2}\n", "spec.yaml:1:5: ", "the key 1 must be text"),
        ("true: 2\n", "spec.yaml:1:1: ", "the key true must be text"),
        ("null: 2\n", "spec.yaml:1:1: ", "the key null must be text"),
        ("1e-5: 2\n", "spec.yaml:1:1: ", "the key 1e-5 must be text"),
        ("? [a]\n: 1\n", "spec.yaml:1:3: ", "must be plain text"),
        ("? {a: 1}\n: 1\n", "spec.yaml:1:3: ", "must be plain text"),
        (": 1\n", "spec.yaml:1:1: ", "no key before this ':'"),
        ("a: 1e999\n", "spec.yaml:1:4: ", "write .inf"),
        ("a: " + "9" * 5000 + "\n", "spec.yaml:1:4: ", "1000 digits"),
        ("a: 1\nb\x00c: 2\n", "spec.yaml:2:2: ", "control character (U+0000)"),
        ("a: \x1b[31mred\n", "spec.yaml:1:4: ", "control character (U+001B)"),
        ("", "spec.yaml: ", "empty"),
        ("# only words\n", "spec.yaml: ", "empty"),
        ("---\n", "spec.yaml: ", "empty"),
        ("\ufeff", "spec.yaml: ", "empty"),
        ("- a\n- b\n", "spec.yaml:1:1: ", "not a list"),
        ("\n\njust words\n", "spec.yaml:3:1: ", "not 'just words'"),
        ("42\n", "spec.yaml:1:1: ", "not 42"),
    ],
)
def test_refused_with_place_and_advice(text, start, says):
    told = message(text)
    assert told.startswith(start)
    assert says in told
    for jargon in ("scanning", "scalar", "token", "block end", "Event", "Traceback", "ruamel", "simple key"):
        assert jargon not in told


def test_messages_cannot_drive_a_terminal_or_flood_it():
    told = message('"\\e[31m": 1\n"\\e[31m": 2\n')
    assert "\x1b" not in told
    assert r"\x1b[31m" in told
    key = "? " + "x" * 5000 + "\n: 1\n"
    assert len(message(key + key)) < 200
    assert len(message("x" * 5000)) < 200


@pytest.mark.parametrize("deep", ["[" * 5000, "a: " + "[" * 5000, "{a: " * 5000, "- " * 5000, "a: " + "[" * 51 + "]" * 51])
def test_depth_is_bounded_and_fast(deep):
    start = time.perf_counter()
    assert "more than 50 levels deep" in message(deep)
    assert time.perf_counter() - start < 5


def test_depth_fifty_is_accepted():
    value = loads("a: " + "[" * 49 + "1" + "]" * 49).data["a"]
    for _ in range(49):
        (value,) = value
    assert value == 1


def test_alias_bomb_is_refused_and_a_few_aliases_are_not():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    told = message(bomb)
    # values so far, by line: 1 + 11 = 12, 12 + 111 = 123, + 1111 = 1234, + 11111 = 12345; the next alias alone is 11111
    assert told.startswith("spec.yaml:5:10: ")
    assert "more than 20000 values" in told
    chain = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 80))
    assert "levels deep" in message(chain)
    assert loads("a: &x {b: 1}\nc: [*x, *x, *x]\n").data["c"] == [{"b": 1}] * 3


def test_many_values_are_refused():
    assert "more than 20000 values" in message("a: [" + "1, " * 20_000 + "1]")


@pytest.mark.timeout(60)
def test_files_that_cannot_be_specs(tmp_path):
    def told(path):
        with pytest.raises(SpecError) as caught:
            load(path)
        return str(caught.value)

    (tmp_path / "kl_sweep.yaml").write_text("a: 1\n")
    assert told(tmp_path / "kl_swep.yaml").endswith("kl_swep.yaml (did you mean 'kl_sweep.yaml'?)")
    assert "there is no file" in told(tmp_path / "none" / "at_all.yaml")
    assert "is a folder" in told(tmp_path)
    assert "cannot read" in told(tmp_path / "kl_sweep.yaml" / "inner.yaml")
    assert "cannot read" in told(Path("nul\0byte.yaml"))
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert "cannot read" in told(loop)

    (tmp_path / "latin.yaml").write_bytes("a: 1\nb: é\n".encode("latin-1"))
    assert told(tmp_path / "latin.yaml") == "latin.yaml:2: byte 0xe9 is not UTF-8; save the file as UTF-8"
    (tmp_path / "wide.yaml").write_bytes("a: 1\n".encode("utf-16"))
    assert "is not UTF-8" in told(tmp_path / "wide.yaml")
    (tmp_path / "big.yaml").write_bytes(b"# " + b"x" * 5_000_000)
    assert "larger than 1 MB" in told(tmp_path / "big.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    assert "binary.yaml:" in told(tmp_path / "binary.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("a: 1\n")
    path.chmod(0)
    with pytest.raises(SpecError, match="cannot read"):
        load(path)


YAML_LIKE = st.text(st.sampled_from("ab1 \n\t:-,[]{}'\"#&*!|>%@`?.~<\\e\r\x00é😀\u2028\ufeff"), max_size=40)


@settings(max_examples=400, deadline=None)
@given(st.one_of(YAML_LIKE, st.text(max_size=40)))
@example("%YAML 1.3\n---\na: 1")
@example("!<x")
@example("%TAG ! x\n---\n!a b")
def test_any_text_is_a_document_or_one_sentence(text):
    try:
        assert isinstance(loads(text, "s.yaml").data, dict)
    except SpecError as error:
        told = str(error)
        assert told.startswith("s.yaml:")
        assert "\n" not in told and told.isprintable()
    try:
        parse_value(text)
    except SpecError as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_document_or_one_sentence(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(raw)
    try:
        assert isinstance(load(path).data, dict)
    except SpecError as error:
        assert str(error).startswith("fuzz.yaml:")


# Words


@pytest.mark.parametrize(
    ("word", "candidates", "hint"),
    [
        ("lrr", ["lr", "beta"], " (did you mean 'lr'?)"),
        ("learning_rate", ["lr"], ""),
        ("Beta", ["beta", "alpha"], " (did you mean 'beta'?)"),
        ("kl-controller", ["kl_controller"], " (did you mean 'kl_controller'?)"),
        ("target", [], ""),
        ("zzz", ["beta"], ""),
    ],
)
def test_suggest(word, candidates, hint):
    assert suggest(word, candidates) == hint


# pydantic's errors


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KL(Strict):
    name: str = "fixed"
    beta: float = Field(0.02, ge=0)
    placement: Literal["reward", "loss"] = "reward"


class Term(Strict):
    name: str
    lr: float = Field(1e-5, gt=0, lt=1)
    seed: Annotated[int, Field(ge=0)] | Literal["run"] = "run"
    layers: list[int] = Field(default_factory=lambda: [1], min_length=1)


class RL(Strict):
    policy: str
    kl: KL = KL()
    objective: list[Term] = []
    tag: str = Field("x", min_length=2, validate_default=False)
    int: bool = False
    betas: tuple[float, float] = (0.9, 0.95)


class Config(Strict):
    rl: RL

    @model_validator(mode="after")
    def agree(self):
        if self.rl.kl.beta > 100:
            raise ValueError("kl.beta and the reward cancel; choose beta below 100")
        return self


def fields_at(loc):
    if not loc:
        return list(Config.model_fields)
    models = {("rl",): RL, ("rl", "kl"): KL}
    return list(models.get(loc, Term).model_fields)


def told_by_models(text, data=None, prefix=("base",), **options):
    document = loads(dedent(text), "kl.yaml")
    if data is None:
        data = document.data[prefix[0]] if prefix else document.data
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(data)
    options.setdefault("fields_at", fields_at)
    return str(spec_error(document, prefix, caught.value, **options)).split("\n")


TERMS = """\
base:
  rl:
    policy: causal_lm
    objective:
      - name: ppo_clip
        {}
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lrr: 1e-5", "kl.yaml:6:9: unknown key 'lrr' in rl.objective[0] (did you mean 'lr'?)"),
        ("zzz: 1", "kl.yaml:6:9: unknown key 'zzz' in rl.objective[0]; it has name, lr, seed, layers"),
        ("lr: abc", "kl.yaml:6:9: rl.objective[0].lr must be a number, not 'abc'"),
        ("lr: [1]", "kl.yaml:6:9: rl.objective[0].lr must be a number, not a list"),
        ("lr: null", "kl.yaml:6:9: rl.objective[0].lr must be a number, not null"),
        ("lr: 0", "kl.yaml:6:9: rl.objective[0].lr must be > 0, not 0"),
        ("lr: 1.5", "kl.yaml:6:9: rl.objective[0].lr must be < 1, not 1.5"),
        ("seed: -1", "kl.yaml:6:9: rl.objective[0].seed must be ≥ 0 or 'run', not -1"),
        ("seed: rum", "kl.yaml:6:9: rl.objective[0].seed must be a whole number or 'run', not 'rum' (did you mean 'run'?)"),
        ("seed: 0.5", "kl.yaml:6:9: rl.objective[0].seed must be a whole number or 'run', not 0.5"),
        ("layers: []", "kl.yaml:6:9: rl.objective[0].layers must have at least 1 item, not 0"),
        ("layers: 3", "kl.yaml:6:9: rl.objective[0].layers must be a list, not 3"),
        ("layers: [1, x]", "kl.yaml:6:21: rl.objective[0].layers[1] must be a whole number, not 'x'"),
    ],
)
def test_errors_of_a_list_item(line, expected):
    assert told_by_models(TERMS.format(line)) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base:\n  rl: {}\n", "kl.yaml:2:3: rl needs a key 'policy'"),
        ("base: {}\n", "kl.yaml:1:1: base needs a key 'rl'"),
        ("base:\n  rl: {policy: a}\n  rk: 1\n", "kl.yaml:3:3: unknown key 'rk' in base; it has rl"),
        ("base:\n  rl: {policy: a, kl: 3}\n", "kl.yaml:2:19: rl.kl must be a mapping, not 3"),
        ("base: [1]\n", "kl.yaml:1:1: base must be a mapping, not a list"),
        (
            "base:\n  rl:\n    policy: a\n    kl: {placement: rewards}\n",
            "kl.yaml:4:10: rl.kl.placement must be one of 'reward', 'loss', not 'rewards' (did you mean 'reward'?)",
        ),
        ("base:\n  rl: {policy: a, kl: {beta: 200}}\n", "kl.yaml:1:1: kl.beta and the reward cancel; choose beta below 100"),
        ("base:\n  rl: {policy: a, tag: x}\n", "kl.yaml:2:19: rl.tag must have at least 2 characters, not 1"),
        ("base:\n  rl: {policy: a, int: maybe}\n", "kl.yaml:2:19: rl.int must be true or false, not 'maybe'"),
        ("base:\n  rl: {policy: a, betas: [0.9]}\n", "kl.yaml:2:19: rl.betas needs an item [1]"),
        ("base:\n  rl: {policy: 1}\n", "kl.yaml:2:8: rl.policy must be text, not 1"),
    ],
)
def test_errors_of_a_mapping(text, expected):
    assert told_by_models(text) == [expected]


def test_at_the_root_of_the_document():
    assert told_by_models("rl: {policy: a}\nr1: 2\n", prefix=()) == ["kl.yaml:2:1: unknown key 'r1'; it has rl"]
    assert told_by_models("x: 1\n", data={}, prefix=()) == ["kl.yaml:1:1: the spec needs a key 'rl'"]


def test_every_error_has_its_line_and_very_many_are_counted():
    lines = told_by_models("base:\n  rl:\n    kl: {beta: -1, bta: 2}\n    polcy: a\n")
    assert sorted(lines) == [
        "kl.yaml:2:3: rl needs a key 'policy'",
        "kl.yaml:3:10: rl.kl.beta must be ≥ 0, not -1",
        "kl.yaml:3:20: unknown key 'bta' in rl.kl (did you mean 'beta'?)",
        "kl.yaml:4:5: unknown key 'polcy' in rl (did you mean 'policy'?)",
    ]
    many = ", ".join(f"zz{n}: 1" for n in range(30))
    lines = told_by_models(f"base:\n  rl: {{policy: a, {many}}}\n")
    assert len(lines) == 13
    assert lines[-1] == "… and 18 more"


def test_a_unit_is_said():
    units = {("rl", "kl", "beta"): "nats"}
    lines = told_by_models("base:\n  rl: {policy: a, kl: {beta: -1}}\n", unit_at=units.get)
    assert lines == ["kl.yaml:2:24: rl.kl.beta must be ≥ 0 nats, not -1"]


def test_an_override_takes_the_place_of_file_and_line():
    text = "base:\n  rl: {policy: a, kl: {beta: 1}}\n"
    origins = {("rl", "kl", "beta"): "override rl.kl.beta=abc"}
    lines = told_by_models(text, {"rl": {"policy": "a", "kl": {"beta": "abc"}}}, origins=origins)
    assert lines == ["override rl.kl.beta=abc: rl.kl.beta must be a number, not 'abc'"]
    # the origin of a whole mapping holds for what is inside; the origin of another key does not
    origins = {("rl", "kl"): "override rl.kl={bta: 1}", ("rl", "policy"): "override rl.policy=a"}
    lines = told_by_models(text, {"rl": {"policy": "a", "kl": {"bta": 1}, "x": 1}}, origins=origins)
    assert sorted(lines) == [
        "kl.yaml:2:3: unknown key 'x' in rl; it has policy, kl, objective, tag, int, betas",
        "override rl.kl={bta: 1}: unknown key 'bta' in rl.kl (did you mean 'beta'?)",
    ]


def test_the_nearest_override_is_named():
    text = "base:\n  rl: {policy: a}\n"
    origins = {("rl", "kl"): "override rl.kl=fixed", ("rl", "kl", "beta"): "override rl.kl.beta=-1"}
    origins |= {("rl", "int"): "override rl.int=x"}
    lines = told_by_models(text, {"rl": {"policy": "a", "kl": {"beta": -1}, "int": "x"}}, origins=origins)
    assert lines == [
        "override rl.kl.beta=-1: rl.kl.beta must be ≥ 0, not -1",
        "override rl.int=x: rl.int must be true or false, not 'x'",
    ]


def test_an_override_that_made_a_mapping_on_its_way_is_named():
    text = "base:\n  rl: {policy: a}\n"
    origins = {("rl", "zzz", "deep"): "override rl.zzz.deep=1", ("rl", "objective", "0", "lr"): "override rl.objective[0].lr=1"}
    lines = told_by_models(text, {"rl": {"policy": 1, "objective": {"0": {"lr": 1}}, "zzz": {"deep": 1}}}, origins=origins)
    assert lines == [
        "kl.yaml:2:8: rl.policy must be text, not 1",
        "override rl.objective[0].lr=1: rl.objective must be a list, not a mapping",
        "override rl.zzz.deep=1: unknown key 'zzz' in rl; it has policy, kl, objective, tag, int, betas",
    ]


def test_the_delta_that_set_a_value_is_named():
    text = """\
    base:
      rl: {policy: a, kl: {beta: 1}}
    arms:
      weak:
        rl.kl.beta: -1
      odd:
        rl: {kl: {bta: 1}}
    """
    lines = told_by_models(text, {"rl": {"policy": "a", "kl": {"beta": -1}}}, overlays=[("arms", "weak")])
    assert lines == ["kl.yaml:5:5: rl.kl.beta must be ≥ 0, not -1"]
    lines = told_by_models(text, {"rl": {"policy": 1, "kl": {"bta": 1}}}, overlays=[("arms", "odd")])
    assert sorted(lines) == [
        "kl.yaml:2:8: rl.policy must be text, not 1",
        "kl.yaml:7:15: unknown key 'bta' in rl.kl (did you mean 'beta'?)",
    ]
