"""Compare the functions of two commits: which were changed, added or removed, names of modules and imports apart.

    python scripts/same_code.py OLD NEW [FOLDER ...]

Kept while files move; removed when they have.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter


class _Plain(ast.NodeTransformer):
    """Drops what a move may change: imports, docstrings, text that names modules."""

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)


def functions_of(commit: str, folders: list[str]) -> Counter[tuple[str, str]]:
    """(name, syntax tree) of every function and method in the folders at a commit."""
    listed = subprocess.check_output(["git", "ls-tree", "-r", "--name-only", commit, *folders], text=True).split()
    found: Counter[tuple[str, str]] = Counter()
    for path in (path for path in listed if path.endswith(".py")):
        tree = ast.parse(subprocess.check_output(["git", "show", f"{commit}:{path}"], text=True))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[node.name, ast.dump(_Plain().visit(node))] += 1
    return found


def main() -> None:
    """Print what differs."""
    old, new, *folders = sys.argv[1:]
    before, after = (functions_of(commit, folders or ["model", "indexer", "service"]) for commit in (old, new))
    gone, made = before - after, after - before
    print(f"{before.total()} functions before, {after.total()} after, {(before & after).total()} identical")
    names_gone, names_made = Counter(name for name, _ in gone.elements()), Counter(name for name, _ in made.elements())
    print("changed:", ", ".join(sorted((names_gone & names_made).elements())) or "none")
    print("removed:", ", ".join(sorted((names_gone - names_made).elements())) or "none")
    print("added:", ", ".join(sorted((names_made - names_gone).elements())) or "none")


if __name__ == "__main__":
    main()
