"""One thread beside the loop for work that takes long, with a bound on what is under way or waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from estd.errors import Reason, Unavailable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SideThread:
    """`sentence` is what one more than `most` is told."""

    def __init__(self, name: str, most: int, sentence: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._most = most
        self._sentence = sentence
        self._under_way = 0

    async def run(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """What the work returns or raises. A 503 where there is too much already."""
        if self._under_way >= self._most:
            raise Unavailable(Reason.OVERLOADED, self._sentence)
        self._under_way += 1
        done = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        done.add_done_callback(self._done)
        return await asyncio.shield(done)  # a client that leaves does not make room before its work is done

    def _done(self, done: asyncio.Future[T]) -> None:
        self._under_way -= 1
        if not done.cancelled():
            done.exception()  # asked for, where nobody waits for it any more
