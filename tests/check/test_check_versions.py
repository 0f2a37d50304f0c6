"""Installed versions against the range that works and against the tested ones."""

from __future__ import annotations

import pytest

from med3d_ext.tools.check import configs as module
from med3d_ext.tools.check.configs import check_versions


@pytest.fixture
def installed(monkeypatch):
    """Pretend that other versions are installed."""
    real = module.version

    def pretend(**faked):
        monkeypatch.setattr(module, "version", lambda name: faked.get(name) or real(name))

    return pretend


def test_what_is_installed_is_told_in_one_line(configs):
    (finding,) = check_versions(configs())
    assert finding.level == "ok"
    assert finding.text.startswith("monai ")


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(configs, edit):
    edit("metadata", lambda content: content["required_packages_version"].update({"no-such-package": "1.2.3"}))
    first, second = check_versions(configs())
    assert (first.level, second.level) == ("error", "ok")
    assert "`pip install no-such-package==1.2.3`" in first.text


@pytest.mark.parametrize(("package", "have"), [("torch", "2.7.1"), ("monai", "1.5.0"), ("monai", "1.7.0")])
def test_a_version_outside_the_range_is_an_error(package, have, configs, installed):
    installed(**{package: have})
    (finding,) = [finding for finding in check_versions(configs()) if finding.level != "ok"]
    assert (finding.level, f"got {have}" in finding.text) == ("error", True)


def test_an_older_version_than_the_tested_one_is_a_warning_and_a_newer_one_is_not(configs, installed):
    installed(numpy="1.26.4", scipy="99.0")
    found = list(check_versions(configs()))
    assert [finding.level for finding in found] == ["warning", "ok"]
    assert "numpy 1.26.4 is older" in found[0].text
