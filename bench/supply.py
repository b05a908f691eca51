"""What each connection of a generator has to send: CSRs in base64 with the device each is for, by kind of request."""

from __future__ import annotations

import binascii
import itertools
from collections.abc import Iterator

from bench.csrs import read_csrs
from bench.plan import Kind, Plan

Supply = dict[str, Iterator[tuple[int, bytes]]]
"""By the kind's name; a kind without a pool has no end and no CSRs."""


def _device(kind: Kind, number: int) -> int:
    return kind.devices[number % len(kind.devices)]


def devices_of(plan: Plan) -> set[int]:
    """The devices that this generator plays."""
    numbers = plan.mine(plan.step.count if plan.fresh else plan.connections)
    return {_device(kind, number) for kind in plan.kinds for number in numbers}


def _endless(plan: Plan, kind: Kind) -> Iterator[tuple[int, bytes]]:
    return ((_device(kind, number), b"") for number in itertools.count(plan.generator, plan.generators))


def _owned(plan: Plan, kind: Kind) -> dict[int, list[tuple[int, bytes]]]:
    """This generator's CSRs of the kind by who may send them: one connection, or all of the generator."""
    assert kind.pool is not None
    stride = plan.connections if kind.pool.bound else plan.generators
    owned: dict[int, list[tuple[int, bytes]]] = {}
    for number, csr in enumerate(read_csrs(kind.pool.directory, first=kind.pool.first, count=kind.pool.count)):
        owner = number % stride
        if owner % plan.generators == plan.generator:
            owned.setdefault(owner, []).append((_device(kind, number), binascii.b2a_base64(csr, newline=False)))
    return owned


def supplies(plan: Plan) -> Iterator[tuple[int | None, Supply]]:
    """For each connection of this generator the device it authenticates as, None where each opening is another's, and
    its supply."""
    shared: Supply = {}
    bound: dict[str, dict[int, list[tuple[int, bytes]]]] = {}
    for kind in plan.kinds:
        if kind.pool is None:
            shared[kind.name] = _endless(plan, kind)
        elif kind.pool.bound:
            bound[kind.name] = _owned(plan, kind)
        else:
            shared[kind.name] = iter(_owned(plan, kind).get(plan.generator, []))
    for number in plan.mine(plan.connections):
        own = {name: iter(owned.get(number, [])) for name, owned in bound.items()}
        yield None if plan.fresh else _device(plan.kinds[0], number), shared | own
