"""The page where a person decides (R27), as a browser uses it and as nobody should."""

from __future__ import annotations

import asyncio
import base64
import http.client
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from cryptography import x509

from estd import credentials
from estd.errors import Refused
from estd.ledger import Reader
from estd.ledger_requests import HeldRequest, plain_text
from estd.markup import Markup, fill
from estd.requests_page import PAGE_ROWS, TABS
from tests import make, servers
from tests.browser import Browser, browser
from tests.servers import Server

HOSTILE = '"><script>document.title=1</script><img src=//evil.example/x onerror=alert(1)>&{0}'


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A demonstration instance with its label `approval`, serving."""
    made = servers.init(tmp_path_factory.mktemp("desk") / "instance")
    with servers.running(made):
        yield made


@dataclass
class Device:
    """One that asks under the label `approval`, with one key."""

    server: Server
    name: str
    san: tuple[x509.GeneralName, ...] = ()
    label: str | None = "approval"
    key: Any = field(default_factory=make.key)

    def ask(self) -> x509.Certificate:
        with self.server.client(basic=True, label=self.label) as client:
            return client.enroll(lambda _: make.csr(self.key, subject=make.name(self.name), san=self.san))

    def is_told(self) -> tuple[int, str]:
        with pytest.raises(Refused) as refused:
            self.ask()
        return refused.value.status, refused.value.sentence

    def waits(self) -> HeldRequest:
        """Asks, must be told to wait, and is found in the ledger."""
        assert self.is_told()[0] == 202
        found = newest(self.server)
        assert found is not None
        return found


def newest(server: Server) -> HeldRequest | None:
    with Reader(server.folder / "ledger.sqlite3") as reader:
        return next(reader.requests.search(0, limit=1), None)


def find(server: Server, number: int) -> HeldRequest:
    with Reader(server.folder / "ledger.sqlite3") as reader:
        found = reader.requests.find(number, 0)
    assert found is not None
    return found


def approver(server: Server) -> tuple[str, str]:
    user, _, password = (server.folder / "demo" / "approver").read_text().strip().partition(":")
    return user, password


def browse(server: Server, act: Callable[[Browser, str], Awaitable[None]]) -> None:
    """A person at a browser, who knows the password."""

    async def sit_down() -> None:
        async with browser() as window:
            window.credentials = approver(server)
            await act(window, f"http://127.0.0.1:{server.admin_port}/requests")
            assert window.complaints == []
            assert all(url.startswith(f"http://127.0.0.1:{server.admin_port}/") for url in window.asked)

    asyncio.run(sit_down())


def test_R27_a_person_approves_in_a_browser(desk: Server) -> None:
    """Log in, find the request among others, read who asks for what, approve with a note; the device gets its
    certificate at its next try, and the page says so. No script runs, and nothing is fetched from elsewhere."""
    device = Device(desk, "pump-7", (x509.DNSName("pump-7.example.com"), x509.DNSName("pump.example.com")))
    Device(desk, "valve-1").waits()
    one = device.waits()

    async def act(window: Browser, url: str) -> None:
        await window.goto(url)
        assert "signed in as approver" in await window.text("header")
        await window.type("#q", "PUMP-7")
        await window.press("Enter", loads=True)
        assert "CN=pump-7" in await window.text("tbody")
        assert "valve-1" not in await window.text()
        await window.click("tbody a")
        told = await window.text("main")
        for word in (
            "CN=pump-7", "DNS:pump-7.example.com", "DNS:pump.example.com", "ec-p256", one.spki_sha256.hex(":", 2),
            "basic:factory", "127.0.0.1", "approval", "factory", "UTC", "waiting",
        ):  # fmt: skip
            assert word in told
        await window.type("#approved-reason", "seen at the dock")
        await window.click("button.approved")
        assert (await window.ask("location.pathname")) == f"/requests/{one.id}"
        assert "approved by page:approver" in await window.text()
        assert "seen at the dock" in await window.text(".history")
        # Going back and forth, or loading again, sends nothing again: the answer to the form was a redirection.
        await window.goto(await window.ask("location.href"))
        certificate = device.ask()
        await window.goto(f"{url}/{one.id}")
        assert certificate.serial_number.to_bytes(16, "big").hex() in await window.text()
        assert await window.ask("document.querySelectorAll('form').length") == 0

    browse(desk, act)
    held = find(desk, one.id)
    assert (held.state, held.decided_by, held.reason) == ("issued", "page:approver", "seen at the dock")
    assert "request_decided" in {line["event"] for line in desk.log_lines()}


def test_R27_a_person_denies_by_keyboard(desk: Server) -> None:
    """Everything can be reached by Tab, in a sensible order; a denial without a reason is not sent by the browser; with
    one, the device is told it."""
    device = Device(desk, "stray-1")
    one = device.waits()

    async def act(window: Browser, url: str) -> None:
        await window.goto(f"{url}/{one.id}")
        reached: list[str] = []
        for _ in range(7):
            await window.press("Tab")
            reached.append(await window.ask("document.activeElement.className || document.activeElement.id || "
                                            "document.activeElement.innerText"))  # fmt: skip
            if reached[-1] == "denied-reason":
                break
        assert reached == ["skip", "brand", "All that waits", "approved-reason", "approved", "denied-reason"]
        await window.press("Enter")  # without a reason
        assert await window.ask("document.querySelector('#denied-reason').validity.valueMissing")
        assert find(desk, one.id).state == "pending"
        await window("Input.insertText", text="Nobody ordered it")
        await window.press("Tab")
        await window.press("Enter", loads=True)
        assert "denied by page:approver" in await window.text()

    browse(desk, act)
    assert device.is_told() == (403, "The request was denied: Nobody ordered it.")


def test_a_hostile_name_is_text(desk: Server) -> None:
    """A name that is HTML is shown as its text in list, page, title and search, and makes no element; a reason too."""
    one = Device(desk, HOSTILE[:60]).waits()

    async def act(window: Browser, url: str) -> None:
        await window("Emulation.setScriptExecutionDisabled", value=False)  # so that only the page itself protects
        for page in (
            f"{url}?{urlencode({'q': HOSTILE[:20]})}",
            f"{url}/{one.id}",
            f"{url}?{urlencode({'q': HOSTILE})}",
        ):
            await window.goto(page)
            assert await window.ask("document.querySelectorAll('script, main img').length") == 0
        await window.goto(f"{url}/{one.id}")
        assert "<script" in (await window.text("h1")).replace("\\", "")
        await window.type("#denied-reason", HOSTILE)
        await window.click("button.denied")
        assert HOSTILE in await window.text(".history")
        assert await window.ask("document.querySelectorAll('script, main img').length") == 0
        assert await window.ask("document.title") == f"Request {one.id} · estd"

    browse(desk, act)


def test_the_page_reads_well_small_dark_and_empty(desk: Server) -> None:
    """Each control has a label and each page a heading; nothing overflows a telephone; text keeps the contrast of
    WCAG AA in light and dark; a list with nothing in it says something friendly."""
    one = Device(desk, "n" * 60, (x509.DNSName(".".join(["a" * 60] * 4)),)).waits()

    async def act(window: Browser, url: str) -> None:
        for dark in (False, True):
            for width in (360, 1280):
                await window.look(width, 800, dark=dark)
                for page in (url, f"{url}?state=all", f"{url}?q=nothing-like-this", f"{url}/{one.id}"):
                    await window.goto(page)
                    assert await window.ask("document.documentElement.scrollWidth <= innerWidth"), (page, width)
                    assert await window.ask("document.querySelectorAll('h1').length") == 1
                    assert await window.ask(
                        "[...document.querySelectorAll('input:not([type=hidden])')].every(i => i.labels.length == 1)"
                    )
                    assert await window.ask(_CONTRAST) == [], (page, dark)
        assert await window.ask("document.documentElement.lang") == "en"
        await window.goto(f"{url}?q=nothing-like-this")
        assert "Nothing fits this search" in await window.text()

    browse(desk, act)


_CONTRAST = """(() => {
  const rgb = c => (c.match(/[0-9.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(
    v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
  const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (rgb(c)[3] !== 0) return c } return 'rgb(255, 255, 255)' };
  return [...document.querySelectorAll('body *')].filter(e => e.innerText && !e.matches('.skip')
      && [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())).filter(e => {
    const a = light(getComputedStyle(e).color), b = light(back(e));
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5 }).map(e => e.outerHTML.slice(0, 80));
})()"""
"""Elements whose text has less than 4.5 to 1."""


class Got(NamedTuple):
    status: int
    headers: Message
    text: str


def ask(
    server: Server, path: str, fields: dict[str, str] | None = None, *, login: str | None = None, cookie: str = "",
    host: str = "127.0.0.1", **headers: str,
) -> Got:  # fmt: skip
    """One request without a browser; with fields it is a form. `login` is user:password, the approver's by default."""
    connection = http.client.HTTPConnection(host, server.admin_port, timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    login = ":".join(approver(server)) if login is None else login
    if login:
        sent["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    if cookie:
        sent["Cookie"] = cookie
    body = None if fields is None else urlencode(fields)
    if fields is not None:
        sent.setdefault("Content-Type", "application/x-www-form-urlencoded")
    connection.request("GET" if fields is None else "POST", path, body, sent)
    answer = connection.getresponse()
    got = Got(answer.status, answer.headers, answer.read().decode())
    connection.close()
    return got


def opened(server: Server, number: int, **more: str) -> tuple[str, dict[str, str]]:
    """The cookie and the fields of the form to approve that a person gets who opens the request."""
    answer = ask(server, f"/requests/{number}", **more)
    cookie = (answer.headers["Set-Cookie"] or "").partition(";")[0]
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', answer.text))
    return cookie, {**hidden, "decision": "approved", "reason": ""}


@pytest.mark.parametrize("path", ["/requests", "/requests/1", "/requests?state=all&q=x"])
@pytest.mark.parametrize("login", ["", "approver:", "approver:wrong", ":", "nobody:x", "approver"])
def test_nobody_sees_the_page_without_a_password(desk: Server, path: str, login: str) -> None:
    """Without the right credential each page is 401, names its scheme, and shows nothing; a form is not looked at."""
    for fields in (None, {"token": "x"}):
        target = path if fields is None else "/requests/1/decision"
        answer = ask(desk, target, fields, login=login)
        text = answer.text
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
        assert "basic:factory" not in text
        assert "Please sign in" in text
        assert answer.headers["Set-Cookie"] is None


def test_what_was_open_stays_open(desk: Server) -> None:
    """Metrics, health and readiness need no credential, as before."""
    for path in ("/metrics", "/healthz", "/readyz"):
        assert ask(desk, path, login="").status == 200


def test_every_answer_has_its_guards(desk: Server) -> None:
    """Each page, refusal and style has a policy that lets no script and nothing from elsewhere in, may not be framed,
    sniffed or kept; the cookie is the page's alone."""
    number = Device(desk, "guarded").waits().id
    for path, login in (
        ("/requests", None), (f"/requests/{number}", None), ("/requests/999999", None), ("/requests", ""),
        ("/requests/style.css", None),
    ):  # fmt: skip
        headers = ask(desk, path, login=login).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] in ("no-store", "no-cache")
    cookie = ask(desk, f"/requests/{number}").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Path=/requests" in cookie


@pytest.mark.parametrize(
    "change",
    [
        {"token": ""}, {"token": "0" * 64}, {"token": None}, {"cookie": ""}, {"cookie": "estd-requests=other"},
        {"cookie": "estd-requests=\xff\xfe"}, {"Content_Encoding": "deflate"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "none"},
        {"login": "other"}, {"decision": "issued"}, {"decision": ""}, {"reason": "x" * 301}, {"long": "x" * 9000},
        {"Content_Type": "text/plain"}, {"Content_Type": "application/json"}, {"seen": "denied"}, {"seen": ""},
    ],
    ids=str,
)  # fmt: skip
def test_a_forged_form_decides_nothing(desk: Server, change: dict[str, str | None]) -> None:
    """CSRF: a token that is missing, wrong or another login's or browser's, a form from another site, one of another
    kind or for a state that the person did not see; each is refused with a page, and the request waits on."""
    others = desk.folder / "approvers"
    if "other" not in others.read_text():
        others.write_text(others.read_text() + credentials.line("other", "a password", generated=False) + "\n")
        servers.wait_for(lambda: ask(desk, "/requests", login="other:a password").status == 200, 10)
    number = Device(desk, "forged").waits().id
    assert ask(desk, f"/requests/{number}", cookie="estd-requests=\xff\xfe").status == 200
    cookie, fields = opened(desk, number)
    headers: dict[str, Any] = {"cookie": cookie}
    for name, value in change.items():
        if name == "login":
            headers["login"] = "other:a password"
        elif name == "cookie" or name[0].isupper():
            headers[name] = value
        elif value is None:
            del fields[name]
        else:
            fields[name] = value
    answer = ask(desk, f"/requests/{number}/decision", fields, **headers)
    text = answer.text
    assert answer.status in (400, 403, 409)
    assert "Not decided" in text
    assert find(desk, number).state == "pending"
    cookie, fields = opened(desk, number)
    good = ask(desk, f"/requests/{number}/decision", fields, cookie=cookie, Sec_Fetch_Site="same-origin")
    assert (good.status, good.headers["Location"]) == (303, f"/requests/{number}")
    assert find(desk, number).state == "approved"


def test_two_people_do_not_undo_each_other(desk: Server) -> None:
    """Who decides on what somebody else has decided meanwhile is shown how it stands, and decides nothing."""
    number = Device(desk, "raced").waits().id
    cookie, fields = opened(desk, number)
    denied = {**fields, "decision": "denied", "reason": "mine first"}
    assert ask(desk, f"/requests/{number}/decision", denied, cookie=cookie).status == 303
    late = ask(desk, f"/requests/{number}/decision", fields, cookie=cookie)
    text = late.text
    assert late.status == 409
    assert "changed meanwhile" in text
    assert "mine first" in text
    assert find(desk, number).state == "denied"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/requests/999999", 404), ("/requests/9999999999999999999", 404), ("/requests/0", 404), ("/requests/-1", 404),
        ("/requests/1%27", 404), ("/requests?state=nothing", 404), ("/requests?before=x", 200),
        ("/requests?before=99999999999999999999", 200), ("/requests?before=%C2%B2", 200), ("/requests?q=%00%FF", 200),
        ("/requests?q=" + "x" * 3000, 200),
    ],
)  # fmt: skip
def test_an_odd_question_gets_a_page(desk: Server, path: str, status: int) -> None:
    """A path or query that no link of ours has is a page, or a 404, never a fault."""
    assert ask(desk, path).status == status


def test_the_list_goes_on(desk: Server) -> None:
    """More than a page of requests has a link to the older ones, where the list goes on without a gap."""
    with desk.client(basic=True, label="approval") as client:
        for number in range(PAGE_ROWS + 1):
            with pytest.raises(Refused):
                client.enroll(lambda _, number=number: make.csr(subject=make.name(f"many-{number}")))  # type: ignore[misc]
    first = ask(desk, "/requests?q=many-").text
    names = re.findall(r"CN=(many-\d+)", first)
    (older,) = re.findall(r'<a class="button" href="([^"]+)">', first)
    second = ask(desk, older.replace("&amp;", "&")).text
    names += re.findall(r"CN=(many-\d+)", second)
    assert names == [f"many-{number}" for number in reversed(range(PAGE_ROWS + 1))]
    assert 'class="button"' not in second
    for state in TABS:
        assert ask(desk, f"/requests?state={state}").status == 200


def test_the_page_says_that_the_writer_is_away(desk: Server, folder: Path) -> None:
    """Where nothing answers on the writer's socket, a decision is a 503 page and nothing is decided; health goes on."""
    number = Device(desk, "away").waits().id
    cookie, fields = opened(desk, number)
    door = desk.folder / "run" / "ledger.sock"
    door.rename(folder / "kept.sock")
    try:
        answer = ask(desk, f"/requests/{number}/decision", fields, cookie=cookie)
        assert (answer.status, "does not answer" in answer.text) == (503, True)
        assert ask(desk, "/healthz", login="").status == 200
    finally:
        (folder / "kept.sock").rename(door)
    assert find(desk, number).state == "pending"


@contextmanager
def _slow(desk: Server) -> Iterator[None]:
    """A form whose body does not come."""
    connection = http.client.HTTPConnection("127.0.0.1", desk.admin_port, timeout=30)
    connection.putrequest("POST", "/requests/1/decision")
    login = base64.b64encode(":".join(approver(desk)).encode()).decode()
    for name, value in (
        ("Authorization", f"Basic {login}"), ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Length", "100"),
    ):  # fmt: skip
        connection.putheader(name, value)
    connection.endheaders()
    yield
    connection.close()


def test_a_slow_form_holds_up_nobody(desk: Server) -> None:
    """Others are served while somebody's form does not arrive, and while passwords are checked."""
    with _slow(desk), _slow(desk), _slow(desk):
        threads = [threading.Thread(target=lambda: ask(desk, "/requests", login="other:guess")) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert ask(desk, "/metrics", login="").status == 200
        for thread in threads:
            thread.join()


def test_there_is_no_page_without_credentials(folder: Path) -> None:
    """Without [admin] credentials the port has no such path."""
    made = servers.init(folder / "instance")
    made.config.write_text(made.config.read_text().replace('[admin]\ncredentials = "approvers"', ""))
    with servers.running(made):
        assert made.admin("/requests")[0] == 404
        assert made.admin("/requests/style.css")[0] == 404


def test_the_page_is_for_loopback(folder: Path) -> None:
    """On an address of the network the port serves metrics, but this page to nobody: its password would go in clear."""
    made = servers.init(folder / "instance")
    made.config.write_text(
        made.config.read_text().replace(f"127.0.0.1:{made.admin_port}", f"0.0.0.0:{made.admin_port}")
    )
    address = _own_address()
    with servers.running(made):
        assert ask(made, "/requests").status == 200
        answer = ask(made, "/requests", host=address)
        assert (answer.status, "loopback only" in answer.text) == (403, True)


def _own_address() -> str:
    """An address of this host that is not loopback's; none is asked for anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.fail("this host has loopback alone: ip link add d0 type dummy; ip address add 192.0.2.7/24 dev d0")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("<b>&\"'", "<i>&lt;b&gt;&amp;&quot;&#x27;</i>"), (Markup("<b>"), "<i><b></i>"),
        ("{x}", "<i>{x}</i>"), (7, "<i>7</i>"),
        ("a\nb\x1b[2J\u202ec\x00", "<i>a\ufffdb\ufffd[2J\ufffdc\ufffd</i>"),
    ],
)  # fmt: skip
def test_markup_is_safe_by_its_type(given: object, made: str) -> None:
    """What is not Markup is escaped, with its control and direction characters replaced; braces in it are text."""
    assert fill("<i>{x}</i>", x=given) == made
    assert isinstance(fill("{x}", x=given), Markup)


def test_what_a_client_chose_cannot_steer_a_terminal() -> None:
    """Control characters and those that turn the text round are replaced in what commands print."""
    assert plain_text("a\x1b]0;x\x07b\u2066c é 漢") == "a\ufffd]0;x\ufffdb\ufffdc é 漢"
