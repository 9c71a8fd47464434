"""What README.md and docs/ promise: presets, tasks, rewards, fields and flags that exist, and links
that lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

import grpo_jax
from grpo_jax import algorithms, tasks
from grpo_jax.config import defaults
from grpo_jax.config.checks import flatten
from grpo_jax.rewards.registry import EXTRAS, REWARDS
from grpo_jax.tasks.templates import TEMPLATES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
PROGRAMS = sorted(set(ROOT.glob("experiments/*.py")) - set(ROOT.glob("experiments/__*")))
FLAGS_ONLY = ("seeds", "stages")  # flags that programs adopt


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def rows(text: str) -> list[str]:
    """The names in the first cells of the tables."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_pages_list_every_preset_task_template_and_reward():
    listed = re.findall(r"^\| `(\w+)` \| .*arxiv", page("algorithms.md"), re.MULTILINE)
    assert sorted(listed) == sorted(algorithms.PRESETS)
    known = {*tasks.TASKS, *TEMPLATES, *REWARDS, *EXTRAS, "accuracy"}
    names = rows(page("tasks_and_rewards.md"))
    assert known == {name for name in names if ":" not in name and name != "template"}


def test_the_api_has_every_public_name():
    described = re.findall(
        r"^\.\. auto(?:function|class|exception):: grpo_jax\.(\w+)$", page("api.md"), re.MULTILINE
    )
    assert sorted(described) == sorted(grpo_jax.__all__)


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_readme_shows_code_that_the_docs_have_and_tests_run():
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown and all(code in page("tasks_and_rewards.md") for code in shown)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_names_only_fields_that_exist(path):
    fields = set(re.findall(r"--config\.([\w.]+)=", path.read_text()))
    # A task takes options of its own, and so does a chat template; a reward is named by its path.
    free = ("task.", "chat_template_kwargs.", "rewards.")
    ours = {name for name in fields if not name.startswith(free)}
    assert ours - {"x", "a.b"} <= flatten(defaults().to_dict()).keys()


def flags_of(path: Path) -> set[str]:
    """The flags that a program defines, or adopts from stages.py and seeds.py."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = set()
    for call in calls:
        if re.match(r"flags\.DEFINE_", ast.unparse(call.func)):
            names.add(ast.literal_eval(call.args[0]))
        elif ast.unparse(call.func) == "flags.adopt_module_key_flags":
            names |= flags_of(path.with_name(f"{ast.unparse(call.args[0])}.py"))
    return names


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_programs_has_every_program_and_flag(path):
    if path.stem in FLAGS_ONLY:
        assert flags_of(path)
        return
    (row,) = re.findall(rf"^\| `experiments\.{path.stem}` .*$", page("programs.md"), re.MULTILINE)
    assert flags_of(path) <= set(re.findall(r"--(\w+)", row))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)", path.read_text())
    assert not [x for x in links if "://" not in x and not (path.parent / x).exists()]
