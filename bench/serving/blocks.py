"""Which blocks of the paged cache are free, who uses them, and which prefix each holds (vLLM's block pool).

A block holds the keys and values of `size` consecutive tokens in every layer (PagedAttention, arXiv 2309.06180). A full
block is known by a hash of all tokens up to its end, so an equal hash is an equal prefix, and requests share it. A
block nobody uses keeps what it holds until it is needed again: free blocks are taken least recently used first, and a
request gives its blocks back last block first, so that the beginnings of prompts, which others share, stay longest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class Blocks:
    """Blocks 0 to count - 1. `caching`: whether freed blocks may be found again by their hash."""

    def __init__(self, count: int, size: int, *, caching: bool = True):
        self.count, self.size, self.caching = count, size, caching
        self.users = [0] * count
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))  # least recently used first
        self._hash: dict[int, bytes] = {}
        self._block: dict[bytes, int] = {}
        self.idle_prefixes = 0  # blocks nobody uses that could be found again

    @property
    def available(self) -> int:
        """Blocks that could be taken now."""
        return len(self._free)

    def matched(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest known prefix of these. Nothing is taken."""
        found: list[int] = []
        for key in hashes:
            block = self._block.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Iterable[int]) -> int:
        """How many of these nobody uses: sharing them makes so many fewer available."""
        return sum(not self.users[block] for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """One more user for each."""
        for block in blocks:
            if not self.users[block]:
                del self._free[block]
                self.idle_prefixes -= block in self._hash
            self.users[block] += 1

    def take(self, count: int) -> list[int]:
        """`count` blocks of unknown content for one user; what they held is forgotten. Raises ValueError."""
        if count > self.available:
            raise ValueError(f"{count} blocks wanted, {self.available} available")
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self.users[block] = 1
            key = self._hash.pop(block, None)
            if key is not None:
                del self._block[key]
                self.idle_prefixes -= 1
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """One user fewer for each, given in the order of their tokens. Raises ValueError for a block nobody uses."""
        for block in reversed(blocks):
            if self.users[block] < 1:
                raise ValueError(f"block {block} is freed twice")
            self.users[block] -= 1
            if not self.users[block]:
                self._free[block] = None
                self.idle_prefixes += block in self._hash

    def forget(self) -> None:
        """No prefix is known any more; blocks in use stay in use."""
        self._hash.clear()
        self._block.clear()
        self.idle_prefixes = 0

    def publish(self, block: int, key: bytes) -> None:
        """A used block is full and holds the prefix with this hash. A second block of one prefix stays unknown."""
        if self.caching and key not in self._block:
            self._block[key] = block
            self._hash[block] = key
