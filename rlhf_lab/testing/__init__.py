"""Laws for every plugin: a package that adds components is tested by three lines.

    # tests/test_laws.py
    from rlhf_lab.testing import laws

    test_laws = laws("name-of-the-distribution")

Every component that the distribution registers is held against the laws of its kind (`LAWS`), at its defaults and at other
settings, found from the types and bounds of its parameters. Where nothing can be guessed a parameter says what to try:
`param(..., "the pattern", examples=["w1"])`, or `settings` says it from outside. A law that a component breaks for good
reason is listed: `expected_failures={"kl_controller.mine": {"it_reaches_its_target": "has a dead zone"}}`; it must then fail.

Without pytest: `rlhf-lab plugins check PATH`, or `verdicts(Component)`.
"""

from rlhf_lab.testing.catalogue import LAWS, Verdict, cases, laws, laws_of, verdicts

__all__ = ["LAWS", "Verdict", "cases", "laws", "laws_of", "verdicts"]
