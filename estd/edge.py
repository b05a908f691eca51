"""An edge: EST's operations and labels, Basic credentials; an enrolment goes on to an issuer.

It holds no key of the CA, no PIN and no ledger, and it decides nothing about a certificate: it hands over evidence.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Awaitable
from functools import partial

from aiohttp import web

from estd import (
    challenges,
    csr,
    der,
    frames,
    keygen,
    metrics,
    proxy,
    renewal_info,
    revocation,
    tls,
    verdicts,
    wire,
)
from estd.config import Config
from estd.credentials import read_header
from estd.devices import Claim, is_serial_number, pack_claim
from estd.errors import (
    BY_STATUS,
    REASONS,
    BadRequest,
    EstError,
    MethodNotAllowed,
    Reason,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
    retry_seconds,
)
from estd.frames import Request
from estd.http import Answer, LongAnswer, answer, head, json_answer, nothing, respond
from estd.issuer_link import IssuerLink
from estd.labels import superseding
from estd.logs import Log
from estd.material import Material
from estd.routes import WHEN, Routes
from estd.served import ENROLMENTS, Served

_POSTED = {*ENROLMENTS, "serverkeygen"}
"""What shows the client's certificate to an issuer."""
_TOLD = {"cacerts": wire.CERTS_ONLY_TYPE, "csrattrs": wire.CSRATTRS_TYPE}
"""What is the same for everybody, and its media type."""
_KINDS = {**ENROLMENTS, "serverkeygen": frames.MAY}
_FIRST = {frames.ENROLL: frames.MAY_ENROLL, frames.RENEW: frames.MAY_RENEW}
"""What is asked before a revocationChallenge is hashed."""
_ASK_LATER_SECONDS = 60
_ENROLLED = head(wire.CERTS_ONLY_TYPE)
_GENERATED = head(wire.KEY_AND_CERTIFICATE_TYPE, "Cache-Control: no-store")


class _Seen:
    """What the log line and the metrics say of a request, filled in on its way."""

    __slots__ = ("identity", "label", "operation", "reason", "serial", "why")

    def __init__(self) -> None:
        self.operation = "other"
        self.label = ""
        self.reason = ""
        self.identity = ""
        self.serial = ""
        self.why = ""


