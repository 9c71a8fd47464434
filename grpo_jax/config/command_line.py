"""The command line of an experiment: flags, config files, and errors on one line."""

import ctypes
import itertools
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from grpo_jax.config import resolve
from grpo_jax.config.checks import INT_MAX, flatten, unknown_field, wrong_type
from grpo_jax.config.load import load_config_file
from grpo_jax.config.reward_flags import check_weights, set_weights, take_weights
from grpo_jax.console import interrupts
from grpo_jax.console.reporting import reporting
from grpo_jax.errors import UsageError, nearest, one_line

FLAGS = flags.FLAGS

# glibc's M_MMAP_MAX = 0, M_TRIM_THRESHOLD = never, M_ARENA_MAX = 1 (malloc.h, mallopt(3)).
_KEEP_FREED = ((-4, 0), (-1, -1), (-8, 1))

# The flags of all programs that take a path, or several with commas between.
_PATHS = ("config", "workdir", "out", "gguf", "model", "against", "judges", "device")

_TRITON = "--xla_gpu_enable_triton_gemm"

_TAKES_ANY = "chat_template_kwargs."  # a group whose fields only the chat template knows

_NO_CONFIG = "--config=configs/<name>.py is needed: the experiment to run"


def define_flags(
    with_config: bool = True,
    argv: list[str] | None = None,
    flag_values: flags.FlagValues = FLAGS,
    with_workdir: bool = True,
) -> None:
    """Define --config and --workdir; absl reads `argv` (default: the process's) for overrides."""
    if with_config:
        config_flags.DEFINE_config_file(
            "config",
            help_string="the experiment: configs/<name>.py; any field: --config.a.b=value",
            sys_argv=argv,
            flag_values=flag_values,
            lock_config=False,  # a config locks itself, except for the groups that take new fields
            accept_new_attributes=True,
        )
    if with_workdir:
        flags.DEFINE_string(
            "workdir",
            None,
            "the run's folder (default: runs/<config name>)",
            flag_values=flag_values,
        )
    for name in [*["config"] * with_config, *["workdir"] * with_workdir]:
        flag_values.register_key_flag_for_module(sys.argv[0], flag_values[name])  # for --help


def parse_flags(argv: list[str], flag_values: flags.FlagValues = FLAGS) -> list[str]:
    """Parse the command line, setting the flags, and return what is left of it.

    Raises UsageError on one line for an unknown flag or field and for a wrong type or file.
    """
    argv[:] = _at_home(argv)  # which ml_collections reads again
    weights = take_weights(argv)
    given = _options(argv)
    path = dict(given).get("config")
    fields = [(k.removeprefix("config."), v) for k, v in given if k.startswith("config.")]
    kinds, config = {}, ConfigDict()
    if (fields or weights) and path is None:
        raise UsageError(_NO_CONFIG)
    if path is not None and "config" in flag_values:
        config = load_config_file(path)
        check_weights(weights, config)
        for name, _ in fields:
            if isinstance(value := _get(config, name), ConfigDict):
                example = nearest(name, [f"{name}.{key}" for key in value] or [f"{name}.<name>"])
                raise UsageError(f"config.{name} is a group of fields; set one: config.{example}")
            _check_name(config, name, dict(given))
        kinds = {name: _field_type(config, name) for name, _ in fields}
    _check_empty([(flag_values[name], value) for name, value in given if name in flag_values])
    left = _parsed(argv, flag_values, {name: kinds.get(name) for name, _ in fields})
    own = [name for name, _ in given if not name.startswith("config.")]  # a config's: `checks`
    _check_numbers(flag_values[name] for name in own if name in flag_values)
    set_weights(flag_values, weights)
    _drop_other_tasks_options(flag_values, config, dict(fields))
    return left


