"""A sweep written out as a spec: defaults, presets and overrides in the text, the same runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from rlhf_lab.declaration.overrides import format_text, format_value
from rlhf_lab.declaration.resources import Resources
from rlhf_lab.declaration.run_config import validate_run
from rlhf_lab.declaration.sweep import Sweep, SweepFile
from rlhf_lab.registry import Registry

WIDTH = 120


def resolved_spec(sweep: Sweep, registry: Registry) -> str:
    """YAML. `base` is what all arms have in common with the first; each arm is what it has of its own."""
    arms = {arm: written_out(raw, registry) for arm, raw in sweep.arms.items()}
    first = next(iter(arms.values()))
    base = {key: value for key, value in first.items() if all(key in other for other in arms.values())}
    own = {key: getattr(sweep.file, key) for key in ("experiment", "description", "seeds", "max_runs")}
    resources = sweep.file.resources.model_dump(mode="json", exclude_defaults=True)
    if resources.get("launcher") == {"name": Resources.model_fields["launcher"].default}:
        del resources["launcher"]
    spec = {
        "experiment": own["experiment"],
        "description": own["description"],
        "base": base,
        "arms": {arm: difference(base, config) for arm, config in arms.items()},
        "axes": sweep.axes,
        "seeds": own["seeds"],
        "resources": resources,
        "max_runs": own["max_runs"],
    }
    kept = {key: value for key, value in spec.items() if key in ("experiment", "base") or value != default_of(key)}
    return "\n".join(lines(kept)) + "\n"


def default_of(key: str) -> Any:
    default = SweepFile.model_fields[key].default
    return {"base": {}} if key == "arms" else {} if key == "resources" else default


def written_out(raw: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """A configuration with all defaults; as it is where it is complete only with the value of an axis."""
    try:
        return validate_run(raw, registry).model_dump(mode="json")
    except ValidationError:
        return dict(raw)


def difference(base: Any, other: Any) -> Any:
    """The delta that makes `other` of `base`, which has no key that `other` lacks unless their names differ."""
    changed = {}
    for key, value in other.items():
        if key not in base:
            changed[key] = value
        elif value != base[key] or type(value) is not type(base[key]):
            changed[key] = difference(base[key], value) if may_be_merged(base[key], value) else value
    return changed


def may_be_merged(base: Any, other: Any) -> bool:
    both = isinstance(base, dict) and isinstance(other, dict)
    return both and base.get("name") == other.get("name") and base.keys() <= other.keys()


def lines(value: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """Block mappings; on one line what fits into it, but for the first two levels."""
    pad = "  " * indent
    for key, item in value.items():
        flow = f"{pad}{format_text(key)}: {format_value(item)}"
        if isinstance(item, dict) and item and (indent < 1 or len(flow) > WIDTH):
            yield f"{pad}{format_text(key)}:"
            yield from lines(item, indent + 1)
        elif isinstance(item, list) and item and len(flow) > WIDTH:
            yield f"{pad}{format_text(key)}:"
            yield from (f"{pad}- {format_value(part)}" for part in item)
        else:
            yield flow
