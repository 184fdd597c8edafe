"""What people do with the console, in Chromium, with real workers behind it."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import Site


def test_a_failure_is_found_and_retried_and_seen_to_succeed(site: Site) -> None:
    site.gateway(up=False)
    site.send("acme", 1, 2)
    page = site.log_in("operator")
    page.goto("/failures")
    expect(page.get_by_role("row")).to_have_count(3)
    assert site.complaints == []
