"""The edge process: TLS, HTTP, EST's operations and labels, Basic credentials; an enrolment goes on to an issuer.

It holds no key of the CA, no PIN and no ledger, and it decides nothing about a certificate: it hands over evidence.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import signal
import socket
import time

import uvloop
from aiohttp import http_parser, web
from OpenSSL import SSL

from estd import csr, der, frames, keygen, metrics, proxy, tls, wire
from estd.config import Config
from estd.credentials import read_header
from estd.crl_file import CrlBody
from estd.doors import Doors
from estd.errors import (
    BY_STATUS,
    EXIT_FATAL,
    REASONS,
    BadRequest,
    EstError,
    MethodNotAllowed,
    NotFound,
    Reason,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from estd.frames import Request
from estd.http import Answer, HttpServer, answer, head, nothing, respond
from estd.issuer_link import IssuerLink
from estd.labels import OPERATIONS, superseding
from estd.logs import Log
from estd.material import Material, load
from estd.served import ENROLMENTS, Served
from estd.starting import Turn, issuer_socket

_GIVE_BACK_SECONDS = 10.0
_HERD = 100
"""Connections; each had about 60 KB while it was open."""
_ROOT = "/.well-known/est/"
_POSTED = {*ENROLMENTS, "serverkeygen"}
"""What shows the client's certificate to an issuer."""
_TOLD = {"cacerts": wire.CERTS_ONLY_TYPE, "csrattrs": wire.CSRATTRS_TYPE}
"""What is the same for everybody, and its media type."""
_ENROLLED = head(wire.CERTS_ONLY_TYPE)
_GENERATED = head(wire.KEY_AND_CERTIFICATE_TYPE, "Cache-Control: no-store")


