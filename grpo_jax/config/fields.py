"""A config's fields: ml_collections' classes, with dots in names, as rewards have them.

A reward is called "package.module:function" or after a folder, "reward_model:runs/judge-v1.0";
ConfigDict takes no dots by default, and FrozenConfigDict none at all.
"""

from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict


class Fields(ConfigDict):
    """A ConfigDict, as are its groups, whose keys may have dots."""

    def __init__(
        self,
        initial_dictionary: Any = None,
        type_safe: bool = True,
        convert_dict: bool = True,
        **options: Any,
    ) -> None:
        """Take nested dicts, or another config."""
        options["allow_dotted_keys"] = True
        super().__init__(initial_dictionary, type_safe, convert_dict, **options)

    def __setitem__(self, key: str, value: Any) -> None:
        """Set a field; TypeError or KeyError as ConfigDict does."""
        if isinstance(value, dict | ConfigDict) and not isinstance(value, Fields):
            value = Fields(value, self.is_type_safe)
        super().__setitem__(key, value)


class FrozenFields(FrozenConfigDict):
    """A FrozenConfigDict, as are its groups, whose keys may have dots."""

    def __init__(self, initial_dictionary: Any = None, type_safe: bool = True) -> None:
        """Take nested dicts, or another config."""
        ConfigDict.__init__(self, type_safe=type_safe, allow_dotted_keys=True)
        given = Fields(initial_dictionary, type_safe)
        object.__setattr__(self, "_configdict", given)  # what FrozenConfigDict calls it
        for key, value in given.items():
            nested = isinstance(value, ConfigDict)
            self._fields[key] = FrozenFields(value, type_safe) if nested else _immutable(value)

    def __eq__(self, other: object) -> bool:
        """Whether the other is a frozen config of the same fields."""
        if not isinstance(other, FrozenConfigDict):
            return False
        return self.as_configdict() == Fields(other.as_configdict())

    __hash__ = FrozenConfigDict.__hash__


def _immutable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_immutable(one) for one in value)
    return frozenset(value) if isinstance(value, set) else value
