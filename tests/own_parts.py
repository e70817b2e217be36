"""The examples of docs/own_parts.md, as modules."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

DOCUMENT = Path(__file__).parents[1] / "docs" / "own_parts.md"
EXAMPLE = re.compile(r"^## (\w+)$.*?^```python\n# (\w+)\.py\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def examples() -> dict[str, tuple[str, str]]:
    """Return the name of the module and its code, by section."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return {section: (module, code) for section, module, code in EXAMPLE.findall(text)}


def load_example(section: str) -> str:
    """Make the example of a section importable, and return its "module:name"."""
    name, code = examples()[section]
    if name not in sys.modules:
        module = ModuleType(name)
        exec(compile(code, f"{DOCUMENT}:{section}", "exec"), module.__dict__)
        sys.modules[name] = module
    return f"{name}:My{section}"
