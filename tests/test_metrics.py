"""Counters in shared memory, as Prometheus reads them; and the log, which nobody waits for."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_fd_to_metric_families
from prometheus_client.registry import Collector

from estd import errors, logs, metrics
from estd.exposition import SlotsCollector
from estd.logs import Log
from estd.metrics import FAMILIES, Block, Family, Slot
from tests import make
from tests.servers import Server, wait_for

HISTOGRAMS = [family for family in FAMILIES if family.kind == "histogram"]
LABELS = {"process", "operation", "outcome", "status", "reason", "stage", "severity", "decision", "version", "le"}
"""All that a series may say of itself: each has a closed set of values."""


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_fd_to_metric_families(io.StringIO(text))
        for sample in family.samples
    }


def exposed(collector: Collector) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return samples(generate_latest(registry).decode())


def value(slots: dict[str, Slot], name: str, **labels: str) -> float:
    return exposed(SlotsCollector(slots))[name, frozenset(labels.items())]


def test_no_two_series_share_a_place() -> None:
    """Each series has its own doubles in a slot, and the slot ends where the last one does."""
    taken: list[int] = []
    for family in FAMILIES:
        for values in family.values:
            at = family.series(*values)
            taken += range(at, at + family.width)
    assert sorted(taken) == list(range(metrics.SLOT_DOUBLES))


@settings(max_examples=40)
@given(values=st.lists(st.one_of(st.floats(0, 200), st.sampled_from(metrics.SECONDS + metrics.SIZES)), max_size=30))
@pytest.mark.parametrize("family", HISTOGRAMS, ids=lambda family: family.name)
def test_a_histogram_is_prometheus_own(family: Family, values: list[float]) -> None:
    """Buckets, sum and count are those that prometheus_client's own histogram has, bounds included."""
    registry = CollectorRegistry()
    theirs = Histogram(
        family.name, family.help, labelnames=["process", *family.labels], buckets=family.bounds, registry=registry
    ).labels("edge-0", *family.values[-1])
    slot = Block.create(1).slot(0)
    for one in values:
        theirs.observe(one)
        slot.observe(family, family.series(*family.values[-1]), one)
    wanted = {key: one for key, one in samples(generate_latest(registry).decode()).items() if "_created" not in key[0]}
    ours = exposed(SlotsCollector({"edge-0": slot}))
    assert wanted
    assert {key: ours[key] for key in wanted} == pytest.approx(wanted)


def test_slots_do_not_touch_each_other() -> None:
    """What one process counts is its own."""
    block = Block.create(3)
    slots = {f"edge-{number}": block.slot(number) for number in range(3)}
    for index in range(metrics.SLOT_DOUBLES):
        slots["edge-1"].count(index)
    assert all(slots["edge-0"].get(index) == slots["edge-2"].get(index) == 0.0 for index in range(metrics.SLOT_DOUBLES))
    assert value(slots, "estd_connections_total", process="edge-1") == 1.0
    assert value(slots, "estd_connections_total", process="edge-2") == 0.0


def test_a_replacement_goes_on_counting() -> None:
    """A process that maps the block again finds what the last one in its slot had counted, and adds to it."""
    block = Block.create(2)
    block.slot(1).count(metrics.CERTIFICATES.at, 5)
    again = Block(os.dup(block.descriptor), 2)
    again.slot(1).count(metrics.CERTIFICATES.at, 2)
    assert value({"issuer-0": block.slot(1)}, "estd_certificates_total", process="issuer-0") == 7.0


def test_a_label_has_a_closed_set() -> None:
    """What is not in the set cannot be counted under it, so a metric never names a device."""
    with pytest.raises(KeyError, match="device-4711"):
        metrics.REJECTIONS.series("device-4711")


