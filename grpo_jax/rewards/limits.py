"""How long a call of a reward in a process may take, without loading."""

import time
from collections.abc import MutableSequence

LOADING_S = 30.0  # that a process's first call of a reward may take longer


class Limits:
    """Says which running calls are overdue: a call has `timeout_s` for each of its completions.

    clock  f64[slots], shared with the processes: where each sets when its call began, negative
           where it is its first of that reward, which may have to load something

    A first call may take LOADING_S longer; once the reward has returned anywhere, twice as long as
    it took there, and a second, where that is less. Each one that is cut off before halves what
    the next gets, so that a reward that never returns is not waited for again and again.
    """

    def __init__(self, clock: MutableSequence[float], timeout_s: float) -> None:
        """Nothing runs yet."""
        self.clock, self.timeout_s = clock, timeout_s
        self.slots = frozenset(range(len(clock)))
        self._loading: dict[str, float] = {}
        self._returned: set[str] = set()

    def schedule(self, slot: int) -> None:
        """A slot's next call has not begun."""
        self.clock[slot] = 0.0

    def begun(self, slot: int) -> bool:
        """Whether a process has taken the call of a slot."""
        return self.clock[slot] != 0

    def overdue(self, slot: int, name: str, size: int) -> bool:
        """Whether the reward's call on `size` completions has run for too long."""
        loading = self._loading.get(name, LOADING_S) if self.clock[slot] < 0 else 0.0
        return self.begun(slot) and self._seconds(slot) > size * self.timeout_s + loading

    def returned(self, slot: int, name: str) -> None:
        """The call in a slot has returned: if it was a first one, loading takes no longer."""
        if self.clock[slot] < 0:
            longest = self._loading.get(name, 0.0) if name in self._returned else 0.0
            self._loading[name] = max(longest, min(LOADING_S, 2 * self._seconds(slot) + 1))
        self._returned.add(name)

    def cut_off(self, slot: int, name: str) -> str:
        """The call in a slot was overdue: what it was given, in words."""
        had = f"{self.timeout_s} s"
        if self.clock[slot] < 0:
            loading = self._loading.get(name, LOADING_S)
            had += (
                f" (and {loading:g} s to load at first use; what its at_start loads is not timed)"
            )
            if name not in self._returned:
                self._loading[name] = loading / 2
        return had

    def _seconds(self, slot: int) -> float:
        return time.monotonic() - abs(self.clock[slot])
