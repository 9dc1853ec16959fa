"""Names in backticks in docstrings and comments of the package are names of something that exists.

A name counts as known if the module's own code has it, if the package defines it (module, function, class, member of a
class, setting of the configuration, choice of a group), or if Python does. A dotted name is followed: the member must be
one of that module or class, or the key one of the configuration.
"""

from __future__ import annotations

import ast
import builtins
import functools
import io
import keyword
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.evaluation.schema import EvalConfig
from alphapo_cli.generation.schema import GenerateConfig
from alphapo_cli.launch.schema import SweepConfig

ROOT = Path(__file__).parents[2]
PACKAGE, CONF = ROOT / "alphapo_cli", ROOT / "conf"
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# Of other libraries, in modules that do not call them by that name.
OTHERS = {"AutoTokenizer", "from_pretrained", "is_causal", "choice", "randint", "datasets"}

Members = dict[str, set[str]]


def docstrings(tree: ast.Module) -> dict[int, str]:
    """Docstrings by the id of their node."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, owners) and ast.get_docstring(node) is not None:
            (constant,) = ast.walk(node.body[0].value)  # type: ignore[attr-defined]
            found[id(constant)] = constant.value  # type: ignore[attr-defined]
    return found


def texts(source: str) -> Iterator[str]:
    yield from docstrings(ast.parse(source)).values()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def words(tree: ast.Module) -> set[str]:
    """Every word of a module's code, those of its strings included, but not of its docstrings."""
    skipped, found = docstrings(tree), set()
    for node in ast.walk(tree):
        for value in vars(node).values():
            if isinstance(value, str) and id(node) not in skipped:
                found |= set(re.findall(r"\w+", value))
    return found


def names_of(body: list[ast.stmt]) -> set[str]:
    """What a module or class defines: functions, classes, variables, and attributes that methods set on self."""
    found = set()
    for statement in body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        found |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(statement.name)
        if isinstance(statement, (ast.If, ast.Try)):
            found |= names_of(statement.body)
    for node in (n for statement in body for n in ast.walk(statement)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


@functools.cache
def package() -> tuple[Members, set[str]]:
    """(members of each module, package and class by its name, all names that anything defines)."""
    members: Members = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        name = file.parent.name if file.stem == "__init__" else file.stem
        members[name] |= names_of(tree.body)
        members[file.parent.name].add(file.stem)
        members[file.parent.parent.name].add(file.parent.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                members[node.name] |= names_of(node.body)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                members[name] |= {node.name}
    return members, set(members).union(*members.values())


def keys(cls: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(cls)
    for field in fields(cls):
        yield prefix + field.name
        if is_dataclass(hints[field.name]):
            yield from keys(hints[field.name], f"{prefix}{field.name}.")


@functools.cache
def settings() -> set[str]:
    """Dotted keys of the configuration, groups included."""
    found = {key for cls in (TrainConfig, GenerateConfig, EvalConfig, SweepConfig) for key in keys(cls)}
    for file in CONF.glob("objective/*/*.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        found |= {f"objective.{file.parent.name}.{key}" for key in content}
    return found


@functools.cache
def choices() -> set[str]:
    """Choices of settings and groups."""
    listed = {c for cls in (TrainConfig, GenerateConfig, EvalConfig, SweepConfig) for c in _choices(cls)}
    return listed | {name for file in CONF.rglob("*.yaml") for name in (file.stem, file.parent.name)}


def _choices(cls: Any) -> Iterator[str]:
    hints = get_type_hints(cls)
    for field in fields(cls):
        yield from field.metadata.get("choices", ())
        if is_dataclass(hints[field.name]):
            yield from _choices(hints[field.name])


def is_known(name: str, own: set[str]) -> bool:
    """Whether a name in a docstring of a module with the words `own` is the name of something."""
    members, defined = package()
    first, *rest = name.split(".")
    if not rest:
        python = keyword.iskeyword(name) or hasattr(builtins, name) or name in sys.stdlib_module_names
        return python or name in own | defined | choices() | OTHERS
    if name in settings() or f"objective.{name}" in settings():
        return True
    owner = first
    for member in rest:
        if member in members.get(owner, set()):
            owner = member
        elif owner in own and owner[0].islower() and member in defined:
            owner = member  # an attribute of an argument or a variable
        else:
            return False
    return True


def unknown(source: str) -> list[str]:
    own = words(ast.parse(source))
    quoted = (name for text in texts(source) for name in re.findall(r"`([^`\n]+)`", text))
    return [name for name in quoted if NAME.fullmatch(name) and not is_known(name, own)]


@pytest.mark.slow
def test_every_name_in_backticks_is_the_name_of_something() -> None:
    files = {file: file.read_text(encoding="utf-8") for file in sorted(PACKAGE.rglob("*.py"))}
    checked = [name for source in files.values() for text in texts(source) for name in re.findall(r"`[^`\n]+`", text)]
    assert len(checked) > 500
    found = {str(file.relative_to(ROOT)): names for file, source in files.items() if (names := unknown(source))}
    assert not found


def test_a_name_of_nothing_is_found() -> None:
    stale = '''
def once(limit: int) -> None:
    """`limit`, `once`, `box_cox`, `numerics.box_cox`, `StepContext.progress`, `trainer.max_steps`, `None`, `logistic`.

    Stale: `twice`, `numerics.box_cocks`, `StepContext.regress`, `trainer.steps_of_max`. No names: `a + b`, `[B, F]`.
    """
    # `limit` and `thrice`
'''
    assert unknown(stale) == ["twice", "numerics.box_cocks", "StepContext.regress", "trainer.steps_of_max", "thrice"]
