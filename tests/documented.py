"""The metrics that docs/metrics.md does not explain, for tests that have a run at hand."""

import json
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs/metrics.md"
_NAMES = re.findall(r"`([^`\s]+)`", DOCS.read_text())
_FORMS = [re.sub(r"<\w+>", ".+", re.escape(name).replace("<k>", r"\d+")) for name in _NAMES]
KNOWN = re.compile("|".join(_FORMS))


def undocumented(*files):
    """The names that files of JSON lines have, and docs/metrics.md has not."""
    records = [json.loads(line) for path in files for line in path.open()]
    assert records
    return {name for record in records for name in record if not KNOWN.fullmatch(name)}
