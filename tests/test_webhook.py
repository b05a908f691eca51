"""The webhook: asked by the edge in batches, believed only where its answer is exactly as it must be, and without its
word no certificate."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from estd import config, material, metrics, verdicts, webhook
from estd.devices import Claim
from estd.errors import BadRequest, Refused
from estd.verdicts import BadAnswer, Verdict
from estd.webhook import Webhook
from tests import make, servers
from tests.servers import Server
from tests.test_config import text

SECRET = "the hook's secret"
CLAIM = Claim("S1", hashlib.sha256(b"password").digest(), "basic")
Reply = Callable[[dict[str, Any]], tuple[int, bytes]]


def says(**word: Any) -> Reply:
    """An answer to each question with these words."""

    def reply(asked: dict[str, Any]) -> tuple[int, bytes]:
        answers = [{"id": one["id"], **word} for one in asked["questions"]]
        return 200, json.dumps({"answers": answers}).encode()

    return reply


class Service:
    """A service on loopback that is asked who may have what."""

    def __init__(self) -> None:
        self.reply: Reply = says(allow=True)
        self.posts: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.posts.append(asked)
                outer.headers.append(dict(self.headers))
                status, body = outer.reply(asked)
                try:
                    self.send_response(status)
                    if status == 307:
                        self.send_header("Location", f"http://127.0.0.1:{outer.port}/elsewhere")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # whoever asked did not wait

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


PATIENT = 'deadline = "30s"'
"""Longer than any machine is busy with something else; what is to be late is asked of those who are HASTY."""
HASTY = 'deadline = "1s"'
WITH_TIME = text("server", 'deadline = "60s"')


def hook_rule(port: int, *lines: str) -> str:
    more = "".join(f"{line}\n" for line in (*lines, *([] if HASTY in lines else [PATIENT])))
    return (
        f'[[label.default.allow]]\nwho = "webhook"\nprofile = "device"\nsecret_file = "hook.secret"\n'
        f'url = "http://127.0.0.1:{port}/who"\n{more}'
    )


class Scene:
    """An edge's webhook of a configuration with that one rule."""

    def __init__(self, folder: Path, port: int, *lines: str) -> None:
        (folder / "ca.pem").write_bytes(make.certificate(ca=True).pem)
        (folder / "hook.secret").write_text(SECRET + "\n")
        loaded = material.load(config.parse(WITH_TIME + hook_rule(port, *lines), folder))
        self.logged: list[dict[str, Any]] = []
        self.slot = metrics.Slot(memoryview(array("d", bytes(8 * metrics.SLOT_DOUBLES))))
        (policy,) = loaded.policies
        self.webhook = Webhook(
            policy.rules[0], "default", self.slot, lambda event, **fields: self.logged.append(fields)  # type: ignore[arg-type]
        )  # fmt: skip

    def run(self, *asking: Callable[[Webhook], Awaitable[Any]]) -> list[Any]:
        async def all_of_it() -> list[Any]:
            try:
                return await asyncio.gather(*(one(self.webhook) for one in asking), return_exceptions=True)
            finally:
                await self.webhook.close()

        return asyncio.run(all_of_it())


def ask(
    claim: Claim | None = CLAIM, *, chain: bytes = b"", csr_der: bytes | None = None, operation: str = "simpleenroll"
) -> Any:
    csr_der = csr_der or make.csr()
    return lambda hook: hook.ask(chain=chain, claim=claim, operation=operation, csr_der=csr_der)