def _parsed(
    argv: list[str], flag_values: flags.FlagValues, kinds: dict[str, type | None]
) -> list[str]:
    """What absl leaves of the command line. kinds  of the config's fields that it sets, by name"""
    # Warnings only, unless the user says otherwise: Orbax reports every save.
    quiet = ["--verbosity=-1"] if "verbosity" in flag_values else []
    try:
        return flag_values([argv[0], *quiet, *argv[1:]])
    except (ValueError, LookupError) as error:  # ml_collections' of a name that it cannot read
        if isinstance(error, UsageError):
            raise
        raise UsageError(one_line(error)) from error
    except flags.Error as error:
        if missing := re.search(r"flag --(\w+)=None: Flag --\w+ must have a value", str(error)):
            flag = flag_values[missing[1]]
            raise UsageError(f"--{flag.name}=... is needed: {flag.help}") from error
        for name, value in _options(argv):
            field = name.removeprefix("config.")
            kind = kinds.get(field)
            if kind and str(error).startswith(f"flag --{name}={value}:"):
                raise UsageError(wrong_type(field, value, kind)) from error
        raise UsageError(one_line(error)) from error


def _check_name(config: ConfigDict, name: str, given: dict[str, str]) -> None:
    """UsageError for a field that the config does not have, unless it is an option of its task.

    Of a field of a task, or of one within it, the error names that task's options.
    """
    flat = flatten(config.to_dict())
    if name in flat:
        return
    if name.startswith(_TAKES_ANY):
        if "." in (key := name.partition(".")[2]):
            group = name.partition(".")[0]
            raise UsageError(f"config.{name}: {key!r} is no name; valid: config.{group}.<name>")
        return
    from grpo_jax.tasks import TASKS, task_options

    *groups, option = name.split(".")
    within = ".".join(groups)
    options = _get(config, within) if groups[:1] == ["task"] else None
    if not isinstance(options, ConfigDict):
        raise UsageError(unknown_field(name, flat))
    task = given.get(f"config.{within}.name") or options.get("name", groups[-1])
    if task not in TASKS and ":" not in task:
        raise UsageError(unknown_field(name, flat))
    try:
        known = task_options(task)
    except ValueError as error:
        raise UsageError(f"config.{within}.name: {error}") from error
    if known is None:  # it takes what a library's data sets take, and says which
        return
    known = [*known, *(("share", "rewards") if groups[-2:-1] == ["parts"] else ())]
    if option not in known:
        raise UsageError(
            f"unknown option config.{name}; the closest valid one is config.{within}."
            f"{nearest(option, known)}; task {task!r} takes {', '.join(known)}"
        )


def _drop_other_tasks_options(
    flag_values: flags.FlagValues, config: ConfigDict, given: dict[str, str]
) -> None:
    """Leave out what the config file sets for a task that a flag replaces by another.

    Options that the other one takes too stay; a line on stderr names those that go.
    """
    for name, task in given.items():
        within, _, leaf = name.rpartition(".")
        before = _get(config, name)
        if leaf != "name" or not within.startswith("task") or before in (None, task):
            continue
        from grpo_jax.tasks import task_options

        try:
            known = task_options(task)
        except ValueError:  # an unknown one, which will be said
            continue
        options = _get(flag_values["config"].value, within)
        kept = {"name", "share", "rewards", *(known or ())}
        gone = [o for o in options if o not in kept and f"{within}.{o}" not in given]
        for option in gone:
            del options[option]
        if gone:
            fields = ", ".join(f"config.{within}.{option}" for option in gone)
            print(f"note: {fields}: of task {before!r}, not of {task!r}", file=sys.stderr)


def _check_empty(given: Iterable[tuple[flags.Flag, str]]) -> None:
    """UsageError for a text that is empty where that says nothing, or that is part of a list."""
    for flag, value in given:
        if isinstance(flag.parser, flags.ListParser) and "" in map(str.strip, value.split(",")):
            what = "is empty" if not value.strip() else "has an empty name in it"
            raise UsageError(f"--{flag.name}={value} {what}; valid: {flag.help}, or no such flag")
        if not value and flag.default is None and flag.flag_type() == "string":
            raise UsageError(f"--{flag.name}= is empty; valid: {flag.help}")


def _check_numbers(given: Iterable[flags.Flag]) -> None:
    """UsageError for a number that fits no float32, or no int32 where the flag has no bound."""
    for flag in given:
        value, limit = flag.value, getattr(flag.parser, "upper_bound", None)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{flag.name}={value}: it must be a finite number")
        if isinstance(value, int) and limit is None and abs(value) > INT_MAX:
            raise UsageError(f"--{flag.name}={value}: it must be at most {INT_MAX}")


