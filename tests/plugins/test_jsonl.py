"""JSON-lines data: what comes out of good files, and the one sentence that bad ones get."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from rlhf_lab.contracts import Demonstration, Ranking
from rlhf_lab.errors import DataError
from rlhf_lab_plugins.data.jsonl import JSONLines

RANKING = {"prompt": "p", "completions": ["a", "b", "c"], "ratings": [1, -0.5, 1]}
GOOD = {
    "prompts": {"prompt": "p"},
    "demonstrations": {"prompt": "p", "completion": "c"},
    "comparisons": {"prompt": "p", "chosen": "a", "rejected": "b"},
    "rankings": RANKING,
    "pretraining": {"text": "t"},
}
READ_BY = {part: "rankings" if part == "comparisons" else part for part in GOOD}


@pytest.fixture
def data(tmp_path):
    """`data(rankings={...one line of train...}, …)`: a dataset whose files hold the given lines (dicts or raw bytes)."""

    def make(preferences="both", **parts):
        given = {}
        for part, lines in parts.items():
            lines = lines if isinstance(lines, list) else [lines]
            raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
            (tmp_path / f"{part}.jsonl").write_bytes(b"\n".join(raw) + b"\n")
            given[part] = {"train": f"{part}.jsonl"}
        return opened(JSONLines(preferences=preferences, **given), tmp_path)

    return make


def opened(component, folder):
    return component.open(SimpleNamespace(spec_folder=folder))


def test_each_part_in_its_format(data):
    dataset = data(**GOOD)
    assert dataset.prompts("train") == ["p"]
    assert dataset.demonstrations("train") == [Demonstration("p", "c")]
    assert dataset.rankings("train") == [Ranking("p", ("a", "b", "c"), (1.0, -0.5, 1.0)), Ranking("p", ("a", "b"), (1.0, 0.0))]
    assert dataset.pretraining("train") == ["t"]
    assert dataset.tokenizer() is None


@pytest.mark.parametrize(("preferences", "sizes"), [("both", [3, 2]), ("rankings", [3]), ("comparisons", [2])])
def test_preferences_choose_the_files(data, preferences, sizes):
    dataset = data(preferences, rankings=GOOD["rankings"], comparisons=GOOD["comparisons"])
    assert [len(ranking.completions) for ranking in dataset.rankings("train")] == sizes


def test_preferences_without_their_file():
    with pytest.raises(ValidationError, match="no rankings file is given"):
        JSONLines(preferences="rankings", comparisons={"train": "x"})


def test_unknown_split_key_and_missing_train():
    with pytest.raises(ValidationError, match="test"):
        JSONLines(prompts={"train": "x", "test": "y"})
    with pytest.raises(ValidationError, match="train"):
        JSONLines(prompts={"validation": "x"})


def test_splits_have_files_of_their_own(tmp_path):
    (tmp_path / "a").write_text('{"prompt": "1"}\n')
    (tmp_path / "b").write_text('{"prompt": "2"}\n{"prompt": "3"}')
    dataset = opened(JSONLines(prompts={"train": "a", "validation": "b"}), tmp_path)
    assert (dataset.prompts("train"), dataset.prompts("validation")) == (["1"], ["2", "3"])


def test_a_part_without_validation_file(data):
    dataset = data(**GOOD)
    assert dataset.demonstrations("validation") == dataset.rankings("validation") == dataset.pretraining("validation") == []
    with pytest.raises(DataError, match="no prompts for validation: add `validation: FILE`"):
        dataset.prompts("validation")


@pytest.mark.parametrize("part", ["prompts", "demonstrations", "rankings", "pretraining"])
def test_a_part_that_is_not_there_says_what_to_add(tmp_path, part):
    dataset = opened(JSONLines(), tmp_path)
    with pytest.raises(DataError, match=f"add `{part}: "):
        getattr(dataset, part)("train")


def test_unknown_split(data):
    with pytest.raises(DataError, match="no split 'test'"):
        data(**GOOD).prompts("test")


def test_absolute_and_relative_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "p").write_text('{"prompt": "here"}')
    for name in (str(tmp_path / "p"), "../p"):
        assert opened(JSONLines(prompts={"train": name}), tmp_path / "sub").prompts("train") == ["here"]


def test_byte_order_mark_carriage_returns_blank_lines_and_unicode(data):
    dataset = data(prompts=[b'\xef\xbb\xbf{"prompt": "caf\xc3\xa9"}\r', b"", b'{"prompt": "\\u2028", "more": 1}'])
    assert dataset.prompts("train") == ["café", "\u2028"]


def test_a_line_separator_inside_a_string_does_not_split_the_line(data):
    """U+2028 and U+0085 are legal in JSON strings; `str.splitlines` would cut there."""
    text = "a\u2028b\u0085c"
    assert data(prompts=json.dumps({"prompt": text}, ensure_ascii=False).encode()).prompts("train") == [text]


BAD = {
    "broken line": ("prompts", b'{"prompt": "p"', "not a line of JSON in UTF-8"),
    "not UTF-8": ("prompts", b'{"prompt": "\xff"}', "not a line of JSON in UTF-8"),
    "too deep": ("prompts", b'{"prompt": ' + b"[" * 100_000, "not a line of JSON in UTF-8"),
    "a list": ("prompts", b'["p"]', "one JSON object, not a list"),
    "null": ("prompts", b"null", "one JSON object, not null"),
    "half a surrogate": ("prompts", rb'{"prompt": "\ud83d"}', "surrogate"),
    "messages": ("prompts", {"prompt": [{"role": "user"}]}, "'prompt' must be a string, not a list"),
    "a number": ("pretraining", {"text": 3}, "'text' must be a string, not a number"),
    "a boolean": ("pretraining", {"text": True}, "'text' must be a string, not a boolean"),
    "K = 1": ("rankings", {"prompt": "p", "completions": ["a"], "ratings": [1]}, "at least 2 completions, and this one has 1"),
    "K = 0": ("rankings", {"prompt": "p", "completions": [], "ratings": []}, "at least 2 completions, and this one has 0"),
    "all ties": ("rankings", RANKING | {"ratings": [2, 2.0, 2]}, "all 3 ratings are equal"),
    "lengths": ("rankings", RANKING | {"ratings": [1, 2]}, "3 completions but 2 ratings"),
    "NaN": ("rankings", b'{"prompt": "p", "completions": ["a", "b"], "ratings": [NaN, 1]}', "must be a finite number"),
    "infinity": ("rankings", b'{"prompt": "p", "completions": ["a", "b"], "ratings": [1e999, 1]}', "must be a finite number"),
    "huge": ("rankings", RANKING | {"ratings": [10**400, 1, 2]}, "must be a finite number"),
    "rating text": ("rankings", RANKING | {"ratings": ["1", 2, 3]}, "each of 'ratings' must be a number, not a string"),
    "rating boolean": ("rankings", RANKING | {"ratings": [True, 2, 3]}, "must be a number, not a boolean"),
    "completion number": ("rankings", RANKING | {"completions": ["a", 2, "c"]}, "'completions' must be a string, not a number"),
    "completions text": ("rankings", RANKING | {"completions": "abc"}, "'completions' must be a list, not a string"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named(data, tmp_path, case):
    part, line, message = BAD[case]
    dataset = data(**{part: [GOOD[part], GOOD[part], line]})
    with pytest.raises(DataError) as caught:
        getattr(dataset, READ_BY[part])("train")
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / part}.jsonl:3: ") and message in said and "\n" not in said


@pytest.mark.parametrize(("part", "field"), [(part, field) for part, record in GOOD.items() for field in record])
def test_a_missing_field_is_named_with_its_line(data, tmp_path, part, field):
    short = {key: value for key, value in GOOD[part].items() if key != field}
    dataset = data(**{part: [GOOD[part], short]})
    with pytest.raises(DataError) as caught:
        getattr(dataset, READ_BY[part])("train")
    assert str(caught.value).startswith(f"{tmp_path / part}.jsonl:2: field {field!r} is missing")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(DataError, match="p is empty"):
        opened(JSONLines(prompts={"train": "p"}), tmp_path).prompts("train")


def test_a_missing_file_and_a_folder(tmp_path):
    for name in ("nowhere.jsonl", "."):
        component = JSONLines(prompts={"train": name})
        with pytest.raises(DataError, match="cannot read the data file"):
            opened(component, tmp_path).prompts("train")
        with pytest.raises(DataError, match="cannot read the data file"):
            component.fingerprint(tmp_path)


def test_only_what_is_asked_for_is_read(data):
    dataset = data(prompts=GOOD["prompts"], demonstrations=b"broken")
    assert dataset.prompts("train") == ["p"]


def test_what_is_returned_can_be_changed_without_changing_the_data(data):
    dataset = data(**GOOD)
    dataset.prompts("train").clear()
    assert dataset.prompts("train") == ["p"]


def test_fingerprint_follows_the_bytes(tmp_path):
    (tmp_path / "p").write_bytes(b'{"prompt": "1"}\n')
    component = JSONLines(prompts={"train": "p"})
    before = component.fingerprint(tmp_path)
    assert before == {"prompts.train": hashlib.blake2b(b'{"prompt": "1"}\n', digest_size=16).hexdigest()}
    (tmp_path / "p").write_bytes(b'{"prompt": "1"} \n')
    assert component.fingerprint(tmp_path) != before
