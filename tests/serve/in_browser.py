"""The console's page in Debian's Chromium, as people use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.serve.conftest import ADMIN, Server

WIDE: ViewportSize = {"width": 1200, "height": 900}
ARMS = ("Without", "With")
expect.set_options(timeout=20_000)

_WATCH = """(arms) => {
  const said = () => arms.map((arm) => document.querySelector(`[data-arm="${arm}"]`)?.textContent ?? "");
  window.states = [];
  const watcher = new MutationObserver(() => window.states.push(said()));
  watcher.observe(document.body, { subtree: true, childList: true, characterData: true });
  // A tiny model is done before a browser under load looks twice: each event is handed on when the last one stands.
  const shown = () => new Promise((done) => setTimeout(done));
  const byEvent = {
    async transform(bytes, out) {
      let from = 0;
      for (let i = 1; i < bytes.length; i += 1) {
        if (bytes[i] !== 10 || bytes[i - 1] !== 10) continue;
        out.enqueue(bytes.slice(from, i + 1));
        from = i + 1;
        await shown();
      }
      out.enqueue(bytes.slice(from));
    },
  };
  const ask = window.fetch;
  window.fetch = async (path, ...options) => {
    const response = await ask(path, ...options);
    if (path !== "/-/try" || !response.ok) return response;
    return new Response(response.body.pipeThrough(new TransformStream(byEvent)), response);
  };
}"""


@dataclass
class Seen:
    """A page, the hosts that it asked, and what it complained of."""

    page: Page
    hosts: set[str] = field(default_factory=set)
    urls: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab).click()
        expect(self.page.get_by_role("tabpanel", name=tab)).to_be_visible()


@contextmanager
def looked_at(browser: Browser, site: Server) -> Iterator[Seen]:
    """A page of its own, opened with the key; it asks nobody else, and nothing in it fails."""
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    made = Seen(page)

    def asked(url: str) -> None:
        made.hosts.add(urlsplit(url).netloc)
        made.urls.append(url)

    page.on("request", lambda request: asked(request.url))
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    page.on(
        "console", lambda said: made.complaints.append(said.text) if said.type == "error" else None
    )
    page.goto(f"{site.admin_url}/console/")
    sign_in(page)
    made.complaints.clear()  # that nobody is let in without a key is an error to the browser
    yield made
    assert made.hosts == {urlsplit(site.admin_url).netloc}
    assert not any(ADMIN in url for url in made.urls)
    assert made.complaints == []
    context.close()


def sign_in(page: Page, key: str = ADMIN) -> None:
    page.get_by_label("Admin key").fill(key)
    page.get_by_role("button", name="Open the console").click()
    expect(page.get_by_role("tablist")).to_be_visible()


def add_features(page: Page, search: str, names: list[str]) -> None:
    page.get_by_label("Find a feature").fill(search)
    for name in names:
        page.get_by_role("button", name=f"Add {name}", exact=True).click()


def ask_both(page: Page, question: str) -> list[tuple[str, str]]:
    """Asks a question in Steer; what stood on the page as events came, without and with, and at last all of it."""
    page.get_by_label("Question").fill(question)
    page.evaluate(_WATCH, ARMS)
    page.get_by_role("button", name="Ask both").click()
    for arm in ARMS:
        expect(page.get_by_label(arm, exact=True)).to_contain_text("ended by")
    return [(without, steered) for without, steered in page.evaluate("window.states")]
