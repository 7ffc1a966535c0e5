"""Pages in a browser: read by axe-core in both colour schemes, on wide and narrow screens; nothing is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, sync_playwright

from scope_runtime.inspect.page import write_page
from tests.inspect.test_pictures import PICTURES


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium: see scripts/system-packages."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is missing; scripts/system-packages installs it"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program)
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PICTURES)
def test_axe_finds_nothing(browser: Browser, tmp_path: Path, name: str, scheme: Any) -> None:
    write_page(tmp_path / "page.html", PICTURES[name]())
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 800})
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: complaints.append(said.text))
    page.goto((tmp_path / "page.html").as_uri())
    for summary in page.locator("summary").all():
        summary.focus()
        page.keyboard.press("Enter")
    assert page.locator("details:not([open])").count() == 0
    found = Axe().run(page).response["violations"]
    told = [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]
    assert told == []
    page.set_viewport_size({"width": 360, "height": 700})
    # What is too wide scrolls in a box of its own.
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert asked == [(tmp_path / "page.html").as_uri()]
    assert complaints == []
    page.close()
