"""The documentation is built as `bash scripts/docs` builds it: a warning is an error."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import command_help

ROOT = Path(__file__).parents[2]


@pytest.mark.heavy
def test_the_site_is_built_without_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_help.main()
    page = ROOT / "docs/reference/commands.md"  # as scripts/docs writes it; git ignores it
    page.write_text(capsys.readouterr().out, encoding="utf-8")
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (built.returncode, built.stderr) == (0, "")
    assert "toa-trl synthesize" in (site / "reference/commands.html").read_text(encoding="utf-8")
    assert "TOASampler" in (site / "reference/api.html").read_text(encoding="utf-8")
