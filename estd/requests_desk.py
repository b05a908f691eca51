"""The desk on the admin port where a person decides on requests that wait: who may, and what the browser may do.

Each request is authenticated (HTTP Basic, [admin] credentials) and served to loopback alone, since the port speaks
plain HTTP. A decision needs a token that is bound to the login and to a SameSite=Strict cookie. The ledger is asked in
threads of its own, so that the supervisor's loop never waits for a disk or for the writer.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs

from aiohttp import web

from estd import requests_page
from estd.config import Config
from estd.credentials import Credentials, read_header
from estd.errors import EstError
from estd.ledger import LedgerError, Reader
from estd.ledger_link import RemoteWriter
from estd.ledger_requests import DECISIONS, REASON_MAX, Decision
from estd.logs import Log
from estd.requests_page import PAGE_ROWS, ROOT, TABS, Form

T = TypeVar("T")
_COOKIE = "estd-requests"
_FORM_BYTES = 8192
_BODY_SECONDS = 10
_NUMBER_MAX = 2**63 - 1
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request, str], Awaitable[web.Response]]


class Desk:
    """`routes` say what it answers."""

    def __init__(self, in_force: Callable[[], Config], log: Log) -> None:
        """`in_force` says which configuration serves now, for a reload may change who decides here."""
        self._in_force = in_force
        self._log = log
        config = in_force()
        self._ledger = config.ledger  # this, and where its writer is asked, changes with a restart alone
        self._socket = config.run / "ledger.sock"
        self._known: tuple[Path, Credentials] | None = None
        self._key = secrets.token_bytes(32)
        self._threads = ThreadPoolExecutor(2, "requests-desk")
        self._css = resources.files("estd").joinpath("templates/requests.css").read_bytes()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(ROOT, self._for_a_person(self._list)),
            web.get(ROOT + r"/{number:\d{1,19}}", self._for_a_person(self._show)),
            web.post(ROOT + r"/{number:\d{1,19}}/decision", self._for_a_person(self._decide)),
            web.get(ROOT + "/style.css", self._style),
        ]

    def _credentials(self) -> Credentials:
        """Those who decide."""
        path = self._in_force().approvers
        assert path is not None  # else nobody comes here
        if self._known is None or self._known[0] != path:
            self._known = path, Credentials(path, self._log)
        return self._known[1]

    async def _style(self, _: web.Request) -> web.Response:
        return web.Response(body=self._css, content_type="text/css", headers={**_HEADERS, "Cache-Control": "no-cache"})

    def _for_a_person(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        """The handler behind the log-in, with the headers that every page has."""

        async def serve(request: web.Request) -> web.Response:
            user = ""
            try:
                _check_loopback(request)
                user = await self._log_in(request)
                response = await handler(request, user)
            except web.HTTPException as answer:
                response = _page(answer.status, requests_page.message(answer.reason, answer.text or "", user))
                response.headers.update({k: v for k, v in answer.headers.items() if k in ("WWW-Authenticate",)})
            except LedgerError as error:
                self._log("desk_failed", error=str(error))
                sentence = f"{error}. Nothing was changed that you did not see; look again in a moment."
                response = _page(503, requests_page.message("The ledger does not answer", sentence, user))
            response.headers.update(_HEADERS)
            return response

        return serve

    async def _log_in(self, request: web.Request) -> str:
        """The user whose password it is."""
        try:
            user, password = read_header(request.headers.get("Authorization", ""))
            good = bool(user) and await self._credentials().check(user, password)
        except EstError as error:
            if error.status == 503:
                raise web.HTTPServiceUnavailable(text=error.sentence, reason="Too busy") from None
            user, good = "", False
        if not good:
            if user:
                self._log("desk_login_failed", user=user[:64])
            raise web.HTTPUnauthorized(
                text="This page is for those whose name is in the [admin] credentials file (estd credential add).",
                reason="Please sign in",
                headers={"WWW-Authenticate": 'Basic realm="estd requests", charset="UTF-8"'},
            )
        return user

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _list(self, request: web.Request, user: str) -> web.Response:
        state = request.query.get("state", "pending")
        text = request.query.get("q", "").strip()[:200]
        given = request.query.get("before", "")
        before = min(int(given), _NUMBER_MAX) if given.isascii() and given.isdigit() and len(given) < 20 else None
        if state not in TABS:
            raise web.HTTPNotFound(text="There is no such state.", reason="Not found")
        now_ms = _now_ms()

        def ask() -> str:
            with Reader(self._ledger) as reader:
                rows = list(
                    reader.requests.search(
                        now_ms, state=None if state == "all" else state, text=text, before=before, limit=PAGE_ROWS + 1
                    )
                )
            return requests_page.listing(rows, state=state, text=text, before=before, now_ms=now_ms, user=user)

        return _page(200, await self._in_thread(ask))

    async def _show(self, request: web.Request, user: str, status: int = 200, form: Form | None = None) -> web.Response:
        number = _number(request)
        cookie = _cookie(request) or secrets.token_urlsafe(24)
        form = form or Form(self._token(user, cookie))
        now_ms = _now_ms()

        def ask() -> str | None:
            with Reader(self._ledger) as reader:
                one = reader.requests.find(number, now_ms)
                decisions = reader.requests.decisions(number)
            return requests_page.detail(one, decisions, form=form, now_ms=now_ms, user=user) if one else None

        page = await self._in_thread(ask)
        if page is None:
            raise web.HTTPNotFound(text=f"There is no request {number}.", reason="Not found")
        response = _page(status, page)
        response.set_cookie(_COOKIE, cookie, path=ROOT, httponly=True, samesite="Strict")
        return response

    async def _decide(self, request: web.Request, user: str) -> web.Response:
        number = _number(request)
        fields = await _form(request)
        cookie = _cookie(request)
        token = self._token(user, cookie)
        elsewhere = request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
        if elsewhere or not cookie or not hmac.compare_digest(fields.get("token", "").encode(), token.encode()):
            self._log("desk_forged", user=user)
            raise web.HTTPForbidden(
                text="The form did not come from this page, or the page is older than the server's last start. "
                "Open the request again and decide there.",
                reason="Not decided",
            )
        state, reason = fields.get("decision", ""), " ".join(fields.get("reason", "").split())
        if state not in DECISIONS or len(reason) > REASON_MAX:
            raise web.HTTPBadRequest(text="The form is not one of this page's.", reason="Not decided")
        if state == "denied" and not reason:
            form = Form(token, "Not decided: a denial needs a reason, which the device is told.")
            return await self._show(request, user, 400, form)
        decision = Decision(state, _now_ms(), f"page:{user}", reason)

        def ask() -> bool:
            with RemoteWriter(self._ledger, self._socket) as writer:
                return writer.decide(number, fields.get("seen", ""), decision)

        if not await self._in_thread(ask):
            form = Form(token, "Not decided: the request changed meanwhile. This is how it stands now.", reason)
            return await self._show(request, user, 409, form)
        self._log("request_decided", number=number, state=state, by=decision.by)
        return web.Response(status=303, headers={"Location": f"{ROOT}/{number}"})

    def _token(self, user: str, cookie: str) -> str:
        return hmac.digest(self._key, f"{user}\0{cookie}".encode(), "sha256").hex()


def _page(status: int, page: str) -> web.Response:
    return web.Response(status=status, text=page, content_type="text/html")


def _now_ms() -> int:
    return int(time.time() * 1000)


def _number(request: web.Request) -> int:
    return min(int(request.path.removeprefix(f"{ROOT}/").partition("/")[0]), _NUMBER_MAX)


def _cookie(request: web.Request) -> str:
    """This page's cookie; empty without one, or with one that this page never set."""
    given = request.cookies.get(_COOKIE, "")
    return given if given.isascii() else ""


def _check_loopback(request: web.Request) -> None:
    """A password in plain HTTP goes over loopback or not at all."""
    own = request.transport.get_extra_info("sockname") if request.transport is not None else None
    if not own or not ipaddress.ip_address(own[0].partition("%")[0]).is_loopback:
        raise web.HTTPForbidden(
            text="This page is served on loopback only, as this port speaks plain HTTP: come by an SSH tunnel, or by a "
            "proxy on this host that speaks TLS.",
            reason="Not from here",
        )


async def _form(request: web.Request) -> dict[str, str]:
    """The fields of a form, each once."""
    if request.content_type != "application/x-www-form-urlencoded" or (request.content_length or 0) > _FORM_BYTES:
        raise web.HTTPBadRequest(text="The form is not one of this page's.", reason="Not decided")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while part := await request.content.readany():
                body += part
                if len(body) > _FORM_BYTES:
                    raise web.HTTPBadRequest(text="The form is too long.", reason="Not decided")
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=16, errors="strict")
    except (TimeoutError, ValueError, web.RequestPayloadError):
        raise web.HTTPBadRequest(text="The form cannot be read.", reason="Not decided") from None
    return {name: values[0] for name, values in fields.items() if len(values) == 1}
