"""The floors of the house: imports point down only, and files stay small enough to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("grpo_jax", "experiments", "configs")
FILES = sorted(path for name in OURS for path in (ROOT / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

ABOVE = ("grpo_jax.trainer", "experiments", "configs")
LEARNING = ("grpo_jax.learner", "grpo_jax.sft", "grpo_jax.evaluation", *ABOVE)
JAX = ("jax", "jaxlib", "flax", "optax", "orbax", "chex")
# What the modules on the left must not import. "a!b" takes b out of a.
FORBIDDEN = {
    "grpo_jax": ABOVE,
    "grpo_jax.algorithms": ("grpo_jax!grpo_jax.algorithms!grpo_jax.types", "grain"),
    "grpo_jax.models": (
        *("grpo_jax.algorithms", "grpo_jax.rewards", "grpo_jax.tasks", "grpo_jax.rollout"),
        *LEARNING,
    ),
    "grpo_jax.rewards": ("grpo_jax!grpo_jax.rewards", *JAX, "grain"),
    "grpo_jax.tasks": ("grpo_jax!grpo_jax.tasks!grpo_jax.rewards", *JAX),
    "grpo_jax.rollout": LEARNING,
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, inside functions too."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def is_forbidden(name: str, rule: str) -> bool:
    module, *allowed = rule.split("!")
    return within(name, module) and not any(within(name, other) for other in allowed)


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_imports_point_down_only(floor):
    files = [path for path in FILES if within(module_name(path), floor)]
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if any(is_forbidden(name, rule) for rule in FORBIDDEN[floor])
        and module_name(path) not in ABOVE  # the trainer itself
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_loader_imports_grain_among_the_tasks():
    tasks = [path for path in FILES if within(module_name(path), "grpo_jax.tasks")]
    users = {path.name for path in tasks if any(within(x, "grain") for x in imports(path))}
    assert users == {"loader.py"}


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import jax.numpy as jnp, flax", ["jax.numpy", "flax"]),
        ("from grpo_jax import trainer", ["grpo_jax.trainer"]),
        ("def f():\n  from ..rollout import sampler", ["grpo_jax.rollout.sampler"]),
        ("from . import loader", ["grpo_jax.tasks.loader"]),
    ],
)
def test_every_way_to_import_is_seen(tmp_path, monkeypatch, code, names):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "grpo_jax" / "tasks" / "some.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert list(imports(path)) == names


def test_no_module_is_longer_than_420_lines():
    lengths = {str(path): len(path.read_text().splitlines()) for path in [*FILES, *TESTS]}
    assert not {path: n for path, n in lengths.items() if n > 420}


def test_no_function_is_longer_than_55_lines():
    lengths = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert not {name: n for name, n in lengths.items() if n > 55}


def test_no_module_is_called_utils():
    assert not [path for path in [*FILES, *TESTS] if path.stem in ("utils", "util", "helpers")]
