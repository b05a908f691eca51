"""Asking a service who may have what (`who = "webhook"`): from the edge, before an enrolment is handed on.

One POST carries what has gathered: what one turn of the loop brings, or what came while the last POSTs were out. There
is a deadline, a bound for what waits, one for the answer's size, and a circuit that opens when the service is down:
then nobody waits for it. Without its word there is no certificate (docs/decisions/0006-webhook.md).
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections import deque
from typing import Any

import aiohttp

from estd import admission, csr, metrics, verdicts
from estd.devices import Claim
from estd.errors import EstError, retry_seconds
from estd.identify import client_chain
from estd.logs import Log
from estd.material import hook_secret
from estd.policy import Rule
from estd.verdicts import BadAnswer, Verdict

QUESTIONS_MAX = 64
"""Questions in one POST."""
WAITING_MAX = 512
"""Questions of one edge that may wait; one more is told to come back."""
ANSWER_BYTES = 1 << 20
FAILURES_MAX = 3
"""Failed POSTs, one after the other, that open the circuit."""
OPEN_SECONDS = 5.0
_POSTS_MAX = 4
_CHUNK_BYTES = 1 << 16
_ANSWERED = metrics.WEBHOOK_SECONDS.series("answered")
_FAILED = metrics.WEBHOOK_SECONDS.series("failed")


class Circuit:
    """Closed while the service answers. After some failures in a row it is open for a while, then lets one POST try."""

    def __init__(self) -> None:
        self._failures = 0
        self._open_until = 0.0

    def left(self, now: float) -> float:
        """Seconds for which nothing is asked; 0 while something is."""
        return max(0.0, self._open_until - now)

    @property
    def posts_max(self) -> int:
        return _POSTS_MAX if self._failures < FAILURES_MAX else 1

    def answered(self) -> None:
        self._failures = 0

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._failures >= FAILURES_MAX:
            self._open_until = now + OPEN_SECONDS


class Webhook:
    """One rule's service. `ask` is all that the edge needs."""

    def __init__(self, rule: Rule, label: str, slot: metrics.Slot, log: Log) -> None:
        assert rule.allow.hook is not None
        self._rule = rule
        self._hook = rule.allow.hook
        self._label = label
        self._slot = slot
        self._log = log
        self._waiting: deque[tuple[dict[str, Any], asyncio.Future[Verdict]]] = deque()
        self._posts: set[asyncio.Task[None]] = set()
        self._circuit = Circuit()
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, *, chain: bytes, claim: Claim | None, operation: str, csr_der: bytes) -> Verdict | None:
        """What the service says of a request; None where its rule is not about this client. Raises a 400 for a request
        that is none, so that the service is never asked about it."""
        if chain and operation == "simplereenroll":
            claim = None  # a renewal goes by the certificate that it renews
        evidence = self._evidence(chain, claim)
        if evidence is None:
            return None
        if operation == "serverkeygen":
            csr.load(csr_der)  # its key and its signature count for nothing
        else:
            csr.check(csr_der)
        left = self._circuit.left(time.monotonic())
        if left or len(self._waiting) >= WAITING_MAX:
            return verdicts.away("the circuit is open" if left else "too many wait", retry_seconds(int(left) + 1))
        question = {
            "label": self._label,
            "operation": operation,
            "csr": base64.b64encode(csr_der).decode(),
            **evidence,
        }
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append((question, answer))
        try:
            async with asyncio.timeout(self._hook.deadline_seconds):
                return await answer
        except TimeoutError:
            return verdicts.away("its deadline passed", retry_seconds(2))

    def _evidence(self, chain: bytes, claim: Claim | None) -> dict[str, str] | None:
        """Who asks, as the service is told; None where the rule is about others. The issuer looks again."""
        if self._rule.anchors is None:
            return None if claim is None else {"user": claim.serial_number, "secret_sha256": claim.secret.hex()}
        if not chain:
            return None
        try:
            certificate, intermediates = client_chain(chain)
            admission.check_path(self._rule, certificate, intermediates, time.time())
        except EstError:
            return None
        return {"certificate": base64.b64encode(certificate.der).decode(), "subject": certificate.shown}

    def _flush(self) -> None:
        """Send what waits, as many at once as a POST takes."""
        while self._waiting and len(self._posts) < self._circuit.posts_max:
            batch: list[tuple[dict[str, Any], asyncio.Future[Verdict]]] = []
            while self._waiting and len(batch) < QUESTIONS_MAX:
                question, answer = self._waiting.popleft()
                if not answer.done():
                    batch.append((question, answer))
            if not batch:
                return
            post = asyncio.get_running_loop().create_task(self._send(batch))
            self._posts.add(post)
            post.add_done_callback(self._sent)

    def _sent(self, post: asyncio.Task[None]) -> None:
        self._posts.discard(post)
        self._flush()

    async def _send(self, batch: list[tuple[dict[str, Any], asyncio.Future[Verdict]]]) -> None:
        began = time.perf_counter()
        left = self._circuit.left(time.monotonic())
        try:
            if left:
                raise BadAnswer("the circuit is open")
            async with asyncio.timeout(self._hook.deadline_seconds):
                body = await self._post([{"id": number, **question} for number, (question, _) in enumerate(batch)])
            found = verdicts.read(body, len(batch))
        except Exception as error:
            if not left:
                self._circuit.failed(time.monotonic())
                self._slot.observe(metrics.WEBHOOK_SECONDS, _FAILED, time.perf_counter() - began)
                self._log("webhook_failed", label=self._label, why=self._why(error), questions=len(batch))
            found = [verdicts.away("it failed", retry_seconds(2))] * len(batch)
        else:
            self._circuit.answered()
            self._slot.observe(metrics.WEBHOOK_SECONDS, _ANSWERED, time.perf_counter() - began)
        for (_, answer), verdict in zip(batch, found, strict=True):
            if not answer.done():
                answer.set_result(verdict)

    def _why(self, error: Exception) -> str:
        """For the log. Of what nobody foresaw the kind alone: its text may hold the secret."""
        if not isinstance(error, aiohttp.ClientError | BadAnswer | OSError):
            return type(error).__name__
        return str(error)[:300] or f"it did not answer within {self._hook.deadline_seconds} s"

    async def _post(self, questions: list[dict[str, Any]]) -> bytes:
        """The answer's body. Raises BadAnswer, OSError or an aiohttp.ClientError; the caller keeps the time."""
        try:
            secret = hook_secret(self._hook.secret_file)
        except ValueError as error:
            raise BadAnswer(str(error)) from None
        if self._session is None:
            tls: ssl.SSLContext | bool = True
            if self._hook.tls_ca is not None:
                tls = ssl.create_default_context(cafile=str(self._hook.tls_ca))
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_POSTS_MAX, ssl=tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
            )
        headers = {
            "Authorization": f"Bearer {secret}", "Content-Type": "application/json", "Accept-Encoding": "identity",
        }  # fmt: skip
        body = json.dumps({"questions": questions}, separators=(",", ":")).encode()
        # A redirect is no answer: it would send evidence and secret to whom no one named.
        async with self._session.post(self._hook.url, data=body, headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                raise BadAnswer(f"it answered {response.status}")
            parts = bytearray()
            async for part in response.content.iter_chunked(_CHUNK_BYTES):
                parts += part
                if len(parts) > ANSWER_BYTES:
                    raise BadAnswer(f"its answer is longer than {ANSWER_BYTES} bytes")
            return bytes(parts)

    async def close(self) -> None:
        for post in list(self._posts):
            post.cancel()
        if self._session is not None:
            await self._session.close()
