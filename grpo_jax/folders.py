"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# A folder that holds one of these is a model's, and may be replaced by another.
MARKS = ("config.json", "adapter_config.json")


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `out` at the end; after an exception `out` is as it
    was. ValueError where `out` is a file, or a folder that holds something else than a model."""
    if out.exists() and not (out.is_dir() and _replaceable(out)):
        raise ValueError(f"{out} is there and is no model's folder; choose another, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield made
        made.chmod(0o755)
        old = made.with_name(f"{made.name}.old")
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(made, out)
        except OSError:
            if old.exists():
                os.rename(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _replaceable(out: Path) -> bool:
    names = {p.name for p in out.iterdir()}
    return not names or bool(names & set(MARKS))