def _at_home(argv: list[str]) -> list[str]:
    """The command line with "~", the user's home, replaced in every flag that takes paths."""
    home, previous = [], ""
    for arg in argv:
        flag = re.match(rf"--?(?:{'|'.join(_PATHS)})(=|$)", arg)
        start = flag.end() if flag and flag[1] else 0
        if start or re.fullmatch(rf"--?(?:{'|'.join(_PATHS)})", previous):
            paths = map(os.path.expanduser, arg[start:].split(","))
            arg = arg[:start] + ",".join(paths)
        home.append(arg)
        previous = arg
    return home


def _options(argv: list[str]) -> list[tuple[str, str]]:
    """Return (name, value) for each --name=value and --name value of the command line."""
    found = []
    name = r"[\w.]+|config\.[^=\[]+"
    for arg, following in itertools.pairwise([*argv[1:], ""]):
        if arg == "--":
            break
        match = re.match(rf"--?(?:no(?=config\.))?({name})(?:=(.*))?$", arg, re.DOTALL)
        if match:
            found.append((match[1], following if match[2] is None else match[2]))
    return found


def _get(config: ConfigDict, name: str) -> Any:
    value: Any = config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, ConfigDict) else None
    return value


def _field_type(config: ConfigDict, name: str) -> type:
    *groups, leaf = name.split(".")
    group = _get(config, ".".join(groups)) if groups else config
    return group.get_type(leaf) if leaf in group else object


def default_workdir(config_path: str) -> Path:
    """Return runs/<name> for the config file <name>.py."""
    return Path("runs") / Path(config_path.split(":", 1)[0]).stem


def prepare_process() -> None:
    """Set what every program needs before JAX starts: memory, and XLA's flags."""
    keep_freed_memory()
    os.environ["XLA_FLAGS"] = xla_flags(os.environ.get("XLA_FLAGS", ""))


def xla_flags(given: str) -> str:
    """XLA_FLAGS that leave matrix products on a GPU to cuBLAS, where `given` does not say.

    Else XLA compiles and times Triton kernels for each, which takes it minutes a program.
    """
    return given if _TRITON in given else f"{given} {_TRITON}=false".strip()


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next allocation, not hand it back to the system.

    XLA allocates a step's buffers anew for every call; on a CPU, touching fresh pages each time
    costs a training step up to a fifth of its time. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _KEEP_FREED:
            mallopt(option, value)


def run_main(
    main: Callable[..., int | None], with_config: bool = True, with_workdir: bool = True
) -> NoReturn:
    """Run a program: `main(config, workdir)`, without those of the two that it does not take.

    config   FrozenConfigDict, resolved and checked
    workdir  Path; --workdir, else runs/<config name>

    Exits with main's result, or as `reporting` says.
    """
    interrupts.leave_at_once()
    prepare_process()
    define_flags(with_config, with_workdir=with_workdir)
    try:
        app.run(
            lambda argv: reporting(_call_main, main, argv, with_workdir),
            flags_parser=lambda argv: reporting(_parse_or_help, argv),
        )
    except SystemExit as leaving:
        if leaving.code not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        interrupts.end(int(leaving.code))
    raise AssertionError("app.run returned")


def _call_main(main: Callable[..., int | None], argv: list[str], workdir: bool) -> int | None:
    if argv[1:]:
        raise UsageError(f"unexpected argument {argv[1]!r}; options are written --name=value")
    if not workdir:
        return main()
    if "config" not in FLAGS:
        if FLAGS.workdir is None:
            raise UsageError("--workdir=DIR is needed: the folder of a run")
        return main(Path(FLAGS.workdir))
    if FLAGS.config is None:
        raise UsageError(_NO_CONFIG)
    folder = FLAGS.workdir or default_workdir(FLAGS["config"].config_filename)  # type: ignore[attr-defined]
    return main(resolve(FLAGS.config), Path(folder))


def _parse_or_help(argv: list[str]) -> list[str]:
    try:
        return parse_flags(argv)
    except SystemExit:
        sys.exit(0)  # absl has shown the help, but ends with status 1
