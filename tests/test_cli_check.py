"""`estd check`: whatever would keep the server from serving is a sentence; and what a lost ledger takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from estd import command
from estd import owner as whose
from estd.config import load
from estd.errors import ConfigError
from estd.ledger import LedgerError, Writer
from tests import make
from tests.command import estd, mode
from tests.servers import Server
from tests.test_ledger import row


def _everything_wrong(copy: Server) -> None:
    folder = copy.folder
    (folder / "server.key").chmod(0o644)
    (folder / "server.pem").write_bytes(make.certificate().pem)
    (folder / "credentials").write_text("factory:secret\n")
    (folder / "demo" / "manufacturer.crl").unlink()
    (folder / "ledger.sqlite3").unlink()
    (folder / "token" / "pin").write_text("not-the-pin\n")


def _of_another_label(problem: str) -> bool:
    """The demonstration's other labels use the same files."""
    return problem.startswith("label.") and not problem.startswith("label.default.")


def test_check_says_all_that_is_wrong_in_one_go(copy: Server) -> None:
    """TLS, credentials, CRL, file modes, ledger and token: one problem does not hide the next, each names its key."""
    _everything_wrong(copy)
    found = estd("check", copy.config, "--json", status=1).data
    assert not found["ok"]
    wanted = [
        "server.tls_certificate", "server.tls_key", "label.default.allow[1].crls", "label.default.allow[2].credentials",
        "ledger.path", "token",
    ]  # fmt: skip
    first = [one for one in found["problems"] if not _of_another_label(one)]
    assert sorted({one.partition(":")[0].partition(",")[0] for one in first}) == sorted(wanted)
    assert len(first) == len(wanted)
    assert "PinIncorrect" in found["problems"][-1]
    words = estd("check", copy.config, status=1)
    assert words.err.splitlines() == found["problems"]
    assert words.out == ""


def test_check_says_all_that_is_wrong_with_the_file(copy: Server) -> None:
    """Problems of the configuration itself come together too."""
    text = copy.config.read_text()
    copy.config.write_text(
        text.replace("[ledger]", "[ledger]\ncolour = 1").replace('ca = "root"', 'ca = "root"\npem = 1', 1)
    )
    lines = [line for line in estd("check", copy.config, status=1).err.splitlines() if not _of_another_label(line)]
    assert [line.partition(":")[0] for line in lines] == ["label.default.pem", "ledger.colour"]


def test_a_lost_ledger_is_made_anew_by_an_operators_word_alone(copy: Server) -> None:
    """`check` says what to do and makes none; `ledger create` makes an empty one, never over or beside what is there,
    nor while a process still writes the one that is gone."""
    path = copy.folder / "ledger.sqlite3"
    create = ("ledger", "create", "--config", copy.config)
    assert "cannot be made: File exists" in estd(*create, status=1).err
    with closing(Writer(path)) as writer:
        writer.record([row()])
        shutil.move(path, copy.folder / "moved")
        (log := path.with_name("ledger.sqlite3-wal")).rename(copy.folder / "moved-wal")
        assert "another process writes the ledger" in estd(*create, status=1).err
        assert not path.exists()
    told = estd("check", copy.config, status=1).err
    assert told == (
        f"ledger.path: there is no ledger {path}: restore a copy, or where there is none make an empty one by "
        "estd ledger create\n"
    )
    log.write_bytes(b"rows")
    assert "move it away" in estd(*create, status=1).err
    assert (path.exists(), log.read_bytes()) == (False, b"rows")
    log.unlink()
    assert "an empty ledger" in estd(*create).out
    assert (copy.rows(), mode(path)) == ([], 0o600)
    assert "nothing is wrong" in estd("check", copy.config).out


@pytest.mark.parametrize(
    ("ledger", "run", "folder", "owner"),
    [(1, 2, 3, 1), (None, 2, 3, 2), (None, None, 3, 3)],
    ids=["all", "lost", "new"],
)
def test_whose_instance_it_is(ledger: int | None, run: int | None, folder: int, owner: int) -> None:
    """The ledger's owner, and where that is lost, whose the server's folder of sockets is: a configuration may be
    root's."""

    def of(uid: int | None) -> Any:
        return SimpleNamespace(exists=lambda: uid is not None, stat=lambda: SimpleNamespace(st_uid=uid))

    with pytest.raises(ConfigError, match=rf"\(uid {owner}\)"):
        whose.check(SimpleNamespace(ledger=of(ledger), run=of(run), folder=of(folder)))  # type: ignore[arg-type]


