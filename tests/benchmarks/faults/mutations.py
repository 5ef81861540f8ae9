"""Mutation testing: insert small faults into a copy of `app`, one at a time, and check that a test fails.

    python -m tests.benchmarks.faults.mutations --count 10 --seed 1

A fault changes a comparison, swaps `and` and `or`, negates a condition, adds 1 to a number, or returns None. The tests
of the same module run first, then all of tests/app. Goal: no fault survives.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

SECONDS = 1200  # a test that hangs counts as a failure
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


@dataclass(frozen=True)
class Fault:
    path: Path  # relative to the root of the repository
    node: int  # the index of the node in the order of ast.walk
    line: int

    def apply(self) -> tuple[str, str, str]:
        """The source of the module with the fault, and the changed node before and after."""
        tree = ast.parse((ROOT / self.path).read_text())
        node = list(ast.walk(tree))[self.node]
        before = ast.unparse(node)
        mutate(node)
        return ast.unparse(tree), before, ast.unparse(node)


def mutate(node: ast.AST) -> bool:
    """Change the node in place if its kind allows a fault. Returns whether it did."""
    match node:
        case ast.Compare(ops=[operator]):
            node.ops = [COMPARISONS[type(operator)]()]
        case ast.BoolOp(op=operator):
            node.op = ast.And() if isinstance(operator, ast.Or) else ast.Or()
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            node.test = ast.UnaryOp(ast.Not(), test)
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int(value) | float(value)):
            node.value = value + 1
        case ast.Return(value=ast.expr()):
            node.value = None
        case _:
            return False
    return True


def faults() -> Iterator[Fault]:
    for path in sorted((ROOT / "app").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for index, node in enumerate(ast.walk(tree)):
            if mutate(node):
                yield Fault(path.relative_to(ROOT), index, getattr(node, "lineno", 0))


def tests_of(path: Path) -> Path:
    """The path of the module's tests: tests/ mirrors the package."""
    return Path("tests") / path.parent / f"test_{path.name}"


def killed_by(folder: Path, fault: Fault) -> str | None:
    """The first test that fails, or None."""
    first = tests_of(fault.path)
    for target in ([first] if (folder / first).exists() else []) + [Path("tests/app")]:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", str(target)]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"{target} did not end"
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return lines[0].partition(" ")[2].partition(" - ")[0] if lines else f"{target} ended with an error"
    return None


def copy(folder: Path) -> None:
    """Copy app and tests into the folder, and link the other files."""
    for entry in ROOT.iterdir():
        if entry.name in ("app", "tests"):
            shutil.copytree(entry, folder / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not entry.name.startswith(".") or entry.name == ".venv-dev":
            (folder / entry.name).symlink_to(entry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    everything = list(faults())
    chosen = random.Random(options.seed).sample(everything, options.count)
    print(f"{options.count} of {len(everything)} faults, seed {options.seed}")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        for fault in chosen:
            target, sound = folder / fault.path, (ROOT / fault.path).read_text()
            text, before, after = fault.apply()
            target.write_text(text)
            test = killed_by(folder, fault)
            target.write_text(sound)
            survivors += test is None
            lines = zip(before.splitlines(), after.splitlines(), strict=False)
            was, became = next((pair for pair in lines if pair[0] != pair[1]), (before, after))
            print(f"{fault.path}:{fault.line}: `{was.strip()}` became `{became.strip()}`")
            print(f"    {'killed by ' + test if test else 'SURVIVED'}", flush=True)
    print(f"{survivors} of {len(chosen)} survived (goal: none)")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
