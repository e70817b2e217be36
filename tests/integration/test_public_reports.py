"""Inputs made after public bug reports: none of them is a fault here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.conftest import ENVIRONMENT, ROOT

INPUTS = ROOT.parent / "shared/cases/public_reports"

pytestmark = pytest.mark.skipif(not INPUTS.is_dir(), reason=f"{INPUTS} is not there")


@pytest.mark.heavy
def test_no_input_is_a_fault() -> None:
    command = [sys.executable, "-m", "tests.public_reports"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok") for line in lines)
    assert [line for line in lines if line.startswith("FAULT")] == []
