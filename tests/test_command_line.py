import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from grpo_jax import algorithms, config
from grpo_jax.config import command_line
from grpo_jax.errors import UsageError

FILE = """
from grpo_jax.config import defaults

def get_config(digits="3"):
    config = defaults()
    config.task = {"name": "addition", "digits": int(digits)}
    config.rewards = {"accuracy": 2.0}
    config.steps = 7
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(FILE)
    return path


def parsed(*options):
    argv = ["program", *map(str, options)]
    values = flags.FlagValues()
    command_line.define_flags(argv=argv, flag_values=values)
    command_line.parse_flags(argv, values)
    return values.config


def test_the_preset_comes_first_and_overrides_win(config_file):
    options = ("--config.algorithm.beta=0.5", "--config.algorithm.preset=dapo")
    algorithm = config.resolve(parsed(f"--config={config_file}", *options)).algorithm
    dapo = algorithms.PRESETS["dapo"]
    assert algorithm.clip_high == dapo.clip_high != algorithms.PRESETS["grpo"].clip_high
    assert algorithm.beta == 0.5 != dapo.beta


def test_the_paths_of_flags_may_begin_at_home(config_file, monkeypatch):
    monkeypatch.setenv("HOME", str(config_file.parent))
    at = str(config_file.parent)
    values = flags.FlagValues()
    argv = ["program", "--config=~/tiny.py:5", "--workdir", "~/runs/a~b", "--against=~/x,~,y,~z/"]
    argv += ["--out=a/~/b", "--seed=~1", "--gguf", "~no-such-user/x", "--model=~/m"]
    command_line.define_flags(argv=argv, flag_values=values)
    for name in ("out", "seed", "gguf", "model"):
        flags.DEFINE_string(name, None, name, flag_values=values)
    flags.DEFINE_list("against", [], "others", flag_values=values)
    command_line.parse_flags(argv, values)
    assert values.config.task.digits == 5 and values.workdir == f"{at}/runs/a~b"
    assert values.against == [f"{at}/x", at, "y", "~z/"] and values.model == f"{at}/m"
    assert (values.out, values.seed, values.gguf) == ("a/~/b", "~1", "~no-such-user/x")


def test_options_of_every_type_reach_the_config(config_file):
    got = parsed(
        f"--config={config_file}:5",
        *("--config.steps=9", "--config.optimizer.learning_rate", "1", "--config.model.tied"),
        *(
            "--config.eval.samples=4",
            "--config.seed=4294967295",
            "--config.task.seed=4",
            "--config.rewards.accuracy=0.5",
            "--noconfig.model.tied",
        ),
    )
    assert (got.steps, got.optimizer.learning_rate, got.model.tied) == (9, 1.0, False)
    assert got.task.to_dict() == {"name": "addition", "digits": 5, "seed": 4}
    assert config.resolve(got).seed == 2**32 - 1
    assert got.rewards.to_dict() == {"accuracy": 0.5}


def test_the_chat_template_is_given_names_that_no_config_has(config_file):
    given = [("enable_thinking", "False"), ("reasoning_effort", "low"), ("budget", "3")]
    options = [f"--config.chat_template_kwargs.{name}={value}" for name, value in given]
    got = parsed(f"--config={config_file}", *options, "--config.rollout.stop=('\\n\\n', 'a,b')")
    kwargs = {"enable_thinking": False, "reasoning_effort": "low", "budget": 3}
    resolved = config.resolve(got)
    assert resolved.chat_template_kwargs.to_dict() == kwargs
    assert resolved.rollout.stop == ("\n\n", "a,b")
    assert not config.defaults().chat_template_kwargs.to_dict()


def test_rewards_of_any_name_get_their_weights(config_file):
    judge, module = "reward_model:runs/lr=1e-3/judge-v1.0", "pkg.module:function"
    options = (
        *(f"--config.rewards.{judge}=0.5", f"--config.rewards.{module}", "2", "--config.steps=9"),
        *("--config.rewards.my:f=3", "--config.rewards.my:f=4", "-config.rewards.format=.1"),
    )
    got = config.resolve(parsed(f"--config={config_file}", *options))
    weights = {"accuracy": 2.0, judge: 0.5, module: 2.0, "my:f": 4.0, "format": 0.1}
    assert got.rewards.to_dict() == weights and got.steps == 9


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.rewards.my:f=much", "config.rewards.my:f: 'much' is not of type float"),
        ("--config.rewards.my:f", "config.rewards.my:f: '' is not of type float"),
        ("--config.rewards={'my:f': 1}", "rewards is a group of fields; set one: .*rewards.accur"),
        (
            "--config.rewards.acuracy=1",
            r"closest .* config.rewards.accuracy; or .*package.m",
        ),
        ("--config.foo:bar=1", "unknown field config.foo:bar"),
        (
            "--config.chat_template_kwargs.a.b=1",
            r"config.chat_template_kwargs.a.b: 'a.b' is no name; valid: .*kwargs\.<name>",
        ),
        ("--config.task.dig-its=1", "unknown option config.task.dig-its; .* config.task.digits"),
        ("--config.foo[=1", "Could not parse 'foo\\['"),
        ("--config.steps[0]=1", "does not support integer indexing"),
        ("--config.chat_template_kwargs=1", r"set one: config.chat_template_kwargs.<name>"),
        ("--config.rolout.group=4", "unknown field config.rolout.group; .* config.rollout.group"),
        ("--config.learning_rte=1", "unknown field .* config.optimizer.learning_rate"),
        ("--config.group=4", "unknown field config.group; .* config.rollout.group"),
        ("--config.rewards.accurcy=1", "unknown field .* config.rewards.accuracy"),
        ("--config.task.digit=1", "unknown option .* config.task.digits; task 'addition' takes"),
        ("--config.task.foo=3", "'addition' takes digits, heldout_size, train_size, seed$"),
        ("--config.steps.x=1", "unknown field config.steps.x; .* config.steps"),
        ("--config.steps=abc", "config.steps: 'abc' is not of type int"),
        ("--config.steps=1.5", "config.steps: '1.5' is not of type int"),
        ("--config.optimizer.eps=tiny", "config.optimizer.eps: 'tiny' is not of type float"),
        ("--config.algorithm.beta=x", "config.algorithm.beta: 'x' is not of type float"),
        ("--config.model.tied=perhaps", "config.model.tied: 'perhaps' is not of type bool"),
        ("--config.model=4", r"config.model is a group of fields; set one: config\.model\.\w+"),
        ("--workdri=x", "Unknown command line flag 'workdri'. Did you mean: workdir"),
    ],
)
def test_a_bad_option_is_named_in_one_line(config_file, option, message):
    with pytest.raises(UsageError, match=message) as raised:
        parsed(f"--config={config_file}", option)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ({"name": "mixture", "parts": {"countdown": {}}}, ["parts.countdown.foo"], "takes count, "),
        ({"name": "mixture", "parts": {"countdown": {}}}, ["parts.foo"], "'mixture' takes parts|x"),
        (
            {"name": "mixture", "parts": {"a": {"name": "math"}}},
            ["parts.a.foo"],
            "'math' takes path",
        ),
        ({"name": "solved", "of": {"name": "addition"}}, ["of.foo"], "'addition' takes digits"),
        ({"name": "framed", "of": {"name": "addition"}}, ["foo"], "'framed' takes of, template"),
        ({"name": "addition"}, ["foo", "name=programs"], "'programs' takes"),
        ({"name": "nothing"}, ["foo"], "unknown field config.task.foo"),
    ],
)
def test_an_unknown_option_of_a_task_names_the_tasks_own(config_file, task, options, message):
    config_file.write_text(FILE.replace('{"name": "addition", "digits": int(digits)}', repr(task)))
    given = [f"--config.task.{x if '=' in x else f'{x}=3'}" for x in options]
    with pytest.raises(UsageError, match=message):
        parsed(f"--config={config_file}", *given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--config: no Python file: .*tiny.py"),
        ("def get_config(:", r"tiny\.py, line 1: SyntaxError: invalid syntax"),
        ("x = 1\ny = z\n", r"tiny\.py, line 2: NameError: name 'z'"),
        ("x = 1\n", r"tiny\.py: it has no function get_config"),
        ("import sys\nsys.exit(0)\n", r"tiny\.py, line 2: it calls sys\.exit\(0\); valid"),
        ("import sys\ndef get_config():\n  sys.exit('no')\n", r"line 3: .*sys\.exit\('no'\)"),
        ("x = '\0'", r"tiny\.py: \w+Error: .*null bytes"),
        ("def get_config():\n  pass\n", "must return a ConfigDict"),
        (FILE.replace("config.steps", "config.rolout"), r"line 8: unknown field .*\.rollout\."),
        (FILE.replace("steps = 7", "steps = 'x'"), "line 8: TypeError: .*'steps'.*int"),
    ],
)
def test_a_broken_config_file_is_told_in_one_line(config_file, text, message):
    config_file.unlink()
    if text is not None:
        config_file.write_text(text)
    with pytest.raises(UsageError, match=message) as raised:
        parsed(f"--config={config_file}")
    assert "\n" not in str(raised.value)


PROGRAM = '''"""A program."""
from grpo_jax.config.command_line import run_main
from grpo_jax.config.checks import UsageError
from grpo_jax.statistics import pass_at_k

def main(config, workdir):
    if config.steps == 1:
        raise UsageError("two\\nlines")
    if config.steps == 2:
        int("a bug")
    if config.steps == 3:
        pass_at_k(1, 0, 2)
    print(workdir, config.steps,)

if __name__ == "__main__":
    run_main(main)
'''


@pytest.mark.parametrize(
    ("options", "status", "out", "err"),
    [
        (["--config=tiny.py"], 0, r"^runs/tiny 7\n$", r"^$"),
        (["--config=tiny.py", "--workdir=x", "--config.steps=4"], 0, r"^x 4\n$", r"^$"),
        (["--config=tiny.py", "--config.steps=3"], 2, r"^$", r"^error: pass@k needs .*\n$"),
        (["--config=tiny.py", "--config.steps=1"], 2, r"^$", r"^error: two lines\n$"),
        (["--config=tiny.py", "--config.steps=2"], 1, r"^$", r"Traceback(.|\n)*ValueError: inv"),
        (["--config=tiny.py", "--config.stps=1"], 2, r"^$", r"^error: unknown field .*steps\n$"),
        (["--config=tiny.py", "steps=1"], 2, r"^$", r"^error: unexpected argument 'steps=1'.*\n$"),
        (["--config.steps=1"], 2, r"^$", r"^error: --config=configs/<name>.py is needed.*\n$"),
    ],
)
def test_a_program_ends_with_a_status_and_one_line(
    config_file, monkeypatch, options, status, out, err
):
    (config_file.parent / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(config_file.parent)
    monkeypatch.setenv("PYTHONPATH", str(Path(command_line.__file__).parents[2]))
    command = [sys.executable, "program.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert re.search(out, done.stdout) and re.search(err, done.stderr), (done.stdout, done.stderr)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets options of glibc only")
def test_freed_memory_is_kept_for_the_next_allocation():
    code = """
import resource, sys
import numpy as np
from grpo_jax.config.command_line import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = []
for _ in range(3):
    np.ones(2**24)  # 128 MiB, above what glibc keeps by itself
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[2] - faults[1])
"""
    command = [sys.executable, "-c", code]
    left, kept = (int(subprocess.check_output([*command, how])) for how in ("leave", "keep"))
    assert kept < 0.1 * left


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("", "--xla_gpu_enable_triton_gemm=false"),
        ("--xla_a=1", "--xla_a=1 --xla_gpu_enable_triton_gemm=false"),
        ("--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
    ],
)
def test_the_flags_of_xla_that_are_given_stand(given, wanted):
    assert command_line.xla_flags(given) == wanted


def test_help_is_quick_and_names_the_flags():
    code = "import sys; from grpo_jax.config import command_line; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "from grpo_jax.config import command_line; command_line.run_main(print)"
    command = [sys.executable, "-c", code, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--config:" in shown and "--workdir:" in shown