def test_what_one_turn_brings_is_one_question(folder: Path, service: Service) -> None:
    """Requests that come together are asked in one POST, with the secret in its header and no password; each gets its
    own answer, whatever their order."""
    numbers = [f"S{number}" for number in range(20)]

    def reply(asked: dict[str, Any]) -> tuple[int, bytes]:
        answers = [{"id": one["id"], "allow": one["user"] != "S7", "why": one["user"]} for one in asked["questions"]]
        return 200, json.dumps({"answers": answers[::-1]}).encode()

    service.reply = reply
    found = Scene(folder, service.port).run(*(ask(CLAIM._replace(serial_number=number)) for number in numbers))
    assert [(one.say, one.why) for one in found] == [("deny" if one == "S7" else "allow", one) for one in numbers]
    (post,) = service.posts
    assert service.headers[0]["Authorization"] == f"Bearer {SECRET}"
    question = post["questions"][0]
    assert set(question) == {"id", "label", "operation", "csr", "user", "secret_sha256"}
    assert question["secret_sha256"] == hashlib.sha256(b"password").hexdigest()
    assert "password" not in json.dumps(post)


def test_a_question_is_about_a_device_of_the_anchors(folder: Path, service: Service) -> None:
    """With anchors, only who has a path to them is asked about; a stranger's certificate makes no traffic."""
    maker = make.certificate(ca=True)
    own, stranger = make.certificate(maker), make.certificate(make.certificate(ca=True))
    (folder / "maker.pem").write_bytes(maker.pem)
    scene = Scene(folder, service.port, 'anchors = "maker.pem"')
    found = scene.run(ask(None, chain=own.der), ask(None, chain=stranger.der), ask())
    assert [one.say if one else None for one in found] == ["allow", None, None]
    assert [set(one) for one in service.posts[0]["questions"]] == [
        {"id", "label", "operation", "csr", "certificate", "subject"}
    ]


def test_a_renewal_asks_nobody_about_a_secret_beside_its_certificate(folder: Path, service: Service) -> None:
    """It goes by the certificate, as the issuer decides too; without one, and elsewhere, the secret is asked about."""
    chain = make.certificate().der
    found = Scene(folder, service.port).run(
        ask(chain=chain, operation="simplereenroll"), ask(operation="simplereenroll"), ask(chain=chain)
    )
    assert [one.say if one else None for one in found] == [None, "allow", "allow"]
    assert [one["operation"] for one in service.posts[0]["questions"]] == ["simplereenroll", "simpleenroll"]


def test_R21_nobody_is_asked_about_what_is_no_request(folder: Path, service: Service) -> None:
    """R21: a request whose possession is not proved is refused before the service hears of it."""
    broken = bytearray(make.csr())
    broken[-1] ^= 1
    (found,) = Scene(folder, service.port).run(ask(csr_der=bytes(broken)))
    assert isinstance(found, BadRequest)
    assert service.posts == []


