"""Runs programs of experiments/ one after another, each in a fork of this process.

python tests/forked.py MODULE,...: imports the modules, so that no program waits for them, and reads
JSON lines [program, argument ...]. For each it writes {"returncode", "stdout", "stderr"}.
"""

import importlib
import json
import os
import runpy
import sys
import tempfile


def run(program: str, arguments: list[str]) -> dict[str, object]:
    """How a program ends, and what it writes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = [program, *arguments]
            status = 0
            try:
                runpy.run_module(f"experiments.{program}", run_name="__main__", alter_sys=True)
            except SystemExit as left:
                status = left.code if isinstance(left.code, int) else int(left.code is not None)
            except BaseException:  # as Python ends a program that raises
                sys.excepthook(*sys.exc_info())
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        texts = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
        code = os.waitstatus_to_exitcode(status)
        return {"returncode": code, "stdout": texts[0], "stderr": texts[1]}


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    for module in filter(None, sys.argv[1].split(",")):
        importlib.import_module(module)
    for line in sys.stdin:
        name, *rest = json.loads(line)
        print(json.dumps(run(name, rest)), flush=True)
