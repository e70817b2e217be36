"""Print the figures by which the structure of the package is judged.

    python scripts/structure.py [--root PATH] [--play]

With --play, one play is traced (an OpenAI-compatible agent and a classifier as the reward), and
every file of the package that runs between one `search.ask` and the next is listed.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINKS = {"recipes", "accelerate_configs"}  # links to the folders beside the package
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def python_files(package: Path) -> list[Path]:
    """Return the modules of a package, without those behind links."""
    paths = package.rglob("*.py")
    return sorted(path for path in paths if path.relative_to(package).parts[0] not in LINKS)


def top_level(package: Path) -> tuple[list[str], list[str]]:
    """Return the names of the modules and of the packages directly inside a package."""
    modules = sorted(path.stem for path in package.glob("*.py"))
    packages = sorted(path.parent.name for path in package.glob("*/__init__.py"))
    return modules, [name for name in packages if name not in LINKS]


def part_of(path: Path, package: Path) -> str:
    """Return the top-level module or package that a file belongs to."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield every imported module; for `from package import name` also package.name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_arrows(root: Path) -> set[tuple[str, str]]:
    """Return (from, to) of every import between top-level parts and from recipes."""
    package = root / "toa_trl"
    modules, packages = top_level(package)
    known, arrows = {*modules, *packages}, set[tuple[str, str]]()
    files = [(part_of(path, package), path) for path in python_files(package)]
    files += [(f"recipes/{path.name}", path) for path in (root / "recipes").glob("*.py")]
    for source, path in files:
        for module in imported_modules(ast.parse(path.read_text(encoding="utf-8"))):
            name, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if name == package.name and target in known and target != source:
                arrows.add((source, target))
    return arrows


def is_nested(node: ast.AST) -> bool:
    """Return whether a node is a comprehension with several loops, or with another one inside."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    inner = (child for child in ast.walk(node) if child is not node)
    return len(node.generators) > 1 or any(isinstance(child, COMPREHENSIONS) for child in inner)


def figures(root: Path) -> dict[str, object]:
    """Return the figures of the checkout at `root`."""
    package = root / "toa_trl"
    modules, packages = top_level(package)
    texts = [path.read_text(encoding="utf-8") for path in python_files(package)]
    lines = [line for text in texts for line in text.splitlines()]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    lengths = sorted(len(line) for line in lines if line.strip())
    thousands = len(lines) / 1000
    num_nested = sum(is_nested(node) for node in nodes)
    num_walrus = sum(isinstance(node, ast.NamedExpr) for node in nodes)
    return {
        "loose modules, with __init__ and __main__": len(modules),
        "packages": len(packages),
        "import arrows, recipes included": len(import_arrows(root)),
        "lines of Python": len(lines),
        "nested comprehensions per 1,000 lines": round(num_nested / thousands, 2),
        "walrus operators per 1,000 lines": round(num_walrus / thousands, 2),
        "95th percentile of line lengths": lengths[int(0.95 * len(lengths))],
        "longest line": lengths[-1],
        "longest file": max(len(text.splitlines()) for text in texts),
    }


# Runs in a process of its own with the checkout as its working directory, so that it can trace any
# checkout.
TRACED_PLAY = """
import sys, threading
from pathlib import Path

sys.path.insert(0, ".")
from tests.server import serving

package = str(Path("toa_trl").resolve())
files, asked = set(), 0

def trace(frame, event, argument):
    global asked
    name = frame.f_code.co_filename
    if event != "call" or not name.startswith(package):
        return
    relative = name[len(package) + 1:]
    if relative.startswith("search/") and frame.f_code.co_name == "ask":
        asked += 1
    if asked == 2:
        files.add(relative)

threading.setprofile(trace)
from toa_trl import TOASampler

with serving(model=["a"]) as server:
    agent = {"name": "a", "engine": "openai", "model": "a", "base_url": server.url}
    reward = {"kind": "classifier", "model": "toa_trl/demo/weights/reward_hackable"}
    sampler = TOASampler([agent], reward, search_params={"tau": 1.0}, budget=4, progress=False)
    sys.setprofile(trace)
    sampler.sample(["How many apples are left?"])
    sys.setprofile(None)
import json
print(json.dumps(sorted(files)))
"""


def files_of_one_play(root: Path) -> list[str]:
    """Return the files of the package that run during one play."""
    done = subprocess.run(
        [sys.executable, "-c", TRACED_PLAY], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: the traced play failed:\n{done.stderr}")
    files: list[str] = json.loads(done.stdout.splitlines()[-1])
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the figures of the package's structure.")
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout; default: this one")
    parser.add_argument("--play", action="store_true", help="trace one play, too")
    options = parser.parse_args()
    for name, value in figures(options.root).items():
        print(f"{name:44}{value:>8}")
    if options.play:
        files = files_of_one_play(options.root)
        print(f"{'files of one play':44}{len(files):>8}")
        print("\n".join(f"  {name}" for name in files))


if __name__ == "__main__":
    main()
