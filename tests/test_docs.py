"""What the pages claim: links lead somewhere, commands and options exist, YAML and Python blocks are sound."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from scope_runtime.cli.main import app
from scope_runtime.policy.load import parse_policy
from tests.conftest import ROOT, Tiny

PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    # A page's template is not a page: what it becomes is.
    if (ROOT / name).is_file() and not name.endswith("_template.md")
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(*languages: str) -> list[Any]:
    """Every fenced block in one of the languages, with its page and place as the test's name."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match.group(1) in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match.group(2), id=f"{page_id(page)}:{line}"))
    return found


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, fragment = target.partition("#")
        # A fragment is read where it ends up: in CHANGELOG.md.
        fragments = page.parent.name == "changelog.d" and page.name != "README.md"
        path = ((ROOT if fragments else page.parent) / name).resolve() if name else page
        assert path.exists(), f"{page_id(page)} links to {target}"
        if fragment and path.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page_id(page)} links to {target}"


def commands() -> list[Any]:
    """Every ``$ scope …``, ``make …`` and ``scripts/…`` line of the pages."""
    found = []
    for page in PAGES:
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            match = re.match(r"(?:    |\$ )(scope|make|scripts/\S+)( .*)?$", line)
            if match:
                found.append(
                    pytest.param(match.group().strip("$ "), id=f"{page_id(page)}:{number}")
                )
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), line
    elif words[0].startswith("scripts/"):
        assert (ROOT / words[0]).exists(), line
    else:
        _check_scope_command(words[1:])


def _check_scope_command(words: list[str]) -> None:
    """The sub-command exists, and so does each of its options."""
    command: Any = typer.main.get_command(app)
    while words and not words[0].startswith("-") and hasattr(command, "list_commands"):
        found = command.get_command(None, words[0])
        assert found is not None, f"scope has no command {words[0]}"
        command, words = found, words[1:]
    options = {name for parameter in command.params for name in parameter.opts} | {"-h", "--help"}
    for word in words:
        if word in ("|", ">", "--"):
            break
        if word.startswith("-") and word != "-":
            assert word.split("=")[0] in options, f"{command.name} has no option {word}"


@pytest.mark.parametrize("source", blocks("yaml"))
def test_yaml_blocks_load(source: str) -> None:
    """As a policy, or as part of a policy's spec; the packs that pages speak of need not exist."""
    text = source if "apiVersion:" in source else wrap(source)
    parse_policy(text, file="page.yaml", files=False)


def wrap(fragment: str) -> str:
    """A part of ``spec`` as a whole policy."""
    indented = "".join(f"  {line}\n" for line in fragment.splitlines())
    return (
        f"apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {{name: page}}\nspec:\n{indented}"
    )


@pytest.mark.parametrize("source", blocks("python"))
def test_python_blocks_run(
    source: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a folder where the files that the pages speak of exist."""
    (tmp_path / "model.gguf").symlink_to(tiny.model)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for file in (
        tiny.policy,
        tiny.policy.with_name("pack.gguf"),
        tiny.policy.with_name("vector.gguf"),
    ):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    run: Callable[..., None] = exec
    run(compile(source, "page", "exec"), {})
