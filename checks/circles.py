"""Tells of files that import each other, directly or by way of others: in every crate, and in the Python package.

``python checks/circles.py`` prints each circle and fails if there is one. ``--floors`` prints each file with what it
imports.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python/s3dcp"

Imports = dict[str, set[str]]


def without_tests(text: str) -> str:
    """Rust code before its unit tests, without comments."""
    text = re.sub(r"//[^\n]*", "", text)
    return re.split(r"#\[cfg\((?:all\()?test\b", text)[0]


def paths(tree: str) -> Iterator[str]:
    """Each path of a ``use``: ``a::{b, c::d}`` names ``a::b`` and ``a::c::d``."""
    head, brace, rest = tree.partition("{")
    if not brace:
        yield re.sub(r"\s+as\s+\w+", "", head).strip()
        return
    depth, part = 0, ""
    for character in rest[: rest.rindex("}")] + ",":
        if character == "," and depth == 0:
            if part.strip():
                yield from (head.strip() + path for path in paths(part))
            part = ""
            continue
        depth += (character == "{") - (character == "}")
        part += character


def rust_imports(crate: Path) -> Imports:
    """What each file of a crate names of the others."""
    sources = crate / "src"
    modules: dict[tuple[str, ...], Path] = {}
    for path in sources.rglob("*.rs"):
        name = path.relative_to(sources).with_suffix("").parts
        is_root = name in (("lib",), ("main",))
        modules[() if is_root else name[:-1] if name[-1] == "mod" else name] = path
    imports: Imports = {}
    for module, path in modules.items():
        text = without_tests(path.read_text())
        named = [used for tree in re.findall(r"\buse\s+([^;]+);", text) for used in paths(tree)]
        named += re.findall(r"\b(?:crate|super)(?:::\w+)+", re.sub(r"\buse\s+[^;]+;", "", text))
        found = set()
        for used in named:
            parts = tuple(part.strip() for part in used.split("::"))
            if parts[0] == "crate":
                parts = parts[1:]
            elif parts[0] in ("super", "self"):
                here = module
                while parts and parts[0] in ("super", "self"):
                    here = here[:-1] if parts[0] == "super" else here
                    parts = parts[1:]
                parts = here + parts
            elif module + parts[:1] in modules:
                parts = module + parts
            else:
                continue
            while parts not in modules:
                parts = parts[:-1]
            if parts != module:
                found.add(str(modules[parts].relative_to(ROOT)))
        imports[str(path.relative_to(ROOT))] = found
    return imports


def python_imports() -> Imports:
    """What each file of the package imports of it when it is imported."""
    imports: Imports = {}
    for path in PACKAGE.rglob("*.py"):
        folder = path.relative_to(PACKAGE).parent.parts
        found = set()
        for node in at_import(ast.parse(path.read_text()).body):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = folder[: len(folder) - node.level + 1] + tuple((node.module or "").split(".") if node.module else ())
            for alias in node.names:
                if PACKAGE.joinpath(*base, alias.name).with_suffix(".pyi").is_file():
                    continue  # native
                for parts in ((*base, alias.name), base):
                    target = file_of(parts)
                    if target is not None:
                        found.add(target)
                        break
        imports[str(path.relative_to(ROOT))] = found - {str(path.relative_to(ROOT))}
    return imports


def at_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, those of type checkers and of functions excepted."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from at_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from at_import([*node.body, *node.orelse, *node.finalbody])


def file_of(parts: tuple[str, ...]) -> str | None:
    """The file of a module of the package."""
    place = PACKAGE.joinpath(*parts)
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return str(path.relative_to(ROOT))
    return None


def circles(imports: Imports) -> list[list[str]]:
    """Groups of files of which each reaches each (Tarjan)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(file: str) -> None:
        order[file] = lowest[file] = len(order)
        stack.append(file)
        for other in sorted(imports[file]):
            if other not in order:
                visit(other)
                lowest[file] = min(lowest[file], lowest[other])
            elif other in stack:
                lowest[file] = min(lowest[file], order[other])
        if lowest[file] == order[file]:
            group: list[str] = []
            while not group or group[-1] != file:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for file in sorted(imports):
        if file not in order:
            visit(file)
    return found


def main() -> int:
    """Look through all crates and the package."""
    everything = [rust_imports(crate) for crate in sorted((ROOT / "crates").iterdir()) if (crate / "src").is_dir()]
    everything.append(python_imports())
    if "--floors" in sys.argv:
        for imports in everything:
            for file, others in sorted(imports.items()):
                print(file, "->", *sorted(Path(other).stem for other in others))
    found = [circle for imports in everything for circle in circles(imports)]
    for circle in found:
        print("These files import each other:", *circle, sep="\n  ")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