def _ledger_of_another_kind(copy: Server) -> None:
    (copy.folder / "ledger.sqlite3").write_bytes(b"not a database " * 1000)


def _tls_expired(copy: Server) -> None:
    expired = make.certificate(starts=-timedelta(days=9), ends=-timedelta(days=1))
    (copy.folder / "server.pem").write_bytes(expired.pem)
    (copy.folder / "server.key").write_bytes(expired.key_pem)


def _ca_of_another_key(copy: Server) -> None:
    (copy.folder / "ca.pem").write_bytes(make.certificate(ca=True).pem)


def _no_module(copy: Server) -> None:
    copy.config.write_text(copy.config.read_text().replace("libsofthsm2.so", "libnowhere.so"))


def _no_pin(copy: Server) -> None:
    (copy.folder / "token" / "pin").write_text("\n")


def _no_tls_key(copy: Server) -> None:
    (copy.folder / "server.key").unlink()


def _tls_key_of_another(copy: Server) -> None:
    (copy.folder / "server.key").write_bytes(make.certificate().key_pem)


def _pin_in_latin_1(copy: Server) -> None:
    (copy.folder / "token" / "pin").write_bytes(b"\xfc\n")


def _no_softhsm_configuration(copy: Server) -> None:
    (copy.folder / "token" / "softhsm2.conf").unlink()


def _no_key_id(copy: Server) -> None:
    copy.config.write_text(copy.config.read_text().replace('key_id = "01"', 'key_id = "zz"'))


def _anchor_is_no_ca(copy: Server) -> None:
    (copy.folder / "demo" / "manufacturer.pem").write_bytes((copy.folder / "demo" / "idevid.pem").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_ledger_of_another_kind, "ledger.path: "),
        (_tls_expired, "server.tls_certificate: expired"),
        (_ca_of_another_key, "token: the key 01 in the token is not the key in the certificate of 'root'"),
        (_no_module, "token: there is no PKCS#11 module"),
        (_no_pin, "token.pin_file: "),
        (_pin_in_latin_1, "/pin is not UTF-8\n"),
        (_anchor_is_no_ca, "can let nobody in: basicConstraints.cA must be asserted"),
        (
            _no_tls_key,
            "server.tls_certificate, server.tls_key: [Errno 2] No such file or directory: '{0}/server.key'\n",
        ),
        (
            _tls_key_of_another,
            "{0}/server.key holds no private key in PEM that fits the certificate in {0}/server.pem\n",
        ),
        (
            _no_softhsm_configuration,
            "does not initialise (0x5): is what it reads there? SoftHSM's is the file in SOFTHSM2_CONF",
        ),
        (_no_key_id, "ca.root.key_id: 'zz' is not a CKA_ID in hexadecimal\n"),
    ],
)
def test_check_finds_what_is_wrong(copy: Server, spoil: Callable[[Server], None], told: str) -> None:
    """Each thing that would keep the server from serving is a sentence."""
    spoil(copy)
    assert told.replace("{0}", str(copy.folder)) in estd("check", copy.config, status=1).err


def test_check_says_which_key_names_a_file_that_is_missing(copy: Server) -> None:
    """And what makes it, or what it holds."""
    for name in ("approvers", "demo/manufacturer.pem", "demo/inventory.secret"):
        (copy.folder / name).unlink()
    told = estd("check", copy.config, status=1).err
    approvers = copy.folder / "approvers"
    assert f"admin.credentials: there is no {approvers}; this makes it: estd credential add {approvers} NAME\n" in told
    assert f"label.default.allow[1]: anchors: there is no {copy.folder}/demo/manufacturer.pem; it holds the" in told
    assert f": secret_file: there is no {copy.folder}/demo/inventory.secret; it holds a secret that" in told


def test_who_writes_the_ledger_is_told_from_what_is_wrong_with_it(copy: Server) -> None:
    """A ledger that cannot be written is said to be that; one that another process has is asked for on its socket, and
    where nobody is there the sentence says where to look."""
    config, path = load(copy.config), copy.folder / "ledger.sqlite3"
    with closing(Writer(path)), command.writer(config) as asked, pytest.raises(LedgerError, match="in another folder"):
        asked.revoke(b"\1" * 16, 1, 1)
    _ledger_of_another_kind(copy)
    with pytest.raises(LedgerError, match="cannot be opened for writing: file is not a database"):
        command.writer(config)
