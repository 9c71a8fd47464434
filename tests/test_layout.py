"""The floors of the house: imports point down only, and files stay small enough to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("grpo_jax", "experiments", "configs")
FILES = sorted(path for name in OURS for path in (ROOT / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

JAX = ("jax", "jaxlib", "flax", "optax", "orbax", "chex")
# Lowest first: a module imports from its own floor and from those below.
FLOORS = (
    ("errors", "files", "registry", "statistics"),
    ("console",),
    ("types", "hosts", "sharding"),
    ("algorithms",),
    ("rewards",),
    ("tokenizers",),
    ("tasks",),
    ("models",),
    ("config",),
    ("runs",),
    ("engines", "environments"),
    ("rollout",),
    ("learning",),
    ("training",),
)
# Programs and reward workers start without JAX, and algorithms know no data.
WITHOUT = {
    "grpo_jax.errors": JAX,
    "grpo_jax.files": JAX,
    "grpo_jax.registry": JAX,
    "grpo_jax.rewards": (*JAX, "grain"),
    "grpo_jax.tasks": JAX,
    "grpo_jax.algorithms": ("grain",),
}
# Whose public functions are annotated, whole.
ANNOTATED = (
    "algorithms",
    "config",
    "console",
    "engines",
    "environments",
    "errors",
    "files",
    "hosts",
    "learning",
    "models",
    "rewards",
    "rollout",
    "runs",
    "sharding",
    "statistics",
    "tasks",
    "tokenizers",
    "training",
    "types",
)


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


def floor_of(name: str) -> int | None:
    """The floor of a module by its number; None for what is above or not ours."""
    parts = name.split(".")
    if parts[0] != "grpo_jax" or len(parts) == 1:
        return None
    return next((i for i, floor in enumerate(FLOORS) if parts[1] in floor), None)


def test_every_module_is_on_a_floor():
    names = {module_name(path) for path in FILES if within(module_name(path), "grpo_jax")}
    assert not {name for name in names - {"grpo_jax"} if floor_of(name) is None}


def test_imports_point_down_only():
    wrong = []
    for path in FILES:
        own = floor_of(module_name(path))
        for name in imports(path) if own is not None else ():
            theirs = floor_of(name)
            above = name.split(".")[0] in ("experiments", "configs")
            if above or (theirs is not None and theirs > own):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", WITHOUT)
def test_what_starts_without_jax_does_not_import_it(module):
    files = [path for path in FILES if within(module_name(path), module)]
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if any(within(name, other) for other in WITHOUT[module])
    ]
    assert not wrong, "\n".join(wrong)


def test_the_root_has_fewer_than_ten_modules():
    assert len(list((ROOT / "grpo_jax").glob("*.py"))) < 10


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


def public_functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the functions of a module's body, and methods, whose name has no leading underscore."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            yield node


def gaps(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """What a signature leaves open: parameters without an annotation, 'return', and 'Any'."""
    a = function.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    found = {x.arg: x.annotation for x in given if x.arg not in ("self", "cls")}
    found["return"] = function.returns
    names = {
        getattr(x, "id", None) or getattr(x, "attr", None)
        for annotation in found.values()
        if annotation
        for x in ast.walk(annotation)
    }
    return [name for name, x in found.items() if x is None] + ["Any"] * ("Any" in names)


def test_public_functions_are_annotated_and_take_no_any():
    files = [p for p in FILES if any(within(module_name(p), f"grpo_jax.{x}") for x in ANNOTATED)]
    assert len(files) > len(ANNOTATED)
    wrong = [
        f"{path.relative_to(ROOT)}: {function.name}: {', '.join(gaps(function))}"
        for path in files
        for function in public_functions(ast.parse(path.read_text()).body)
        if gaps(function)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "open_"),
    [
        ("def f(self, a: int, *, b: str) -> None: ...", []),
        ("def f(a, /, b, *c, d, **e): ...", ["a", "b", "d", "c", "e", "return"]),
        ("def f(a: dict[str, Any]) -> None: ...", ["Any"]),
        ("class A:\n  async def f(self) -> typing.Any: ...", ["Any"]),
        ("def _f(a): ...", None),
    ],
)
def test_every_gap_of_a_signature_is_seen(code, open_):
    functions = list(public_functions(ast.parse(code).body))
    assert [gaps(function) for function in functions] == ([] if open_ is None else [open_])


def test_only_hosts_asks_jax_for_hosts_and_brings_arrays_to_them():
    asked = ("device_get", "process_index", "process_count")
    users = {
        f"{path.relative_to(ROOT)}: {node.attr}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in asked
    }
    assert users == {"grpo_jax/hosts.py: device_get"}


def test_no_module_is_called_utils():
    assert not [path for path in [*FILES, *TESTS] if path.stem in ("utils", "util", "helpers")]