def sleeps(seconds: float) -> Reply:
    def reply(asked: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(seconds)
        return says(allow=True)(asked)

    return reply


BAD: dict[str, Reply] = {
    "an error": lambda _: (500, b"{}"),
    "another 2xx": lambda asked: (202, says(allow=True)(asked)[1]),
    "a redirect": lambda asked: (307, says(allow=True)(asked)[1]),
    "too late": sleeps(1.5),
    "too long": lambda _: (200, b" " * (webhook.ANSWER_BYTES + 1)),
    "nothing": lambda _: (200, b""),
    "no JSON": lambda _: (200, b"allow"),
    "not UTF-8": lambda _: (200, b'{"answers": "\xff"}'),
    "deep": lambda _: (200, b"[" * 100_000),
    "a list": lambda _: (200, b"[true]"),
    "no answer": lambda _: (200, b'{"answers": []}'),
    "a key more": lambda _: (200, b'{"answers": [{"id": 0, "allow": true}], "more": 1}'),
    "another id": lambda _: (200, b'{"answers": [{"id": 1, "allow": true}]}'),
    "an id that is true": lambda _: (200, b'{"answers": [{"id": false, "allow": true}]}'),
    "an answer twice": lambda _: (200, b'{"answers": [{"id": 0, "allow": true}, {"id": 0, "allow": true}]}'),
    "a key twice": lambda _: (200, b'{"answers": [{"id": 0, "allow": false, "allow": true}]}'),
    "an unknown key": says(allow=True, profil="x"),
    "allow as text": says(allow="true"),
    "allow as a number": says(allow=1),
    "no allow": says(profile="device"),
    "a profile that is no text": says(allow=True, profile=["device"]),
    "names that are no object": says(allow=True, names=["a.example"]),
    "names of another kind": says(allow=True, names={"email": ["a@b"]}),
    "a name that is no text": says(allow=True, names={"dns": [1]}),
    "a line break in a name": says(allow=True, names={"subject": "CN=a\n"}),
    "names without end": says(allow=True, names={"dns": ["a.example"] * 1000}),
    "long names without end": says(allow=True, names={"uri": ["urn:" + "ä" * 2000] * 100}),
    "NaN": lambda _: (200, b'{"answers": [{"id": NaN, "allow": true}]}'),
}


@pytest.mark.parametrize("case", BAD)
def test_an_answer_that_is_not_exactly_one_is_none(folder: Path, service: Service, case: str) -> None:
    """The webhook fails closed: only a whole, well-formed answer in time lets anybody in, and the log says why."""
    service.reply = BAD[case]
    scene = Scene(folder, service.port, *([HASTY] if case == "too late" else []))
    (found,) = scene.run(ask())
    assert found.say == "away"
    assert found.retry_after > 0
    assert len(service.posts) == 1
    if case != "too late":
        assert scene.logged[0]["why"]
        assert scene.slot.get(metrics.WEBHOOK_SECONDS.series("failed") + len(metrics.SECONDS) + 1) > 0


BAD_SECRETS: dict[str, bytes | None] = {
    "not UTF-8": b"geheim-schl\xfcssel-4711\n",
    "beyond ASCII": "geheim-schlüssel-4711\n".encode(),
    "a carriage return": b"4711\r4711\n",
    "a NUL": b"4711\0\n",
    "an empty first line": b"\n4711\n",
    "empty": b"",
    "gone": None,
}


@pytest.mark.parametrize("case", BAD_SECRETS)
def test_a_bad_secret_file_is_told_and_never_shown(folder: Path, service: Service, case: str) -> None:
    """A file whose first line is no header fails closed: nobody is asked and nobody waits, the circuit and the log are
    told, and nothing of the file is in the log. At start-up it is a problem."""
    scene, data = Scene(folder, service.port), BAD_SECRETS[case]
    path = folder / "hook.secret"
    path.unlink()
    if data is not None:
        path.write_bytes(data)

    async def course(hook: Webhook) -> list[Any]:
        return [await ask()(hook) for _ in range(webhook.FAILURES_MAX + 1)]

    (found,) = scene.run(course)
    assert [one.why for one in found] == ["it failed"] * webhook.FAILURES_MAX + ["the circuit is open"]
    assert service.posts == []
    assert len(scene.logged) == webhook.FAILURES_MAX
    assert all("hook.secret" in one["why"] and "4711" not in one["why"] for one in scene.logged)
    _, (told,) = material.read(config.parse(WITH_TIME + hook_rule(service.port), folder))
    assert told.startswith("label.default.allow[0]: ")
    assert "hook.secret" in told
    assert "4711" not in told


def test_what_nobody_foresaw_is_told_by_its_kind(folder: Path, service: Service, monkeypatch: Any) -> None:
    """Any exception settles its questions, counts as a failure, and is in the log by its type alone."""

    def fails(_: bytes, __: int) -> Any:
        raise ZeroDivisionError("4711")

    monkeypatch.setattr(verdicts, "read", fails)
    scene = Scene(folder, service.port)
    (found,) = scene.run(ask())
    assert (found.say, found.why) == ("away", "it failed")
    assert [one["why"] for one in scene.logged] == ["ZeroDivisionError"]


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["answers", "id", "allow", "profile", "names", "why", "dns"]), inner, max_size=4,
    ), max_leaves=12,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_answer_is_verdicts_or_none(body: bytes) -> None:
    """R39: whatever the service sends, it is one verdict for each question or a BadAnswer."""
    try:
        found = verdicts.read(body, 1)
    except BadAnswer:
        return
    assert len(found) == 1
    assert verdicts.unpack(verdicts.pack(found[0])) == found[0]


