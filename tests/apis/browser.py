"""Reports in a real browser, which must say nothing about them."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
# What needs no network.
LOCAL = ('file:', 'data:', 'blob:')


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless Chromium of this machine; skips the test where there is none."""
    api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f'there is no Chromium ({", ".join(BROWSERS)}): install one')
    # Its sandbox does not work for root.
    arguments = ['--no-sandbox'] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=arguments)
        except api.Error as error:  # such as Ubuntu's, which only asks for snap
            pytest.skip(f'{found} does not start: {str(error).splitlines()[0]}')
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(
    browser: Any, path: Path, complaint: str = '', **context: Any
) -> Iterator[Any]:
    """A report, opened from its file.

    Fails if the browser logs anything but the one complaint that is expected, an
    exception is not caught, a dialog opens, or anything is asked of the network.
    """
    said: list[str] = []
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(20_000)
    page.on('console', lambda message: said.append(f'console: {message.text}'))
    page.on('pageerror', lambda error: said.append(f'exception: {error}'))
    page.on('dialog', lambda dialog: (said.append('dialog'), dialog.dismiss()))
    page.on('popup', lambda _: said.append('window'))

    def asked(request):
        if not request.url.startswith(LOCAL):
            said.append(f'request: {request.url}')

    page.on('request', asked)
    try:
        page.goto(Path(path).as_uri())
        page.wait_for_selector('body[data-ready]')
        yield page
        if complaint:
            assert len(said) == 1 and complaint in said.pop()
        assert said == []
    finally:
        page.context.close()


def until(page: Any, condition: str, seconds: float = 20) -> None:
    """Wait for a JavaScript expression; the report forbids Playwright's own way."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f'{condition} is not true'
        page.wait_for_timeout(20)