class _Seen:
    """What the log line and the metrics say of a request, filled in on its way."""

    __slots__ = ("identity", "label", "operation", "reason", "serial")

    def __init__(self) -> None:
        self.operation = "other"
        self.label = ""
        self.reason = ""
        self.identity = ""
        self.serial = ""


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
        self._has_proxies = bool(config.proxies)
        self._tells_seen = bool(superseding(config.profiles))
        served = [Served(number, label, material) for number, label in enumerate(config.labels.values())]
        default = next(one for one in served if one.label.name == config.server.default_label)
        self._routes: dict[str, tuple[Served, str]] = {}
        for one in served:
            for operation in one.operations:
                self._routes[f"{_ROOT}{one.label.name}/{operation}"] = (one, operation)
        for operation in default.operations:
            self._routes[_ROOT + operation] = (default, operation)
        bodies = {
            name: CrlBody(ca.crl.file, material.cas[name]) for name, ca in config.cas.items() if ca.crl.on
        }  # one for all labels of a CA: it may be long
        for one in served:
            if one.label.ca in bodies:
                one.crl = bodies[one.label.ca]
                self._routes[f"{_ROOT}{one.label.name}/crls"] = (one, "crls")
        if default.crl is not None:
            self._routes[_ROOT + "crls"] = (default, "crls")
        self._known_labels = {one.label.name for one in served}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request: its response, its metrics and its line in the log."""
        began = time.perf_counter()
        number = next(self._numbers)
        seen = _Seen()
        try:
            response: web.StreamResponse = await self._answer(request, seen)
        except EstError as error:
            seen.reason = error.reason
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
            peer=peer,
        )  # fmt: skip

    async def _answer(self, request: web.BaseRequest, seen: _Seen) -> web.StreamResponse:
        path = request.rel_url.raw_path  # undecoded: %2F is no slash here, as it is none to a proxy in front
        route = self._routes.get(path)
        if route is None:
            raise self._not_found(path)
        served, operation = route
        seen.operation = operation
        seen.label = served.label.name
        if self._tells_seen and operation not in _POSTED:
            self._tell_seen(request.get_extra_info("tls"))
        if operation in _TOLD:
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed("GET, HEAD")
            body = served.told[operation]
            return nothing() if body is None else answer(body, _TOLD[operation])
        if operation == "crls" and served.crl is not None:
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed("GET, HEAD")
            return answer(served.crl.get(), wire.CRLS_ONLY_TYPE)
        if request.method != "POST":
            raise MethodNotAllowed("POST")
        return await self._enroll(request, served, operation, seen)

    def _tell_seen(self, connection: tls.TlsConnection) -> None:
        """Once for a connection: its client's certificate was seen, which may supersede the one that it renewed."""
        if not connection.told and (chain := connection.client_chain()):
            connection.told = True
            self._links[0].tell_seen(chain[: der.element_end(chain, 0)])

    def _not_found(self, path: str) -> NotFound:
        label, _, operation = path.removeprefix(_ROOT).rpartition("/")
        if not path.startswith(_ROOT):
            return NotFound(Reason.UNKNOWN_OPERATION, f"EST's operations are under {_ROOT}.")
        if path.endswith("/") or label.startswith("/") or "//" in path:
            return NotFound(
                Reason.UNKNOWN_OPERATION,
                f"The path has a slash too many; it is {_ROOT}OPERATION or {_ROOT}LABEL/OPERATION.",
            )
        if label and label not in self._known_labels:
            return NotFound(Reason.UNKNOWN_LABEL, f"There is no label {label[:64]!r} here.")
        if operation in OPERATIONS:
            return NotFound(Reason.UNKNOWN_OPERATION, f"The operation {operation} is not offered here.")
        return NotFound(Reason.UNKNOWN_OPERATION, "There is no such operation; try cacerts or simpleenroll.")

    async def _enroll(
        self, request: web.BaseRequest, served: Served, operation: str, seen: _Seen
    ) -> web.StreamResponse:
        """simpleenroll and simplereenroll (RFC 7030 §4.2) and serverkeygen (§4.4): evidence and CSR to an issuer, its
        answer to the client."""
        label = served.label
        connection = request.get_extra_info("tls")
        chain: bytes = connection.client_chain()
        passed_on = self._passed_on(request, served, chain) if self._has_proxies else None
        if passed_on is not None:
            chain = passed_on  # the connection's own certificate is the proxy's
        user, rule = await self._basic(request, served, seen)
        if not chain and user is None:
            raise Unauthenticated(
                Reason.NO_CREDENTIAL,
                "Present a client certificate in TLS, or a credential by HTTP Basic authentication.",
            )
        headers = request.headers
        wire.check_media_type(headers.get("Content-Type", ""), pem=label.pem)
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType(Reason.MEDIA_TYPE, "A request's body may not be compressed.")
        body = await self._body(request, label.body_bytes)
        sent = wire.read_pkcs10(body, pem=label.pem)
        linked = passed_on is None and csr.has_challenge_password(sent.csr_der)
        binding = connection.channel_binding() if linked else b""

        async def ask(kind: int, csr_der: bytes) -> frames.Answer:
            link = self._links[0] if len(self._links) == 1 else self._links[csr.key_hash(csr_der) % len(self._links)]
            given = await link.ask(
                Request(
                    id=0,
                    kind=kind,
                    label=served.number,
                    deadline=time.monotonic() + self._config.server.deadline_seconds,
                    user=user,
                    rule=rule,
                    binding=binding,
                    chain=chain,
                    csr_der=csr_der,
                    peer=(request.remote or "") if label.approval.held != "off" else "",
                )
            )
            seen.identity = given.identity or seen.identity
            if given.status != 200:
                raise BY_STATUS[given.status](
                    REASONS[given.reason], given.payload.decode(), retry_after=given.retry_after or None
                )
            seen.serial = given.serial.hex()
            return given

        if operation == "serverkeygen":
            given, private_key = await self._keys.serve(sent.csr_der, served.generated, ask)
            return Answer(wire.key_and_certificate(private_key, given.payload), _GENERATED)
        given = await ask(ENROLMENTS[operation], sent.csr_der)
        return Answer(wire.enrolled(given.payload, wrapped=sent.wrapped), _ENROLLED)

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

    async def _basic(self, request: web.BaseRequest, served: Served, seen: _Seen) -> tuple[str | None, int]:
        """The name of a right credential and the rule it belongs to. A 401 where it is wrong."""
        given = request.headers.get("Authorization")
        if given is None:
            return None, -1
        user, password = read_header(given)
        seen.identity = f"basic:{user[:64]}"
        for rule, credentials in served.basic:
            if await credentials.check(user, password):
                return user, rule
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