class Edge:
    def __init__(
        self, config: Config, material: Material, links: list[IssuerLink], slot: metrics.Slot, log: Log
    ) -> None:
        self._config = config
        self._links = links
        self._slot = slot
        self._log = log
        self._numbers = itertools.count(1)
        self._draining = False
        self._keys = keygen.KeyService(keygen.SoftwareKeys())
        self._hashing = revocation.Hashing()
        self._tells_seen = bool(superseding(config.profiles))
        self._routes = Routes(material, slot, log)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request: its response, its metrics and its line in the log."""
        began = time.perf_counter()
        number = next(self._numbers)
        seen = _Seen()
        try:
            response: web.StreamResponse = await self._answer(request, seen)
        except EstError as error:
            self._tell_seen(request)  # an enrolment too, for most refusals are none of an issuer's
            seen.reason, seen.why = error.reason, error.why
            response = respond(error)
            if not request.content.is_eof():
                response.force_close()  # a body that nobody will read cannot be followed by a request
        except asyncio.CancelledError:
            self._log("client_left", id=number, operation=seen.operation, label=seen.label)
            raise
        except Exception as error:
            self._log("request_failed", id=number, error=repr(error)[:500])
            seen.reason = Reason.INTERNAL
            response = respond(Unavailable(Reason.INTERNAL, "The server failed; its log says why."))
        if self._draining:
            response.force_close()
        self._tell(number, seen, response.status, time.perf_counter() - began, request.remote)
        return response

    def refused(self, error: EstError) -> None:
        """What was refused before it was a request."""
        seen = _Seen()
        seen.reason = error.reason
        self._tell(next(self._numbers), seen, error.status, 0.0, None)

    def _tell(self, number: int, seen: _Seen, status: int, seconds: float, peer: str | None) -> None:
        """The request's metrics and its line in the log."""
        slot = self._slot
        slot.count(metrics.REQUESTS.series(seen.operation, str(status)))
        slot.observe(metrics.REQUEST_SECONDS, metrics.REQUEST_SECONDS.series(seen.operation), seconds)
        if seen.reason:
            slot.count(metrics.REJECTIONS.series(seen.reason))
        self._log(
            "request", id=number, operation=seen.operation, label=seen.label, status=status,
            reason=seen.reason, serial=seen.serial, identity=seen.identity, ms=round(seconds * 1000, 3),
            peer=peer, why=seen.why,
        )  # fmt: skip

    async def _answer(self, request: web.BaseRequest, seen: _Seen) -> web.StreamResponse:
        path = request.rel_url.raw_path  # undecoded: %2F is no slash here, as it is none to a proxy in front
        served, operation = self._routes.find(path)
        seen.operation = operation
        seen.label = served.label.name
        if proxy.is_sent(request.headers):
            shown = request.get_extra_info("tls").client_chain()
            proxy.check_sender(served.proxies, request.headers, request.remote or "", shown, time.time())
        if operation in _POSTED:
            if request.method != "POST":
                raise MethodNotAllowed("POST")
            return await self._enroll(request, served, operation, seen)
        self._tell_seen(request)
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("GET, HEAD")
        if operation == WHEN:
            return await self._renewal_info(path.rpartition("/")[2], served, seen)
        if operation == "crls" and served.crl is not None:
            body = await served.crl.get()
            return LongAnswer(body, wire.CRLS_ONLY_TYPE, seconds=self._config.server.body_seconds)
        told = served.told[operation]
        return nothing() if told is None else answer(told, _TOLD[operation])

    async def _renewal_info(self, text: str, served: Served, seen: _Seen) -> web.StreamResponse:
        """When the certificate of that name had best be renewed, by an issuer, who has the ledger."""
        asked = renewal_info.read(text)
        link = self._links[asked.serial[-1] % len(self._links)]
        if link.is_half_full:
            raise Unavailable(
                Reason.OVERLOADED, "Enrolments come first, and there are many; ask again later.",
                retry_after=retry_seconds(_ASK_LATER_SECONDS),
            )  # fmt: skip
        deadline = time.monotonic() + self._config.server.deadline_seconds
        given = await link.ask(frames.question(served.number, deadline, asked.key_id, asked.serial))
        if given.status != 200:
            raise _refused(given)
        seen.serial = given.serial.hex()
        return json_answer(given.payload, given.retry_after)

    def _tell_seen(self, request: web.BaseRequest) -> None:
        """Once for a connection: its client's certificate was seen, which may supersede the one that it renewed."""
        if not self._tells_seen:
            return
        connection: tls.TlsConnection = request.get_extra_info("tls")
        if not connection.told and (chain := connection.client_chain()):
            connection.told = True
            self._links[0].tell_seen(chain[: der.element_end(chain, 0)])

    async def _enroll(
        self, request: web.BaseRequest, served: Served, operation: str, seen: _Seen
    ) -> web.StreamResponse:
        """simpleenroll and simplereenroll (RFC 7030 §4.2) and serverkeygen (§4.4): evidence and CSR to an issuer, its
        answer to the client."""
        label = served.label
        connection = request.get_extra_info("tls")
        chain: bytes = connection.client_chain()
        if len(chain) > proxy.CHAIN_OCTETS_MAX:
            raise Unauthenticated(
                Reason.CERT_UNKNOWN,
                f"The certificates shown in TLS have {len(chain)} octets; estd takes {proxy.CHAIN_OCTETS_MAX}: show "
                "the client's own and what stands between it and its root.",
            )
        passed_on = self._passed_on(request, served, chain) if served.proxies else None
        if passed_on is not None:
            chain = passed_on  # the connection's own certificate is the proxy's
        else:
            proxy.check_stands_for_device(served.proxies_own, chain)
        user, rule, claim = await self._basic(request, served, seen)
        anonymous = not chain and user is None and claim is None
        if anonymous and not served.hears_otp:
            raise _no_credential()
        headers = request.headers
        wire.check_media_type(headers.get("Content-Type", ""), pem=label.pem)
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType(Reason.MEDIA_TYPE, "A request's body may not be compressed.")
        body = await self._body(request, label.body_bytes)
        sent = wire.read_pkcs10(body, pem=label.pem)
        if anonymous and not challenges.OTP.may_be_in(sent.csr_der):
            raise _no_credential()
        deadline = time.monotonic() + self._config.server.deadline_seconds
        linked = passed_on is None and csr.may_be_linked(sent.csr_der)
        binding = connection.channel_binding() if linked else b""
        verdict = b""
        if served.webhook is not None:
            said = await served.webhook.ask(chain=chain, claim=claim, operation=operation, csr_der=sent.csr_der)
            verdict = verdicts.pack(said) if said is not None else b""
        asked = Request(
            kind=_KINDS[operation],
            label=served.number,
            deadline=deadline,
            user=user,
            rule=rule,
            binding=binding,
            chain=chain,
            csr_der=sent.csr_der,
            peer=self._peer(request, served) if served.holds else "",
            claim=pack_claim(claim),
            verdict=verdict,
            asked_key=csr.key_sha256(sent.csr_der) if served.holds and operation == "serverkeygen" else b"",
        )
        challenge = challenges.REVOCATION.read(sent.csr_der) if label.revocation_challenge else None
        if operation == "serverkeygen":
            ask = partial(self._ask_for_key, asked, challenge, seen)
            given, private_key = await self._keys.serve(sent.csr_der, served.generated, ask)
            return Answer(wire.key_and_certificate(private_key, given.payload), _GENERATED)
        if challenge is None:
            given = _granted(await self._ask(asked), seen)
        else:
            given = _granted(await self._ask(asked._replace(kind=_FIRST[asked.kind])), seen)
            if not given.serial:
                kept = await self._hashing.hashed(challenge)
                given = _granted(await self._ask(asked._replace(revocation=kept)), seen)
        return Answer(wire.enrolled(given.payload, wrapped=sent.wrapped), _ENROLLED)

    def _ask(self, asked: Request) -> Awaitable[frames.Answer]:
        """What an issuer answers. Requests with one key always go to the same."""
        links = self._links
        return (links[0] if len(links) == 1 else links[csr.key_hash(asked.csr_der) % len(links)]).ask(asked)

    async def _ask_for_key(
        self, asked: Request, challenge: bytes | None, seen: _Seen, kind: int, csr_der: bytes
    ) -> frames.Answer:
        """What an issuer grants to what serverkeygen makes of a request; raises its refusal."""
        kept = await self._hashing.hashed(challenge) if challenge is not None and kind not in frames.ASKS else b""
        return _granted(await self._ask(asked._replace(kind=kind, csr_der=csr_der, revocation=kept)), seen)

    def _passed_on(self, request: web.BaseRequest, served: Served, chain: bytes) -> bytes | None:
        """What a proxy passes on of its client; None where the connection is the client's own."""
        given = proxy.passed_on(served.proxies, request.headers, request.remote or "", chain, time.time())
        if given is not None and served.label.linking == "demanded":
            raise BadRequest(
                Reason.LINKING,
                "This label demands linked proof of possession, and a proxy ends the TLS connection that it links to: "
                "reach this server directly, or another label.",
            )
        return given

    def _peer(self, request: web.BaseRequest, served: Served) -> str:
        """Where the request comes from, for a person who decides on it."""
        shown = request.get_extra_info("tls").client_chain() if served.proxies else b""
        return proxy.device_address(served.proxies, request.headers, request.remote or "", shown, time.time())

    async def _basic(
        self, request: web.BaseRequest, served: Served, seen: _Seen
    ) -> tuple[str | None, int, Claim | None]:
        """The name of a right credential and the rule it belongs to; or, where the label hears one-time secrets, a
        claim that the issuer judges. A 401 where it is wrong."""
        given = request.headers.get("Authorization")
        if given is None:
            return None, -1, None
        user, password = read_header(given)
        seen.identity = f"basic:{user[:64]}"
        for rule, credentials in served.basic:
            if await credentials.check(user, password):
                return user, rule, None
        if served.hears_secrets and is_serial_number(user):
            return None, -1, Claim(user, hashlib.sha256(password).digest(), "basic")
        raise Unauthenticated(Reason.WRONG_CREDENTIAL, "The user name or the password is wrong for this label.")

    async def _body(self, request: web.BaseRequest, limit: int) -> bytes:
        """The request's body, sized or chunked, at most `limit` bytes and within the body time-out."""
        content = request.content
        if (request.content_length or 0) > limit:
            raise TooLarge(Reason.TOO_LARGE, f"The body may have {limit} bytes.")
        if content.is_eof():
            body = content.read_nowait()
            if len(body) > limit:
                raise TooLarge(Reason.TOO_LARGE, f"The body may have {limit} bytes.")
            return body
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        parts = bytearray()
        try:
            async with asyncio.timeout(self._config.server.body_seconds):
                while part := await content.readany():
                    parts += part
                    if len(parts) > limit:
                        raise TooLarge(Reason.TOO_LARGE, f"The body may have {limit} bytes.")
        except TimeoutError:
            raise BadRequest(Reason.BAD_HTTP, "The body took too long to arrive.") from None
        except web.RequestPayloadError:
            raise BadRequest(Reason.BAD_HTTP, "The body's encoding is broken.") from None
        return bytes(parts)

    def drain(self) -> None:
        self._draining = True

    async def close(self) -> None:
        for one in self._routes.webhooks:
            await one.close()


def _granted(given: frames.Answer, seen: _Seen) -> frames.Answer:
    """An issuer's answer that is none of its refusals, which are raised."""
    seen.identity = given.identity or seen.identity
    if given.status != 200:
        raise _refused(given)
    seen.serial = given.serial.hex()
    return given


def _refused(given: frames.Answer) -> EstError:
    """What an issuer's answer says is wrong."""
    kind = BY_STATUS[given.status]
    sentence, _, why = given.payload.partition(frames.WHY)
    return kind(REASONS[given.reason], sentence.decode(), retry_after=given.retry_after or None, why=why.decode())


def _no_credential() -> Unauthenticated:
    return Unauthenticated(
        Reason.NO_CREDENTIAL, "Present a client certificate in TLS, or a credential by HTTP Basic authentication."
    )