def test_each_reason_and_status_can_be_counted() -> None:
    """Every reason of a refusal and every status that an error carries has its series."""
    assert [values[0] for values in metrics.REJECTIONS.values] == [str(reason) for reason in errors.REASONS]
    statuses = {*errors.BY_STATUS, errors.MethodNotAllowed.status}
    assert {str(status) for status in statuses} <= set(metrics.STATUSES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_are_prometheus_style(family: Family) -> None:
    """estd_ and the base unit, a sentence of help, and no suffix that the exposition adds itself."""
    assert family.name.startswith("estd_")
    assert not family.name.endswith(("_total", "_bucket", "_count", "_sum", "_ms", "_us", "_kib"))
    assert family.help.endswith(".")
    assert set(family.labels) < LABELS


def test_the_server_says_only_what_is_in_closed_sets(server: Server) -> None:
    """/metrics of a server that has enrolled a device has no other labels, and no trace of the device."""
    with server.client(basic=True) as client:
        client.enroll(lambda _: make.csr(subject=make.name("device-in-no-metric")))
    status, text = server.admin("/metrics")
    assert status == 200
    assert {name for _, labels in samples(text) for name, _ in labels} <= LABELS
    assert "device-in-no-metric" not in text
    assert "factory" not in text
    assert server.metric("estd_requests_total", operation="simpleenroll", status="200") >= 1
    assert server.metric("estd_certificates_total") >= 1


@contextmanager
def logging(slot: Slot | None = None) -> Iterator[tuple[Log, int]]:
    """A log into a pipe, and the pipe's other end."""
    receiver, sender = os.pipe()
    log = Log("edge-0", slot, sender)
    try:
        yield log, receiver
    finally:
        for descriptor in (receiver, sender):
            os.close(descriptor)


def test_a_line_is_json_with_time_process_and_event() -> None:
    """Lines come out in order, one JSON object each, whatever their fields hold."""
    with logging() as (log, receiver):
        log("request", identity='CN="a"\nb', ms=1.5)
        log("failed", error=ValueError("x"))
        log.close()
        first, second = (json.loads(line) for line in os.read(receiver, 10_000).decode().splitlines())
    assert (first["process"], first["event"], first["identity"], first["ms"]) == ("edge-0", "request", 'CN="a"\nb', 1.5)
    assert first["time"].endswith("Z")
    assert (second["event"], second["error"]) == ("failed", "x")


def test_lines_are_written_while_the_process_works() -> None:
    """A line does not wait for the end of its process."""
    with logging() as (log, receiver):
        log("request")
        assert json.loads(os.read(receiver, 10_000))["event"] == "request"
        log.close()


def test_lines_that_nobody_takes_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full queue a line is dropped and counted, and whoever logs is not held up."""
    monkeypatch.setattr(logs, "_QUEUE_MAX", 100)
    monkeypatch.setattr(logs, "_EVERY_SECONDS", 3600.0)
    slot = Block.create(1).slot(0)
    with logging(slot) as (log, receiver):
        for number in range(150):
            log("request", number=number)
        assert slot.get(metrics.LOGS_DROPPED.at) == 50
        log.close()
        lines = os.read(receiver, 100_000).decode().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(100))


def test_a_log_that_nobody_reads_ends_all_the_same() -> None:
    """A reader that has stopped cannot hold the end of a process: lines are never waited for."""
    with logging() as (log, receiver):
        for _ in range(200):
            log("request", text="x" * 1000)
        ended = threading.Event()

        def close() -> None:
            log.close()
            ended.set()

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        try:
            wait_for(ended.is_set, 10, lambda: "the log waits for its reader")
        finally:
            os.set_blocking(receiver, False)

            def taken() -> bool:
                try:
                    os.read(receiver, 1 << 20)
                except BlockingIOError:
                    return ended.is_set()
                return False

            wait_for(taken, 20)
            thread.join()


def test_a_log_whose_reader_is_gone_goes_on() -> None:
    """A closed pipe is no error for whoever logs."""
    receiver, sender = os.pipe()
    os.close(receiver)
    log = Log("edge-0", None, sender)
    log("request")
    log.close()
    os.close(sender)
