"""What people do with the console, in Chromium, with real workers behind it."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site

#: What a page is, as somebody of each kind goes to it.
PAGES = ("/", "/groups", "/failures", "/failures?status=all", "/replays", "/replays/new?status=pending", "/audit")
OF_ALL = (*PAGES, "/tenants")


@pytest.fixture(autouse=True)
def no_complaints(site: Site) -> None:
    """Let a test fail whose pages had a script that broke, or did what the policy forbids."""
    site.complaints.clear()


def row_count(page: Page) -> int:
    return page.locator("table.rows tbody tr").count()


def test_a_failure_is_found_in_three_clicks_retried_and_seen_to_succeed(site: Site) -> None:
    site.gateway(up=False)
    site.send("acme", 1, 2)
    page = site.log_in("operator")
    # From the overview: the group, its newest failure; and it is sent again.
    page.get_by_role("link", name=re.compile("ConnectionError")).first.click()
    page.locator("table.rows a.row").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("ConnectionError")
    expect(page.get_by_role("heading", level=1)).to_contain_text("<b>the gateway</b> did not answer")
    expect(page.locator("header.lead .badge").first).to_have_text("pending")
    assert "4111" not in page.content()
    site.gateway(up=True)
    page.get_by_role("button", name="Retry", exact=True).click()
    # Nobody loads it again: it says how it ends by itself.
    expect(page.locator("header.lead .badge").first).to_have_text("resolved", timeout=30_000)
    expect(page.locator("header.lead")).to_contain_text("it succeeded")
    assert site.complaints == []


def test_a_bulk_replay_is_tried_dry_and_stops_by_itself(site: Site) -> None:
    site.gateway(up=False)
    site.send("globex", *range(100, 112))
    page = site.log_in("operator")
    page.goto("/failures?tenant=globex")
    page.get_by_role("link", name="Retry all that match").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Retry jobs")
    page.get_by_text("Ramp, rate and when it stops").click()
    page.get_by_label("Window").fill("4")
    page.get_by_role("button", name="Dry run", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("12 of 12 jobs would go now")
    page.get_by_label("Why").fill("the gateway is said to be up")
    page.get_by_role("button", name="Start the replay").click()
    stands = page.locator("[data-live=stands]")
    expect(stands).to_contain_text("It stopped by itself", timeout=30_000)
    expect(stands).to_contain_text("not sent yet")
    # When what is wrong is mended, it goes on.
    site.gateway(up=True)
    page.get_by_role("button", name="Resume").click()
    expect(stands).to_contain_text("finished", timeout=60_000)
    # Those that failed again the first time are not part of it any more.
    page.get_by_role("link", name=re.compile("failed again")).first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Failures")
    page.goto("/audit")
    expect(page.locator("main")).to_contain_text("the gateway is said to be up")
    assert site.complaints == []


def test_whoever_is_bound_to_a_tenant_sees_that_one(site: Site) -> None:
    site.gateway(up=False)
    site.send("acme", 21)
    site.send("globex", 22)
    page = site.log_in("acme")
    others = site.deployment.failures()
    theirs = next(str(row["id"]) for row in others if row["tenant_id"] == site.tenants["globex"])
    for path in PAGES:
        page.goto(path)
        said = page.content()
        assert "globex" not in said, path
        assert str(site.tenants["globex"]) not in said, path
    page.goto(f"/failures/{theirs}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not found")
    page.goto("/tenants")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not allowed")
    page.goto("/failures?status=all")
    assert row_count(page) == sum(row["tenant_id"] == site.tenants["acme"] for row in others)


def test_a_viewer_cannot_act_by_page_or_by_forged_request(site: Site) -> None:
    site.gateway(up=False)
    site.send("acme", 31)
    (mine,) = [row for row in site.deployment.failures() if row["task_kwargs"]["order"] == 31]
    page = site.log_in("viewer")
    page.goto(f"/failures/{mine['id']}")
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)
    csrf = page.locator("input[name=csrf]").first.get_attribute("value") or ""
    for action, said in (
        ("retry", {}),
        ("resolve", {"note": "x"}),
        ("abandon", {"reason": "x"}),
        ("note", {"note": "x"}),
    ):
        answer = page.request.post(f"/failures/{mine['id']}/{action}", form={"csrf": csrf, **said}, max_redirects=0)
        assert answer.status == 403, action
    # From another site's page with an operator's cookie: no form of ours, no answer of ours.
    operator = site.log_in("operator")
    answer = operator.request.post(f"/failures/{mine['id']}/abandon", form={"reason": "x"}, max_redirects=0)
    assert answer.status == 403
    (row,) = [row for row in site.deployment.failures() if row["id"] == mine["id"]]
    assert row == mine


def test_everything_works_without_javascript(site: Site) -> None:
    site.gateway(up=False)
    site.send("acme", 41)
    page = site.log_in("operator", javascript=False)
    page.goto("/failures")
    page.get_by_label("Text").fill("order 41")
    page.get_by_role("button", name="Filter").click()
    assert row_count(page) == 1
    page.locator("table.rows a.row").click()
    page.get_by_text("Note…").click()
    page.get_by_label("What should whoever looks next know?").fill("asked <i>them</i>")
    page.get_by_role("button", name="Note", exact=True).click()
    expect(page.locator("main")).to_contain_text("asked <i>them</i>")
    site.gateway(up=True)
    page.get_by_role("button", name="Retry", exact=True).click()
    for _ in range(30):
        if page.locator("header.lead .badge").first.inner_text() == "resolved":
            break
        page.wait_for_timeout(500)
        page.reload()
    expect(page.locator("header.lead .badge").first).to_have_text("resolved")


@pytest.mark.parametrize("who", ["operator", "acme"])
def test_pages_fit_a_phone_and_hold_nothing_that_shuts_people_out(site: Site, who: str) -> None:
    site.gateway(up=False)
    if not any(row["status"] == "pending" for row in site.deployment.failures()):
        site.send("acme", 51)
    job = next(
        row["id"]
        for row in site.deployment.failures()
        if row["tenant_id"] == site.tenants["acme"] and row["status"] == "pending"
    )
    axe, found = Axe(), []
    for scheme, width in (("light", 1440), ("dark", 390)):
        page = site.log_in(who, scheme=scheme, width=width)
        paths = [*(OF_ALL if who == "operator" else PAGES), f"/failures/{job}", "/failures?text=nothing+is+so"]
        page.goto("/groups")
        paths += [page.locator("a[href^='/groups/']").first.get_attribute("href") or ""]
        page.goto("/replays")
        replays = page.locator("a[href^='/replays/']:not([href*=new])")
        paths += [replays.first.get_attribute("href") or ""] if replays.count() else []
        if who == "operator":
            paths += [f"/failures/{job}/edit", "/failures/close?status=pending"]
        for path in paths:
            answer = page.goto(path)
            assert answer is not None
            assert answer.status == 200, path
            sizes = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert sizes[0] <= sizes[1], f"{path} is wider than the window at {width}"
            for problem in axe.run(page).response["violations"]:
                if problem["impact"] in {"serious", "critical"}:
                    where = "; ".join(node["html"][:150] for node in problem["nodes"][:3])
                    found.append(f"{path} ({scheme}, {width}): {problem['id']}: {problem['help']}: {where}")
    assert found == []
    assert site.complaints == []
