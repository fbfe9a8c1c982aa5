"""Hurried commands and files: each is composed, or refused in one line that names the key; nothing else happens."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


def _fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


fuzz = _fuzz()


@pytest.mark.parametrize(
    ("count", "seed"), [(80, 0), pytest.param(2000, 1, marks=pytest.mark.slow)], ids=["some", "two thousand"]
)
def test_is_composed_or_refused_in_one_line(count: int, seed: int, tmp_path: Path) -> None:
    outcomes = [(case, fuzz.verdict(case, tmp_path)) for case in fuzz.cases(count, seed)]
    assert [(case, said) for case, said in outcomes if said not in ("passed", "refused")] == []
    assert {said for _, said in outcomes} == {"passed", "refused"}


def test_the_verdict_sees_a_mistake_that_goes_through(tmp_path: Path) -> None:
    assert fuzz.verdict(fuzz.Case("right", ("seed=3",), refused=True), tmp_path) == "went through"
    assert "does not name" in fuzz.verdict(fuzz.Case("wrong", ("seed=-1",), True, "teacher.momentum"), tmp_path)
