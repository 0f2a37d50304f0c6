"""Findings: one line each, and a check that breaks down is a finding, too."""

from __future__ import annotations

from med3d_ext.errors import InputError
from med3d_ext.tools.check import error, ok, warning
from med3d_ext.tools.check.verb import counts, gather


def test_a_finding_is_one_line_with_its_level_and_topic_in_columns():
    assert str(ok("ids", "all found")) == "ok       ids       all found"
    assert str(warning("versions", "old")) == "warning  versions  old"


def test_the_last_line_counts():
    lines = [ok("a", "x"), ok("a", "y"), warning("b", "z"), error("c", "w")]
    assert counts(lines) == "2 ok, 1 warning, 1 error"
    assert counts([]) == "0 ok, 0 warnings, 0 errors"


def broken(fault):
    yield ok("data", "the first file")
    raise fault


def test_what_a_check_found_before_it_broke_down_is_kept():
    found = gather("data", broken, InputError("'x.nii' is damaged; restore it."))
    assert found == [ok("data", "the first file"), error("data", "'x.nii' is damaged; restore it.")]


def test_an_input_error_inside_monais_wrapping_is_told_alone():
    wrapped = RuntimeError("Failed to instantiate component")
    wrapped.__cause__ = InputError("give a folder.")
    assert gather("data", broken, wrapped)[-1] == error("data", "give a folder.")


def test_any_other_breakdown_is_one_line_with_its_reason():
    wrapped = RuntimeError("Failed to instantiate\ncomponent x.")
    wrapped.__cause__ = ZeroDivisionError("division by zero")
    assert gather("data", broken, wrapped)[-1].text == "Failed to instantiate component x. division by zero"
    assert gather("data", broken, KeyError("epochs"))[-1].text == "'epochs'"
    assert gather("data", broken, ValueError())[-1].text == "ValueError"
