"""What a reload changes for those who decide on requests: the page's credentials, the labels' settings, new labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from estd import credentials
from tests import servers
from tests.servers import Server
from tests.test_reload import change, reload
from tests.test_requests_desk import Device, approver, ask, find, opened
from tests.test_supervisor import instance

ADMIN = '[admin]\ncredentials = "approvers"'
NIGHT = "night:watch"


@pytest.fixture(scope="module", params=[1, 2], ids=["one issuer", "two issuers"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With [admin] not there yet, and a second file of those who may decide."""
    made = instance(tmp_path_factory.mktemp("reload") / "instance", issuers=request.param)
    change(made, ADMIN, "")
    (made.folder / "night").write_text(credentials.line(*NIGHT.split(":"), generated=False) + "\n")
    with servers.running(made):
        yield made


def admin_is(server: Server, table: str) -> None:
    """The configuration's [admin] in these words, and a reload that is taken."""
    toml = server.config.read_text()
    start = toml.find("[admin]\ncredentials")
    if start >= 0:
        toml = toml[:start] + toml[toml.index("\n", toml.index("\n", start) + 1) + 1 :]
    server.config.write_text(f"{toml}\n{table}\n" if table else toml)
    reload(server)


def statuses(server: Server) -> dict[str, int]:
    """What the page tells each of those who might decide."""
    return {name: ask(server, "/requests", login=name).status for name in (":".join(approver(server)), NIGHT)}


def approve(server: Server, number: int, login: str) -> int:
    cookie, fields = opened(server, number, login=login)
    return ask(server, f"/requests/{number}/decision", fields, login=login, cookie=cookie).status


def test_R27_who_may_decide_changes_with_a_reload(server: Server) -> None:
    """No page, a page for one file's people, for another's, and none again: each in force when the command returns, on
    a form that is open too."""
    day = ":".join(approver(server))
    waiting = [Device(server, f"shift-{number}").waits().id for number in range(3)]
    assert statuses(server) == {day: 404, NIGHT: 404}
    assert ask(server, "/requests/style.css", login="").status == 404
    admin_is(server, ADMIN)
    assert statuses(server) == {day: 200, NIGHT: 401}
    assert approve(server, waiting[0], day) == 303
    cookie, fields = opened(server, waiting[1])
    admin_is(server, ADMIN.replace("approvers", "night"))
    assert statuses(server) == {day: 401, NIGHT: 200}
    assert ask(server, f"/requests/{waiting[1]}/decision", fields, cookie=cookie).status == 401
    assert approve(server, waiting[2], NIGHT) == 303
    admin_is(server, "")
    assert statuses(server) == {day: 404, NIGHT: 404}
    assert [find(server, number).state for number in waiting] == ["approved", "pending", "approved"]
    assert [find(server, number).decided_by for number in (waiting[0], waiting[2])] == ["page:approver", "page:night"]


def test_R27_what_a_label_holds_changes_with_a_reload(server: Server) -> None:
    """A label that begins to hold requests, a label that is new, one that holds no more: in force after the reload;
    what waits is on the page and in the ledger throughout."""
    rules = '[[label.{0}.allow]]\nwho = "basic"\ncredentials = "credentials"\nprofile = "factory"\n'
    with server.config.open("a") as file:
        file.write('\n[label.gate]\nca = "root"\n' + rules.format("gate"))
    admin_is(server, ADMIN)
    free, held = Device(server, "gate-1", label="gate"), Device(server, "gate-2", label="gate")
    free.ask()
    change(server, "[label.gate]\n", '[label.gate]\napproval = "all"\napproval_retry = "2s"\n')
    with server.config.open("a") as file:
        file.write('\n[label.dock]\nca = "root"\napproval = "first"\n' + rules.format("dock"))
    reload(server)
    number = held.waits().id
    assert Device(server, "dock-1", label="dock").waits().label == "dock"
    assert f"/requests/{number}" in ask(server, "/requests").text
    change(server, 'approval = "all"\napproval_retry = "2s"\n', "")
    reload(server)
    assert find(server, number).state == "pending"
    held.ask()
    admin_is(server, "")


def _no_file(server: Server) -> None:
    change(server, "[label.approval]\n", '[admin]\ncredentials = "nowhere"\n\n[label.approval]\n')


def _odd_file(server: Server) -> None:
    (server.folder / "odd").write_text("alice:secret\n")
    change(server, "[label.approval]\n", '[admin]\ncredentials = "odd"\n\n[label.approval]\n')


def _ledger(server: Server) -> None:
    change(server, '# path = "ledger.sqlite3"', 'path = "other.sqlite3" #')


def _port(server: Server) -> None:
    change(server, f'admin = "127.0.0.1:{server.admin_port}"', 'admin = "127.0.0.1:1"')


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_no_file, "admin.credentials: there is no "),
        (_odd_file, "odd: line 1 is not"),
        (_ledger, "other.sqlite3 needs a restart; this server runs with "),
        (_port, "server.admin: 127.0.0.1:1 needs a restart"),
    ],
)  # fmt: skip
def test_R27_what_a_reload_cannot_take_is_said(server: Server, spoil: object, told: str) -> None:
    """A file that says nothing of use, another ledger, another admin port: said by the command, and nothing changes."""
    kept = server.config.read_text()
    try:
        spoil(server)  # type: ignore[operator]
        said = reload(server, status=1).stderr
    finally:
        server.config.write_text(kept)
    assert told in said
    assert ask(server, "/requests").status == 404
    assert Path(server.folder / "other.sqlite3").exists() is False
