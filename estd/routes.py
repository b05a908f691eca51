"""Which label and which operation a path names (RFC 7030 §3.2.2), and the sentence for a path that names none."""

from __future__ import annotations

from collections.abc import Iterable

from estd import metrics
from estd.crl_file import CrlBody
from estd.errors import NotFound, Reason
from estd.labels import OPERATIONS
from estd.logs import Log
from estd.material import Material
from estd.served import Served
from estd.webhook import Webhook

ROOT = "/.well-known/est/"
WHEN = "renewal-info"
"""The operation behind whose name a path goes on: it names a certificate there."""


class Routes:
    """The paths of an edge. The default label is served with its name and without."""

    def __init__(self, material: Material, slot: metrics.Slot, log: Log) -> None:
        config = material.config
        labels = [Served(number, label, material, slot, log) for number, label in enumerate(config.labels.values())]
        crls = _crls(material)
        self._paths: dict[str, tuple[Served, str]] = {}
        for one in labels:
            one.crl = crls.get(one.label.ca)
            operations = [*one.operations, "crls"] if one.crl is not None else one.operations
            self._add(f"{ROOT}{one.label.name}/", operations, one)
            if one.label.name == config.server.default_label:
                self._add(ROOT, operations, one)
        self._labels = {one.label.name for one in labels}
        self.webhooks: list[Webhook] = [one.webhook for one in labels if one.webhook is not None]

    def _add(self, folder: str, operations: Iterable[str], label: Served) -> None:
        for operation in operations:
            self._paths[folder + operation] = label, operation
            if operation == WHEN:
                self._paths[f"{folder}{WHEN}/"] = label, operation

    def find(self, path: str) -> tuple[Served, str]:
        """The label and the operation. A 404 where there is none."""
        found = self._paths.get(path) or self._paths.get(path[: path.rfind("/") + 1])
        if found is None:
            raise self._not_found(path)
        return found

    def _not_found(self, path: str) -> NotFound:
        above = path.rpartition("/")[0]
        if above.endswith(f"/{WHEN}"):
            path = above  # not offered here: what stood behind it named a certificate, and it no label
        label, _, operation = path.removeprefix(ROOT).rpartition("/")
        if not path.startswith(ROOT):
            return NotFound(Reason.UNKNOWN_OPERATION, f"EST's operations are under {ROOT}.")
        if path.endswith("/") or label.startswith("/") or "//" in path:
            return NotFound(
                Reason.UNKNOWN_OPERATION,
                f"The path has a slash too many; it is {ROOT}OPERATION or {ROOT}LABEL/OPERATION.",
            )
        if label and label not in self._labels:
            return NotFound(Reason.UNKNOWN_LABEL, f"There is no label {label[:64]!r} here.")
        if operation in OPERATIONS:
            return NotFound(Reason.UNKNOWN_OPERATION, f"The operation {operation} is not offered here.")
        return NotFound(Reason.UNKNOWN_OPERATION, "There is no such operation; try cacerts or simpleenroll.")


def _crls(material: Material) -> dict[str, CrlBody]:
    """By CA what `crls` answers: one for all labels of a CA, for it may be long."""
    bodies: dict[str, CrlBody] = {}
    for name in {one.ca_name for one in material.crls}:
        of = [one for one in material.crls if one.ca_name == name]
        bodies[name] = CrlBody([one.plan.file for one in of], [one.ca for one in of])
    return bodies