async def serve(
    material: Material, context: SSL.Context, index: int, listener: socket.socket, slot: metrics.Slot, log: Log,
    turn: Turn,
) -> None:  # fmt: skip
    """One edge, until SIGTERM; then what was accepted is answered and the connections are closed. SIGUSR1 ends it more
    gently, for another generation serves now: connections stay for their next request, as long as a drain may take."""
    config = material.config
    loop = asyncio.get_running_loop()
    stop, retire, nobody = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, retire.set)
    links = [
        IssuerLink(
            issuer_socket(config.run, number, turn.generation), validate=csr.check, queue=config.server.queue,
            slot=slot, loop=loop,
        )
        for number in range(config.server.issuers)
    ]  # fmt: skip
    edge = Edge(config, material, links, slot, log)
    http = HttpServer(edge.handle, idle_seconds=config.server.idle_seconds, on_refusal=edge.refused)
    open_now = most_open = 0

    def begin() -> asyncio.Protocol:
        nonlocal open_now, most_open
        open_now += 1
        most_open = max(most_open, open_now)
        slot.count(metrics.CONNECTIONS.at)
        slot.set(metrics.CONNECTIONS_OPEN.at, open_now)
        if open_now >= config.server.max_connections:
            doors.close()
        return tls.TlsConnection(
            context, http, loop=loop, handshake_seconds=config.server.handshake_seconds, on_end=end
        )

    def end(succeeded: bool) -> None:
        nonlocal open_now
        open_now -= 1
        slot.set(metrics.CONNECTIONS_OPEN.at, open_now)
        if not open_now:
            nobody.set()
        if not succeeded:
            slot.count(metrics.HANDSHAKE_FAILURES.at)
        if open_now == config.server.max_connections - 1 and not (stop.is_set() or retire.is_set()):
            reopening.append(loop.create_task(doors.open()))
            del reopening[:-1]

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone

    def give_back() -> None:
        """After a herd its memory goes back to the kernel: glibc keeps what lies between the little that is in use."""
        nonlocal most_open
        if most_open > 2 * open_now + _HERD and trim is not None:
            trim(0)
        most_open = open_now
        loop.call_later(_GIVE_BACK_SECONDS, give_back)

    give_back()
    reopening: list[asyncio.Task[None]] = []
    doors = Doors(listener, begin)
    async with asyncio.TaskGroup() as connecting:
        for link in links:
            connecting.create_task(link.connect())
    await doors.open()
    log("edge_ready", index=index)
    await _first(stop, retire)
    edge.drain()
    doors.close()
    if open_now:
        nobody.clear()
        await _first(stop, nobody, seconds=config.server.drain_seconds)
    await http.drain(config.server.drain_seconds)
    for link in links:
        link.close()


async def _first(*events: asyncio.Event, seconds: float | None = None) -> None:
    """Until one of the events, or that long."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()


def main(config: Config, index: int, listener: socket.socket, slot: metrics.Slot, log: Log, turn: Turn) -> int:
    """The child process `edge`."""
    if "HttpRequestParserC" not in dir(http_parser):
        raise SystemExit("aiohttp's C parser is missing; the one in Python is not safe enough: reinstall aiohttp")
    try:
        material = load(config)
        context = tls.server_context(config.server.tls_certificate, config.server.tls_key)
        turn.prepared()
        uvloop.run(serve(material, context, index, listener, slot, log, turn))
    except (SSL.Error, OSError) as error:
        log("edge_failed", why=repr(error))
        turn.failed(f"server.tls_certificate, server.tls_key: {error}")
        return EXIT_FATAL
    return 0
