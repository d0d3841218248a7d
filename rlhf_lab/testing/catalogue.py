"""Which laws hold for which kind, and holding components against them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.contracts import Preset
from rlhf_lab.errors import LabError, PluginError
from rlhf_lab.registry import Registry, discover
from rlhf_lab.testing import (
    advantages,
    every_kind,
    kl_controllers,
    objectives,
    policies,
    preference_losses,
    presets,
    reward_losses,
    rewards,
    worlds,
)
from rlhf_lab.testing.settings import built
from rlhf_lab.testing.settings import settings as settings_of

Law = Callable[[Any], None]
ONCE = frozenset({"each_parameter_counts", "it_reads_all_that_it_needs", "it_reaches_its_target"})
Settings = Mapping[str, Sequence[Mapping[str, Any]]]
ExpectedFailures = Mapping[str, Mapping[str, str]]

LAWS: Mapping[str, tuple[Law, ...]] = {
    "kl_controller": kl_controllers.LAWS,
    "advantage": advantages.LAWS,
    "objective": objectives.LAWS,
    "reward_loss": reward_losses.LAWS,
    "preference_loss": preference_losses.LAWS,
    "reward": rewards.LAWS,
    "policy": policies.POLICY_LAWS,
    "critic": policies.CRITIC_LAWS,
    "data": worlds.DATA_LAWS,
    "model": worlds.MODEL_LAWS,
    "template": worlds.TEMPLATE_LAWS,
    "stage": worlds.STAGE_LAWS,
}


def laws_of(component: Any) -> tuple[Law, ...]:
    """The laws that hold for a component: those of every kind, and those of its own."""
    return presets.LAWS if isinstance(component, Preset) else (*every_kind.LAWS, *LAWS.get(component.kind, ()))


def statement(law: Law) -> str:
    """What a law says, in one sentence."""
    return inspect.cleandoc(law.__doc__ or "").split("\n\n")[0].replace("\n", " ")


class Verdict(NamedTuple):
    """What came of holding one component against one law; `seen` is None where it holds."""

    component: str
    law: str
    expected: str
    seen: str | None


def hold(component: Any, law: Law, given: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Raises AssertionError, saying with which parameters and what was seen, where a component breaks a law.

    Of the settings that the kit finds, those that the component refuses by an error for its user are passed over.
    """
    for place, one in enumerate(subjects(component, law, given)):
        try:
            law(one)
        except AssertionError as error:
            raise AssertionError(f"{described(one)}: {error}") from None
        except Exception as error:
            if place and given is None and isinstance(error, LabError):
                continue
            raise AssertionError(f"{described(one)}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def subjects(component: Any, law: Law, given: Sequence[Mapping[str, Any]] | None) -> list[Any]:
    """The component in the settings in which a law is tried; some laws look beyond one setting by themselves."""
    if isinstance(component, Preset):
        return [component]
    if law in every_kind.OF_THE_CLASS:
        return [component.model_construct()]
    try:
        found = settings_of(component) if given is None else [built(component, fields) for fields in given]
    except (PluginError, ValueError) as error:
        raise AssertionError(str(error)) from None
    return found[:1] if law.__name__ in ONCE else found


def described(component: Any) -> str:
    """Kind and name, and the parameters that are not at their default."""
    if isinstance(component, Preset):
        return f"preset {component.name!r}"
    moved = component.model_dump(exclude_defaults=True, exclude={"name"})
    with_ = ", ".join(f"{key} = {value!r}" for key, value in moved.items() if key != "name")
    return f"{component.kind} {component.name!r}" + (f" with {with_}" if with_ else "")


def verdicts(component: Any, given: Sequence[Mapping[str, Any]] | None = None) -> Iterator[Verdict]:
    """Every law of the component's kind, held or not."""
    for law in laws_of(component):
        seen = None
        try:
            hold(component, law, given)
        except AssertionError as error:
            seen = str(error)
        yield Verdict(f"{component.kind} {component.name}", law.__name__, statement(law), seen)


# ---------------------------------------------------------------------------------------------------------------
# pytest


class Case(NamedTuple):
    """One component and one law, as pytest sees them."""

    component: Any
    law: Law
    settings: Sequence[Mapping[str, Any]] | None
    expected_failure: str | None

    @property
    def id(self) -> str:
        return f"{self.component.kind}.{self.component.name}-{self.law.__name__}"


def cases(
    registry: Registry,
    distribution: str,
    settings: Settings | None = None,
    expected_failures: ExpectedFailures | None = None,
    elsewhere: Mapping[str, str] | None = None,
) -> list[Case]:
    """Each component of a distribution with each law of its kind. Raises PluginError where it names what is not there."""
    mine = [r.component for r in registry.registrations() if r.distribution == distribution]
    if not mine:
        broken = "; ".join(f"{b.plugin}: {b.reason}" for b in registry.broken if b.distribution == distribution)
        raise PluginError(f"distribution {distribution!r} registers no component{f' ({broken})' if broken else ''}")
    settings, expected_failures, elsewhere = settings or {}, expected_failures or {}, elsewhere or {}
    known = {f"{c.kind}.{c.name}": {law.__name__ for law in laws_of(c)} for c in mine}
    wrong = [key for key in (*settings, *expected_failures, *elsewhere) if key not in known]
    wrong += [
        f"{key}-{law}" for key, failures in expected_failures.items() for law in failures if law not in known.get(key, ())
    ]
    if wrong:
        raise PluginError(f"{distribution!r} has no {', '.join(wrong)}")
    return [
        Case(c, law, settings.get(key), expected_failures.get(key, {}).get(law.__name__))
        for c in mine
        if (key := f"{c.kind}.{c.name}")
        for law in (every_kind.OF_THE_CLASS if key in elsewhere else laws_of(c))
    ]


def laws(
    distribution: str,
    *,
    files: Sequence[Path] = (),
    settings: Settings | None = None,
    expected_failures: ExpectedFailures | None = None,
    elsewhere: Mapping[str, str] | None = None,
) -> Any:
    """A test function for pytest: `test_laws = laws("my-distribution")`.

    `files` are plugin files, whose distribution is called by the file's name. `settings` maps "kind.name" to the parameters to
    try, in place of those that the kit finds; `expected_failures` maps it to laws that must fail, with the reason;
    `elsewhere` names components that need what the kit's world has not (a server, a file), with where they are tested: only
    what they say of themselves is looked at here.
    """
    import pytest

    found = cases(discover(files), distribution, settings, expected_failures, elsewhere)
    marks = [[] if c.expected_failure is None else [pytest.mark.xfail(reason=c.expected_failure, strict=True)] for c in found]

    @pytest.mark.parametrize("case", [pytest.param(c, id=c.id, marks=m) for c, m in zip(found, marks, strict=True)])
    def test_laws(case: Case) -> None:
        hold(case.component, case.law, case.settings)

    return test_laws
