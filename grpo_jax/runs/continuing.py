"""Which fields of a run's config may differ when it is resumed."""

from typing import Any, NamedTuple

from grpo_jax.config.checks import config_diff, flatten, untupled
from grpo_jax.files import Json

# Fields, and groups of fields, that nothing which was computed depends on.
FREE = (
    *("reward_workers", "reward_timeout", "compilation_cache"),
    *("eval", "log", "checkpoint", "mesh"),
)
Change = dict[str, Any]


class Compared(NamedTuple):
    """Changes that a run may resume with, and why the others are refused."""

    changes: list[Change]
    refused: list[str]


def compare(old: Json, new: Json, position: Json | None) -> Compared:
    """The changes from the config `old` to `new` that a run may resume with, and the others.

    old, new  resolved configs, nested
    position  of the run's newest checkpoint, or None

    A change is {"step", "field", "old", "new"}; what may not be is "field: old -> new", and why
    not, where the field may be changed in other runs.
    """
    before, after = ({k: untupled(v) for k, v in flatten(c).items()} for c in (old, new))
    done, changes, refused = (position or {}).get("step", 0), [], []
    for difference in config_diff(old, new):
        field = difference.split(": ", 1)[0]
        two = {"old": before.get(field), "new": after.get(field)}
        why = _refusal(field, before, two["new"], position or {})
        if why is None:
            changes.append({"step": done, "field": field, **two})
        else:
            refused.append(f"{difference} ({why})" if why else difference)
    return Compared(changes, refused)


def _refusal(field: str, old: Json, new: Any, position: Json) -> str | None:
    """Why a field may not change, "" where it never may; None where it may."""
    if field in FREE or field.split(".")[0] in FREE:
        return None
    if field == "steps" and position.get("stage") == "sft":  # whose steps are sft.steps
        return None
    if field == "steps":
        return _steps_refusal(old, new, position)
    if field == "overlong_prompts":
        dropped = position.get("dropped", 0)
        return f"{dropped} prompts were dropped" if dropped else None
    return ""


def _steps_refusal(old: Json, new: int, position: Json) -> str | None:
    done = position.get("step", 0)
    schedule = old.get("optimizer.schedule")
    if schedule is None:
        return ""
    if schedule != "constant":
        return f"the {schedule} schedule of the learning rate depends on it"
    if new < done:
        return f"{done} are done"
    if position.get("final"):
        source = old.get("rollout.source")
        return f"with rollout.source={source!r} the last step sampled no further batch"
    return None
