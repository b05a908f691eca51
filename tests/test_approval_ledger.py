"""The requests that wait for a person, in the ledger and through its writer."""

from __future__ import annotations

from array import array
from contextlib import closing
from pathlib import Path

import pytest

from estd import frames, ledger, ledger_link, metrics
from estd.frames import Answer
from estd.ledger import LedgerError, Reader, Writer
from estd.ledger_link import WriterService
from estd.ledger_requests import DECISIONS, Held, Waiting
from tests.test_batch import NOW
from tests.test_config import problems, text
from tests.test_ledger import row

# The ledger's part, and the way to its writer.

NOW_MS = int(NOW * 1000)


def waiting(**changes: object) -> Waiting:
    return Waiting(
        key=b"k" * 32, label="default", profile="device", renews=None, identity="basic:factory", peer="127.0.0.1",
        subject="CN=device-1", names='["DNS:Gerät.example.com"]', key_kind="ec-p256", spki_sha256=b"\xab" * 32,
        asked_at=NOW_MS, expires_at=NOW_MS + 1000,
    )._replace(**changes)  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture
def path(folder: Path) -> Path:
    made = folder / "ledger.sqlite3"
    ledger.create(made)
    return made


def test_R27_a_decision_goes_through_the_writers_service(path: Path) -> None:
    """What several issuers tell in one go is one transaction; a decision is counted, and changes nothing twice, for a
    state that its judge did not see, after it ran out, or for a request that is not there."""
    slot = metrics.Slot(memoryview(array("d", bytes(8 * metrics.SLOT_DOUBLES))))
    with closing(Writer(path)) as writer:
        service = WriterService(writer, slot)

        def decides(**changes: object) -> bool:
            message = {"do": "decide", "request": 1, "seen": "pending", "state": "approved"}
            message |= {"at": NOW_MS, "by": "cli:a", "reason": "", **changes}
            return bool(service.answer([message])[0].get("done"))

        messages = [
            {"do": "record", "rows": [], "held": ledger_link._held_out(Held([waiting(renews=renews)], {}))}
            for renews in (b"\x01", None)
        ] + [{"do": "record", "rows": [ledger_link._row_out(row())]}]
        assert service.answer(messages) == [{"ok": True}] * 3
        assert [one.renews for one in writer.requests.search(NOW_MS)] == [b"\x01"]  # the second is the same request
        assert not decides(seen="denied")
        assert not decides(request=2)
        assert not decides(at=NOW_MS + 1000)
        assert not decides(state="issued")
        assert decides()
        assert not decides()
        assert not decides(seen="approved")
        assert decides(seen="approved", state="denied", reason="no")
        assert [slot.get(metrics.DECISIONS.series(one)) for one in DECISIONS] == [1, 1]
        assert [(one.state, one.reason) for one in writer.requests.decisions(1)] == [("approved", ""), ("denied", "no")]


def test_a_message_that_cannot_be_written_is_answered_alone(path: Path) -> None:
    """Whatever a command sends, the writer goes on, and what came beside it is written."""
    good = {"do": "record", "rows": [], "held": ledger_link._held_out(Held([waiting()], {}))}
    lone = {"do": "decide", "request": 1, "seen": "pending", "state": "denied", "at": NOW_MS, "by": "cli:a"}
    with closing(Writer(path)) as writer:
        answers = WriterService(writer).answer([good, {**lone, "reason": "\udcf6"}, {"do": "revoke"}, good])
        assert [answer["ok"] for answer in answers] == [True, False, False, True]
        assert all("the ledger's writer failed: " in answer["error"] for answer in answers if not answer["ok"])
        assert [one.state for one in writer.requests.search(NOW_MS)] == ["pending"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [3, 2, 1]),
        ({"limit": 2}, [3, 2]),
        ({"before": 3}, [2, 1]),
        ({"state": "pending"}, [3, 2]),
        ({"state": "expired"}, [1]),
        ({"state": "issued"}, []),
        ({"text": "DEVICE-3"}, [3]),
        ({"text": "gerät"}, [3, 2, 1]),
        ({"text": "192.0.2.9"}, [2]),
        ({"text": "abab"}, [3, 1]),
        ({"text": "%"}, []),
        ({"text": "'; DROP TABLE request --"}, []),
        ({"text": "device", "state": "pending", "before": 3}, [2]),
    ],
)
def test_requests_are_searched(path: Path, query: dict[str, object], found: list[int]) -> None:
    """By part of what stands in them, by state as of now, in pages."""
    with closing(Writer(path)) as writer:
        for number, one in enumerate(
            (
                waiting(),
                waiting(expires_at=NOW_MS + 9000, peer="192.0.2.9", spki_sha256=bytes(32)),
                waiting(expires_at=NOW_MS + 9000, subject="CN=device-3"),
            )
        ):
            writer.record([], Held([one._replace(key=bytes([number]))], {}))
        with closing(Reader(path)) as reader:
            held = reader.requests.search(NOW_MS + 5000, **query)  # type: ignore[arg-type]
            assert [one.id for one in held] == found
            assert reader.requests.queue(NOW_MS) == (3, NOW_MS)
            assert reader.requests.queue(NOW_MS + 9000) == (0, 0)


def test_a_ledger_of_an_older_estd_is_said_to_be_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader cannot bring a ledger up to date; it says who does."""
    older = path.with_name("older.sqlite3")
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "MIGRATIONS", ledger.MIGRATIONS[:1])
        ledger.create(older)
    with closing(Reader(older)) as reader, pytest.raises(LedgerError, match="serve it once"):
        _ = reader.requests
    with closing(Writer(older)) as writer:
        assert list(writer.requests.search(NOW_MS)) == []


@pytest.mark.parametrize(
    "line",
    [
        "approval = true", 'approval = "on"', 'approval_retry = "0s"', 'approval_retry = "9h"',
        'approval_window = "0s"', 'approval_window = "2y"', "approval_waiting = 0", "approval_waiting_each = 0",
    ],
)  # fmt: skip
def test_the_labels_keys_are_bounded(line: str) -> None:
    """Each key of a label that holds requests is inside its bounds, or one problem names its path."""
    (told,) = problems(text("label.default", line))
    assert told.startswith(f"label.default.{line.partition(' = ')[0]}: ")


def test_the_longest_wait_fits_a_frame() -> None:
    """Twice the longest approval_retry is a Retry-After that an answer can carry."""
    longest = Answer(1, 202, 1, 2 * 8 * 3600, "", b"", b"")
    data = frames.pack_answer(longest)
    assert frames.unpack_answer(data, 0, len(data)) == longest
