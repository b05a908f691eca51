"""The pages of docs/ are true: their settings are accepted, their commands are run, their links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from estd import errors, verdicts
from tests import docs, make, servers
from tests.command import estd
from tests.docs import ROOT, Newcomer
from tests.servers import Server

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

SAID = {
    "docs/approval.md": "estd credential add approvers NAME",
    "docs/devices.md": "(umask 077; openssl rand -hex 32 > hook.secret)",
    "docs/renewal.md": "touch ras.pem",
}
"""How a page says that a file which its settings name is made, beside README.md's commands and docs/proxy.md's."""

INTO_THE_FIRST = {"docs/renewal.md"}
"""Pages whose examples go into their first, as they say; on others each one also stands alone."""

ALONE = [(page, number) for page, number in SETTINGS if len(docs.blocks(page, "toml")) > 1]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A reader's instance, not the demonstration, as README.md's commands make it, with the files that the pages'
    settings name: those of a manufacturer by plain openssl, the others by what the pages say."""
    folder = tmp_path_factory.mktemp("docs")
    made = Server(folder=folder / "own", port=0, admin_port=0)
    reader = Newcomer(made, folder)
    (block,) = docs.blocks("README.md", "sh", section="Your own instance")
    begin = block.replace("/srv/estd", str(made.folder)).partition("estd serve ")[0]
    root = (
        "openssl req -x509 -newkey rsa:2048 -nodes -subj '/CN=Acme Root' -keyout manufacturer.key -out manufacturer.pem"
    )
    front = docs.blocks("docs/proxy.md", "sh")[0].partition("cat ")[0].replace("demo/", "")
    reader.run("\n".join([begin, f"cd {made.folder}", front, root, *SAID.values()]), EDITOR="true")
    manufacturer = servers.identity_of(made.folder / "manufacturer.pem", made.folder / "manufacturer.key")
    (made.folder / "manufacturer.crl").write_bytes(make.crl(manufacturer))
    return made


def test_a_page_says_how_a_file_is_made() -> None:
    """The commands that make the files of these tests stand on the pages that need them."""
    for page, command in SAID.items():
        assert command in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", dict(SETTINGS))
def test_estd_check_accepts_a_pages_settings_together(page: str, own: Server) -> None:
    """All examples of a page, added in their order to an instance of one's own, are a configuration that `estd check`
    finds nothing wrong with; each of their labels lets somebody in, each of their profiles is somebody's."""
    before = tomllib.loads(own.config.read_text())
    together = _checked(own, page, *docs.blocks(page, "toml"))
    rules = [label.get("allow", []) for label in together["label"].values()]
    assert all(rules)
    given = {name for rule in chain(*rules) for name in (rule.get("profile"), *rule.get("profiles", ()))}
    assert set(together["profile"]) - set(before["profile"]) <= given


@pytest.mark.parametrize(("page", "number"), ALONE)
def test_estd_check_accepts_each_setting(page: str, number: int, own: Server) -> None:
    """And so is each by itself, or with the page's first where that page says so."""
    shown = docs.blocks(page, "toml")
    _checked(own, f"{page}-{number}", *(shown[:1] if number and page in INTO_THE_FIRST else ()), shown[number])


def _checked(own: Server, name: str, *blocks: str) -> dict[str, Any]:
    """The instance's configuration with these blocks in it, in which `estd check` found nothing wrong."""
    changed = tomllib.loads(own.config.read_text())
    for block in blocks:
        changed = docs.merged(changed, tomllib.loads(block))
    path = own.folder / f"{name.replace('/', '-')}.toml"
    path.write_text(docs.toml(changed))
    assert tomllib.loads(path.read_text()) == changed
    assert "nothing is wrong" in estd("check", path).out
    return changed


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


def raised() -> set[tuple[int, str]]:
    """Status and reason of each refusal that the code makes, whatever its sentence."""
    found = {(405, "method")}  # made in its own class
    kinds = {kind.__name__: kind.status for kind in errors.BY_STATUS.values()}
    for path in (ROOT / "estd").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name(kind) | ast.Attribute(attr=kind),
                    args=[ast.Attribute(value=ast.Name("Reason"), attr=reason), *_],
                ) if kind in kinds:
                    found.add((kinds[kind], errors.Reason[reason].value))
    return found


def test_each_refusal_is_on_a_page() -> None:
    """docs/authorisation.md and docs/operations.md have between them each reason that there is, once with each status
    that the code raises it with; estd/errors.py lists the same."""
    rows = [row for page in ("docs/authorisation.md", "docs/operations.md") for row in docs.refusals(page)]
    assert {reason for _, reason in rows} == set(errors.REASONS)
    assert sorted(rows) == sorted(raised())
    listed = re.findall(r"^    [├└]─ \w+ +(\d{3})(.*(?:\n    │ {9}.*)*)", errors.__doc__ or "", re.MULTILINE)
    words = [(int(status), word) for status, text in listed for word in re.findall(r"\w+", text.partition(":")[0])]
    assert sorted(words) == sorted(rows)


def test_the_webhooks_question_and_answer_are_as_the_page_shows_them() -> None:
    """docs/devices.md: its JSON is JSON, and the answer is one that estd takes for the question."""
    question, answer = docs.blocks("docs/devices.md", "json")
    (asked,) = json.loads(question)["questions"]
    assert {"id", "label", "operation", "csr"} <= set(asked)
    (verdict,) = verdicts.read(answer.encode(), 1)
    assert (verdict.say, verdict.profile) == ("allow", "gateway")
