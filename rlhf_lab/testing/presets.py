"""The laws of presets."""

from __future__ import annotations

import json

from rlhf_lab.contracts import Preset
from rlhf_lab.testing.sentences import require


def it_says_what_it_is(preset: Preset) -> None:
    """Its text says in a sentence which publication or system it repeats."""
    require(len(preset.doc.split()) >= 3, f"its text is {preset.doc!r}")


def each_value_has_a_source(preset: Preset) -> None:
    """Each value stands at a dotted path, is JSON, and has a source."""
    require(preset.values, "it sets nothing")
    for path, (value, source) in preset.values.items():
        require(all(part for part in path.split(".")), f"{path!r} is no dotted path")
        require(json.loads(json.dumps(value)) == value or isinstance(value, tuple), f"{path} is {value!r}, which is no JSON")
        require(isinstance(source, str) and len(source.split()) >= 1, f"{path} has no source")


LAWS = (it_says_what_it_is, each_value_has_a_source)
