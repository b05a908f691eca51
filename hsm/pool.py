"""Several sessions, one thread each: for tokens behind a network, where a signature is mostly waiting.

With one session the jobs are signed in the caller's own thread: handing work to a thread and back costs more than a
signature on a token in the same machine.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from hsm.errors import TokenError, TokenFatal
from hsm.session import Job, Session, SigningKey
from hsm.token import Token

_Part = tuple[Sequence[Job], "Future[list[bytes | TokenError]]"]


class SessionPool:
    """`sign_many` over N sessions of one login."""

    def __init__(self, token: Token, keys: Mapping[str, SigningKey], sessions: int) -> None:
        self.names = frozenset(keys)
        self._first = Session(token, keys)
        self._queue: queue.SimpleQueue[_Part] = queue.SimpleQueue()
        self._threads = sessions if sessions > 1 else 0
        own = [self._first, *(Session(token, keys) for _ in range(sessions - 1))]
        for index in range(self._threads):
            threading.Thread(target=self._work, args=(own[index],), name=f"session-{index}", daemon=True).start()

    def _work(self, session: Session) -> None:
        while True:
            jobs, answer = self._queue.get()
            try:
                answer.set_result(session.sign_many(jobs))
            except Exception as error:  # a thread that ends silently would leave its callers waiting
                answer.set_exception(error)

    def sign_many(self, jobs: Sequence[Job]) -> list[bytes | TokenError]:
        """A verified signature or an error for each job, in their order."""
        if not self._threads:
            return self._first.sign_many(jobs)
        size = -(-len(jobs) // self._threads)
        parts: list[Future[list[bytes | TokenError]]] = []
        for start in range(0, len(jobs), size or 1):
            answer: Future[list[bytes | TokenError]] = Future()
            self._queue.put((jobs[start : start + size], answer))
            parts.append(answer)
        results: list[bytes | TokenError] = []
        for answer in parts:
            try:
                results += answer.result()
            except Exception as error:
                raise TokenFatal("thread", f"a signing thread failed: {error}") from error
        return results
