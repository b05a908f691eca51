"""The pages of docs/ are true: their settings are accepted, their commands are run, their links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from estd import verdicts
from tests import docs, servers
from tests.docs import ROOT, Newcomer
from tests.servers import Server
from tests.test_cli import estd

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SETTINGS = [(page, number) for page in PAGES for number in range(len(docs.blocks(page, "toml")))]

RUN_BY = {
    "README.md": ("test_readme", "test_each_part_can_be_tried"),
    "docs/approval.md": ("test_approval_clients", "test_R27_the_documents_commands_work"),
    "docs/challenges.md": ("test_guides", "test_the_commands_of_a_guide_do_what_it_says"),
    "docs/configuration.md": ("test_docs", "test_the_configurations_commands"),
    "docs/crl.md": ("test_crls", "test_R45_the_documents_example_runs"),
    "docs/csrattrs.md": ("test_guides", "test_the_commands_of_a_guide_do_what_it_says"),
    "docs/devices.md": ("test_registry", "test_the_documents_commands_do_what_they_say"),
    "docs/post-quantum.md": ("test_post_quantum", "test_R49_the_documents_example_runs"),
    "docs/proxy.md": ("test_proxy", "test_the_pages_commands_enroll_through_haproxy"),
    "docs/renewal.md": ("test_renewal_docs", "test_its_commands_do_what_it_says"),
    "docs/rollover.md": ("test_rollover", "test_the_commands_of_the_document"),
    "docs/serverkeygen.md": ("test_guides", "test_the_commands_of_a_guide_do_what_it_says"),
    "docs/sizing.md": ("test_docs", "test_the_commands_of_sizing"),
}
"""Which test runs a page's commands."""

BROUGHT = {
    "manufacturer.pem": "demo/manufacturer.pem", "manufacturer.crl": "demo/manufacturer.crl",
    "front.pem": "demo/balancer.pem", "hook.secret": "demo/inventory.secret",
}  # fmt: skip
"""Files that the pages' settings name and a reader brings, and what stands in for them."""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A demonstration that nobody serves, with the files of a reader."""
    made = servers.init(tmp_path_factory.mktemp("docs") / "demo")
    for name, source in BROUGHT.items():
        shutil.copy(made.folder / source, made.folder / name)
    return made


@pytest.mark.parametrize(("page", "number"), SETTINGS)
def test_estd_check_accepts_each_setting(page: str, number: int, instance: Server) -> None:
    """Each toml block of a page, added to the demonstration's configuration, is one that `estd check` finds nothing
    wrong with."""
    before = tomllib.loads(instance.config.read_text())
    block = tomllib.loads(docs.blocks(page, "toml")[number])
    changed = instance.folder / f"{page.replace('/', '-')}-{number}.toml"
    changed.write_text(docs.toml(docs.merged(before, block)))
    assert tomllib.loads(changed.read_text()) == docs.merged(before, block)
    assert "nothing is wrong" in estd("check", changed).out


def test_each_page_with_commands_has_its_test() -> None:
    """A page with sh blocks is in the table, and the table's tests exist."""
    assert {page for page in PAGES if docs.blocks(page, "sh")} == set(RUN_BY)
    for module, name in RUN_BY.values():
        tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{module}::{name}"


def test_the_configurations_commands(server: Server, folder: Path) -> None:
    """docs/configuration.md: linked on TLS 1.3 and 1.2, and the sentence for a request that is not."""
    shown = Newcomer(server, folder).run("".join(docs.blocks("docs/configuration.md", "sh")))
    assert shown.count("linked       True") == 2
    assert "This label demands linked proof of possession" in shown


def test_the_commands_of_sizing(server: Server, folder: Path) -> None:
    """docs/sizing.md: `estd size` as it stands there, and with the figures of a round that was measured."""
    first, measured = docs.blocks("docs/sizing.md", "sh")
    (round_file,) = sorted((ROOT / "bench" / "results").glob("*.json"))[-1:]
    again = measured.splitlines()[1].replace("bench-out/round-….json", str(round_file))
    assert Newcomer(server, folder).run(first + again).count("sized for") == 3


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_somewhere(page: str) -> None:
    """Links and pictures inside the repository are there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_webhooks_question_and_answer_are_as_the_page_shows_them() -> None:
    """docs/devices.md: its JSON is JSON, and the answer is one that estd takes for the question."""
    question, answer = docs.blocks("docs/devices.md", "json")
    (asked,) = json.loads(question)["questions"]
    assert {"id", "label", "operation", "csr"} <= set(asked)
    (verdict,) = verdicts.read(answer.encode(), 1)
    assert (verdict.say, verdict.profile) == ("allow", "gateway")
