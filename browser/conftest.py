"""What a test in a browser gets: a headless Chromium, and pages that record what they ask for and what goes wrong.

Not part of plain ``pytest``, because a fresh machine has no Chromium: ``pytest browser`` runs them. They want the extra
``browser`` and a Chromium of the system (``apt-get install chromium``; ``CHROMIUM`` names another one).
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"phone": (390, 844), "desktop": (1280, 900), "wide": (2560, 1300)}


@dataclass
class Visit:
    """A page that was opened, with everything it asked for and complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def foreign(self, *allowed: str) -> list[str]:
        """Return the requests that do not begin with one of some addresses; data within the page is no request."""
        return [url for url in self.requests if not url.startswith((*allowed, "data:", "blob:"))]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.exit("No Chromium: install it (apt-get install chromium), or name one in CHROMIUM", returncode=2)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Open a page: ``visit(url, size="phone", scheme="dark")``."""
    contexts = []

    def opened(url: str, *, size: str = "desktop", scheme: str = "light") -> Visit:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, is_mobile=size == "phone"
        )
        contexts.append(context)
        seen = Visit(context.new_page())
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("console", lambda line: line.type == "error" and seen.complaints.append(line.text))
        seen.page.goto(url)
        return seen

    yield opened
    for context in contexts:
        context.close()
