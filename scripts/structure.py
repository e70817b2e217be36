"""Print the figures by which the structure of the package is judged.

    python scripts/structure.py [--root PATH] [--play]

With --play, one play of this checkout is traced (an OpenAI-compatible agent and a classifier as the
reward), and every file of the package that runs between `search.ask` and the journal is listed.
"""

from __future__ import annotations

import argparse
import ast
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

ROOT = Path(__file__).parents[1]
NUM_FIRST_PLAYS = 2  # they open connections
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


def files_of_one_play() -> list[str]:
    """Return the files of the package in which a function runs for one play.

    From the choice of its action until it is in the journal, in a run that is under way; all that
    any of several plays visits.
    """
    from tests.server import serving
    from toa_trl import TOASampler

    package, files, num_asked, is_playing = f"{ROOT / 'toa_trl'}/", set[str](), 0, False

    def trace(frame: FrameType, event: str, _: object) -> None:
        nonlocal num_asked, is_playing
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        if event != "call" or not path.startswith(package):
            return
        name = path.removeprefix(package)
        if name == "search/base.py" and function == "ask":
            num_asked += 1
            is_playing = num_asked > NUM_FIRST_PLAYS
        elif function == "played":  # what an observer is told when the journal holds the play
            is_playing = False
        if is_playing:
            files.add(name)

    with serving(model=["a"]) as server, TemporaryDirectory() as folder:
        agent = {"name": "a", "engine": "openai", "model": "a", "base_url": server.url}
        reward = {"kind": "classifier", "model": str(ROOT / "toa_trl/demo/weights/reward_hackable")}
        sampler = TOASampler([agent], reward, search_params={"tau": 1.0}, budget=8, progress=False)
        before = sys.getprofile()
        threading.setprofile(trace)
        sys.setprofile(trace)
        try:
            sampler.sample(["How many apples are left?"], folder, export=False)
        finally:
            sys.setprofile(before)
            threading.setprofile(None)
    return sorted(files)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the figures of the package's structure.")
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout; default: this one")
    parser.add_argument("--play", action="store_true", help="trace one play, too")
    options = parser.parse_args()
    for name, value in figures(options.root).items():
        print(f"{name:44}{value:>8}")
    if options.play:
        sys.path.insert(0, str(ROOT))
        files = files_of_one_play()
        print(f"{'files of one play':44}{len(files):>8}")
        print("\n".join(f"  {name}" for name in files))


if __name__ == "__main__":
    main()
