"""The calls of rewards that one batch of completions needs, and their results."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

import numpy as np

from grpo_jax.rewards.call import Group

Call = tuple[str, int, int | None]  # reward, prompt, completion (None: the whole group)

GIVEN_UP = 16  # calls of a reward that are lost before any has returned: no more are made


class Batch:
    """Calls that wait, in order; parts f32[P, G] by reward, filled in; and what was lost, and how.

    A group's call that is lost is made again for one completion at a time, and that of a group of
    one where it died, for it may not be to blame.
    """

    def __init__(
        self, calls: Iterable[Call], groups: Sequence[Group], parts: dict[str, np.ndarray]
    ) -> None:
        """All calls wait."""
        self.groups, self.parts = groups, parts
        self.waiting = deque(calls)
        self.lost: dict[tuple[str, int, int], str] = {}
        self._returned: set[str] = set()
        self._losses: Counter[str] = Counter()
        self._how: dict[str, str] = {}

    def group(self, call: Call) -> Group:
        """The group, or single completion, that a call is on."""
        _, p, g = call
        return self.groups[p] if g is None else self.groups[p].single(g)

    def wants(self, call: Call) -> bool:
        """Whether to make a call; if not, it is lost, as its reward's other calls were."""
        name, p, g = call
        if name in self._returned or self._losses[name] < GIVEN_UP:
            return True
        indices = range(len(self.groups[p].completions)) if g is None else [g]
        self.lost |= {(name, p, i): self._how[name] for i in indices}
        return False

    def keep(self, call: Call, values: list[float]) -> None:
        """Take what a call returned."""
        name, p, g = call
        self.parts[name][p, slice(None) if g is None else slice(g, g + 1)] = values
        self._returned.add(name)

    def lose(self, call: Call, how: str, hung: bool) -> None:
        """Note a call that did not return."""
        name, p, g = call
        self._losses[name] += 1
        self._how[name] = how
        size = len(self.groups[p].completions)
        if g is None and (size > 1 or not hung):
            self.waiting.extendleft((name, p, i) for i in reversed(range(size)))
        else:
            self.lost[name, p, g or 0] = how
