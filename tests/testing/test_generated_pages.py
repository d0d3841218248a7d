"""The generated pages are current: plugins/README.md, LAWS.md and ESTIMATORS.md."""

from pathlib import Path

import pytest
from micro_spec import lab

from rlhf_lab.cli.plugin_table import estimators_page, laws_page, page, source
from rlhf_lab.registry import discover

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
AGAIN = "run: rlhf-lab plugins docs --out plugins"


@pytest.fixture(scope="module")
def registry():
    return discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})


def test_the_catalogue_is_current(registry):
    assert (PLUGINS / "README.md").read_text(encoding="utf-8") == page(registry), AGAIN


def test_the_table_of_estimators_is_current(registry):
    assert (PLUGINS / "ESTIMATORS.md").read_text(encoding="utf-8") == estimators_page(registry), AGAIN


def test_the_list_of_laws_is_current():
    assert (PLUGINS / "LAWS.md").read_text(encoding="utf-8") == laws_page(), AGAIN


def test_every_component_has_one_row_and_each_parameter_its_default(registry):
    text = page(registry)
    for registration in registry.registrations():
        assert text.count(f"\n| `{registration.name}` |") >= 1
    assert "`beta` = 0.02" in text and "Ouyang et al. 2022, C.4 (β = 0.02)" in text


def test_a_source_is_what_stands_behind_the_word():
    assert source("One line.\n\nMore. Source: Ziegler et al. 2019,\n2.2; code.\n\nElse.") == "Ziegler et al. 2019, 2.2; code"
    assert source("One line.") == ""


def test_without_a_folder_the_catalogue_is_printed(registry):
    assert lab("plugins", "docs").stdout == page(registry)
