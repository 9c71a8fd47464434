"""Configs from Python files."""

import importlib.util
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from grpo_jax.config import defaults
from grpo_jax.config.checks import flatten, unknown_field, wrong_type
from grpo_jax.errors import UsageError, described, one_line
from grpo_jax.files import JsonMapping


def load_config_file(path: str) -> ConfigDict:
    """Return what `get_config()` of the Python file `path` returns.

    `path` may end in ':text', which is handed to `get_config`. Raises UsageError on one line if
    the file is missing or broken, naming the line at fault.
    """
    name, *argument = path.split(":", 1)
    module = load_module(name)
    if not callable(getattr(module, "get_config", None)):
        raise UsageError(f"config file {name}: it has no function get_config")
    config = _run_config(name, lambda: module.get_config(*argument))
    if not isinstance(config, ConfigDict):
        raise UsageError(f"config file {name}: get_config() must return a ConfigDict: {config!r}")
    return config


def load_config(file: Path | str = "", changes: JsonMapping | None = None) -> ConfigDict:
    """The config of a Python file, or the defaults, with changes: {"rollout.group": 4}.

    file  as --config takes it: "configs/quick.py", or "file.py:text"; "" = the defaults

    UsageError for a file that is not one, and for an unknown field or a value of another type.
    """
    config = load_config_file(str(file)) if file else defaults()
    for name, value in (changes or {}).items():
        *groups, leaf = name.split(".")
        group: Any = config
        for key in groups:
            group = group.get(key) if isinstance(group, ConfigDict) else None
        try:
            if not isinstance(group, ConfigDict):
                raise KeyError(name)
            group[leaf] = value
        except KeyError as error:
            raise UsageError(unknown_field(name, flatten(config.to_dict()))) from error
        except TypeError as error:
            kind = ConfigDict if isinstance(group[leaf], ConfigDict) else group.get_type(leaf)
            raise UsageError(wrong_type(name, value, kind)) from error
    return config


def load_module(name: str) -> ModuleType:
    """The module that the Python file `name` makes; UsageError as of `load_config_file`."""
    spec = importlib.util.spec_from_file_location("config_file", name)
    loader = spec.loader if spec else None
    if not Path(name).is_file() or spec is None or loader is None:
        shown = name if name else "''"
        why = "a folder" if Path(name).is_dir() else "of another kind"
        there = f", but {shown} is {why}" if name and Path(name).exists() else f": {shown}"
        raise UsageError(f"--config: no Python file{there}; valid: configs/<name>.py")
    module = importlib.util.module_from_spec(spec)
    _run_config(name, lambda: loader.exec_module(module))
    return module


def _run_config(name: str, part: Callable[[], Any]) -> Any:
    """What a part of the config file `name` gives; UsageError for whatever it raises."""
    try:
        return part()
    except SystemExit as error:
        raise UsageError(
            f"config file {name}{_where(error, name)}: it calls sys.exit({error.code!r}); "
            "valid: get_config() returns the config"
        ) from error
    except Exception as error:  # a config file is a program, which may raise anything
        raise UsageError(f"config file {name}{_where(error, name)}: {_explained(error)}") from error


def _where(error: BaseException, path: str) -> str:
    here = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    here += [error.lineno] if isinstance(error, SyntaxError) else []
    return f", line {here[-1]}" if here and here[-1] else ""


def _explained(error: Exception) -> str:
    """Return the error in words; ml_collections prints the whole config for an unknown field."""
    missing = re.search(r'[Kk]ey "(\w+)" does not exist|^[\'"]?(\w+)[\'"]?$', str(error))
    if isinstance(error, AttributeError) and missing:
        return unknown_field(missing[1] or missing[2], flatten(defaults().to_dict()))
    if isinstance(error, OSError):
        return described(error)
    return f"{type(error).__name__}: {one_line(error)}"
