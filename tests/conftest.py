"""One real server for the whole session, and the programs that the tests judge it with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import servers
from tests.servers import Server

# The same examples on each machine, and no verdict by the clock: a shared core is slow at times.
settings.register_profile("estd", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("estd")

_PACKAGES = {
    "softhsm2-util": "softhsm2",
    "openssl": "openssl",
    "curl": "curl",
    "pki": "strongswan-pki libstrongswan-standard-plugins libstrongswan-extra-plugins",
    "java": "default-jdk-headless",
    "chromium": "chromium",
    "haproxy": "haproxy",
    "nginx": "nginx (or make test, which fetches the program alone)",
    "promtool": "prometheus (or make test, which fetches promtool alone)",
}


def program(name: str) -> str:
    """The program's path. The test fails, with how to install it, where it is absent."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: apt-get install {_PACKAGES.get(name, name)}")
    return found


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A demonstration instance with the labels of tests/labels.toml, serving."""
    made = servers.init(tmp_path_factory.mktemp("estd") / "instance")
    with made.config.open("a") as file:
        file.write(servers.LABELS.read_text())
    with servers.running(made):
        yield made


@pytest.fixture(scope="session")
def renewal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A demonstration instance as it is: the tests of docs/renewal.md put rows of their own into its ledger."""
    with servers.running(servers.init(tmp_path_factory.mktemp("renewal") / "demo")) as made:
        yield made


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """An instance that nobody serves and no test changes."""
    return servers.init(tmp_path_factory.mktemp("bare") / "instance")


@pytest.fixture
def copy(bare: Server, folder: Path) -> Server:
    """A copy of it that a test may spoil."""
    shutil.copytree(bare.folder, folder / "instance")
    made = Server(folder=folder / "instance", port=bare.port, admin_port=bare.admin_port)
    conf = made.folder / "token" / "softhsm2.conf"
    conf.write_text(conf.read_text().replace(str(bare.folder.resolve()), str(made.folder.resolve())))
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The lint of every certificate issued in the session comes last."""
    items.sort(key=lambda item: "test_pkilint" in item.nodeid)