def test_an_answers_objects_are_counted() -> None:
    """An answer of many objects is given up at the first that it cannot need."""
    with pytest.raises(BadAnswer, match="objects"):
        verdicts.read(b'{"answers": [' + b"{}," * 100_000 + b"{}]}", 1)
    names = {"id": 0, "allow": True, "names": {"dns": ["a.example"]}}
    both = [names, {**names, "id": 1}]
    assert len(verdicts.read(json.dumps({"answers": both}).encode(), 2)) == 2


def test_a_verdict_travels_whole() -> None:
    """What the edge heard is what the issuer reads."""
    one = Verdict("allow", "device", {"subject": "CN=ä", "dns": ["a.example"], "ip": [], "uri": []}, "", 0)
    assert verdicts.unpack(verdicts.pack(one)) == one
    assert verdicts.unpack(b"") is None


def test_a_circuit_opens_where_the_service_is_down(folder: Path, service: Service, monkeypatch: Any) -> None:
    """After some failures nobody waits for the service; after a while one POST tries, and its answer closes the
    circuit."""
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter, time=time.time)
    monkeypatch.setattr(webhook, "time", clock)
    service.reply = lambda _: (500, b"")

    async def course(hook: Webhook) -> list[str]:
        nonlocal now
        said = [(await ask()(hook)).say for _ in range(webhook.FAILURES_MAX + 5)]
        assert len(service.posts) == webhook.FAILURES_MAX
        now += webhook.OPEN_SECONDS + 0.1
        said.append((await ask()(hook)).say)
        assert len(service.posts) == webhook.FAILURES_MAX + 1
        said.append((await ask()(hook)).say)
        assert len(service.posts) == webhook.FAILURES_MAX + 1, "one failure opens it again"
        now += webhook.OPEN_SECONDS + 0.1
        service.reply = says(allow=True)
        return [*said, (await ask()(hook)).say, (await ask()(hook)).say]

    (found,) = Scene(folder, service.port).run(course)
    assert found == ["away"] * (webhook.FAILURES_MAX + 7) + ["allow"] * 2


def test_what_waits_is_bounded(folder: Path, service: Service) -> None:
    """While a slow service has its POSTs, so many wait and no more; at the deadline all are told to come back."""
    service.reply = sleeps(1.2)
    many = webhook.WAITING_MAX + webhook.QUESTIONS_MAX * 4 + 50
    csr_der = make.csr()
    found = Scene(folder, service.port, HASTY).run(*(ask(csr_der=csr_der) for _ in range(many)))
    assert {one.say for one in found} == {"away"}
    assert sum(one.why == "too many wait" for one in found) >= 50


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Service]]:
    """A server with labels that ask one service: factory certificates, the same with less patience, and names with
    secrets."""
    service = Service()
    made = servers.init(tmp_path_factory.mktemp("webhook") / "instance")
    (made.folder / "hook.secret").write_text(SECRET)
    (made.folder / "hook.secret").chmod(0o600)
    common = (
        f'who = "webhook"\nprofile = "registered"\nprofiles = ["registered", "idevid"]\nsecret_file = "hook.secret"\n'
        f'url = "http://127.0.0.1:{service.port}/who"\n'
    )
    devices = 'anchors = "demo/manufacturer.pem"\ncrls = ["demo/manufacturer.crl"]\n'
    made.config.write_text(made.config.read_text().replace('# deadline = "10s"', 'deadline = "60s"'))
    with made.config.open("a") as file:
        file.write(
            f'[label.asked]\nca = "root"\n[[label.asked.allow]]\nwho = "issued"\n[[label.asked.allow]]\n{common}'
            f'{PATIENT}\n{devices}[label.hasty]\nca = "root"\n[[label.hasty.allow]]\n{common}{HASTY}\n{devices}'
            f'[label.named]\nca = "root"\n[[label.named.allow]]\n{common}{PATIENT}\n'
        )
    checked = subprocess.run([sys.executable, "-m", "estd.cli", "check", str(made.config)], check=False)
    assert checked.returncode == 0
    with servers.running(made):
        yield made, service
    service.close()


