"""The documentation is built as `bash scripts/docs` builds it: a warning is an error."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import reference_pages

ROOT = Path(__file__).parents[2]


@pytest.mark.heavy
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    reference_pages.main()  # as scripts/docs does; git ignores these pages
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