def enroll(made: Server, label: str = "asked", **how: Any) -> x509.Certificate:
    with made.client(label=label, **({"cert": made.idevid_files} if label != "named" else how)) as client:
        return client.enroll(lambda _: make.csr())


def test_the_webhook_says_who_may_have_what(server: tuple[Server, Service]) -> None:
    """R20: allowed with the names it gives, the certificate's own without; denied with its reason and no signature;
    another profile only where the rule names it."""
    made, service = server
    service.reply = says(allow=True, names={"subject": "CN=given", "dns": ["given.example"]})
    certificate = enroll(made)
    assert certificate.subject == make.name("given")
    service.reply = says(allow=True, profile="idevid")
    assert "DEMO-0001" in enroll(made).subject.rfc4514_string()
    assert made.rows()[-1].profile == "idevid"
    assert made.rows()[-1].identity.startswith("webhook:")
    signatures = made.metric("estd_sign_seconds_count")
    for word, said in (
        ({"allow": False, "why": "it was stolen"}, "it was stolen"),
        ({"allow": True, "profile": "factory"}, "does not name"),
        ({"allow": True, "names": {"dns": ["*.example"]}}, "cannot be had"),
    ):
        service.reply = says(**word)
        with pytest.raises(Refused, match=said) as caught:
            enroll(made)
        assert caught.value.status == 403
    assert made.metric("estd_sign_seconds_count") == signatures


def test_the_webhook_judges_a_name_and_its_secret(server: tuple[Server, Service]) -> None:
    """R5: without anchors a device shows a name and a secret, and the service is told the secret's SHA-256."""
    made, service = server
    right = hashlib.sha256(b"right").hexdigest()

    def reply(asked: dict[str, Any]) -> tuple[int, bytes]:
        answers = [{"id": one["id"], "allow": one["secret_sha256"] == right} for one in asked["questions"]]
        return 200, json.dumps({"answers": answers}).encode()

    service.reply = reply
    assert enroll(made, "named", user="dev-1", password="right").subject == make.name("dev-1")
    with pytest.raises(Refused) as caught:
        enroll(made, "named", user="dev-1", password="wrong")
    assert caught.value.status == 403


def test_without_the_webhooks_word_there_is_no_certificate(server: tuple[Server, Service]) -> None:
    """R20: the service down or slow is a 503 with Retry-After, after its deadline at most; other labels go on
    meanwhile."""
    made, service = server
    came, go = threading.Event(), threading.Event()

    def held(_asked: dict[str, Any]) -> tuple[int, bytes]:
        came.set()
        go.wait(60)
        return 500, b""

    def is_away(attempt: Callable[[], object]) -> None:
        with pytest.raises(Refused) as caught:
            attempt()
        assert caught.value.status == 503
        assert int(caught.value.retry_after or 0) > 0

    service.reply = held
    rows = len(made.rows())
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(enroll, made) for _ in range(6)]
        try:
            assert came.wait(60)
            with made.client(basic=True) as client:
                client.enroll(lambda _: make.csr())
            assert not any(one.done() for one in asked), "the other label waited as long as the webhook's"
        finally:
            go.set()
        for one in asked:
            is_away(one.result)
    service.reply = sleeps(3.0)
    is_away(lambda: enroll(made, "hasty"))
    assert len(made.rows()) == rows + 1
    assert made.metric("estd_rejections_total", reason="webhook_away") == 7
    assert SECRET not in made.log_path.read_text()
