"""The page in a real browser over real processes: each state brought about, seen, and acted on by keyboard.

With `--screenshots DIR` what is seen is kept there: docs/images has them.
"""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import psycopg
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.page import FIRST_PAINT_MS, NARROW_PX, Page
from tests.harness.pipeline import Pipeline, execute

pytestmark = pytest.mark.thorough
ADMIN = "a-key-of-the-test"
LOCKED_LAG_S = 2.0
OPENED_S = 10.0  # a page that was just opened has seen less by itself
RATE_S = 5.0  # of rows, a few at a time
SHOWN_RATE_S = 75.0  # for screenshots: lines have a shape then

MADE = (
    "CREATE TABLE customers (id int PRIMARY KEY, name text)",
    "CREATE TABLE orders (id int PRIMARY KEY, total int)",
    "CREATE TABLE items (id int PRIMARY KEY, count int)",
    "INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 400) n",
    "INSERT INTO orders SELECT n, n * 10 FROM generate_series(1, 400) n",
    "INSERT INTO items SELECT n, n FROM generate_series(1, 100) n",
)


@pytest.fixture
def shots(pytestconfig: pytest.Config) -> Path | None:
    folder: Path | None = pytestconfig.getoption("--screenshots")
    return folder


def configure(pipeline: Pipeline) -> None:
    source = pipeline.source
    pipeline.config["control"] = {"http": "127.0.0.1:0", "keys": {"admin": ADMIN}}
    pipeline.config["flows"] = {
        "customers": {"from": f"{source}.public.customers", "to": "copy.mirror", "truncate": "hold"},
        "orders": {"from": f"{source}.public.orders", "to": "copy.mirror"},
        "items": {"from": f"{source}.public.items", "to": "copy.mirror"},
    }
    pipeline.config["reconcile"] = {"audit": {"flow": "orders"}, "people": {"flow": "customers"}}
    pipeline.config["schedules"] = {
        "jobs": {
            "audit": {"reconcile": "audit", "at": ["02:00"], "stale_after": "1d"},
            "nightly": {"reconcile": "people", "cron": "30 3 * * *"},
        }
    }
    pipeline.write_config()


async def url_of(pipeline: Pipeline) -> str:
    found: list[str] = []

    async def told() -> bool:
        found[:] = [r.detail["page"] for r in await pipeline.status("serve") if "page" in r.detail]
        return bool(found)

    await pipeline.until("serve tells where its page is", told)
    return found[0]


async def rows(pipeline: Pipeline, seconds: float) -> None:
    """Some each fifth of a second."""
    end_s, number = time.monotonic() + seconds, 1000
    while time.monotonic() < end_s:
        count = 3 + (number // 7) % 9
        await execute(
            pipeline.source_url,
            f"INSERT INTO orders SELECT n, n FROM generate_series({number}, {number + count - 1}) n",
            f"UPDATE items SET count = count + 1 WHERE id <= {count}",
        )
        number += count
        await asyncio.sleep(0.2)


async def test_states_are_seen_and_acted_on(
    pipeline: Pipeline, browser: webdriver.Chrome, shots: Path | None
) -> None:
    configure(pipeline)
    await execute(pipeline.source_url, *MADE)
    _, apply = await pipeline.start_both()
    pipeline.start("serve")
    page = Page(browser, await url_of(pipeline), shots)

    await _all_is_well(page, pipeline)
    await _nothing_hangs_over_a_narrow_page(page)
    await _addresses_that_are_none_show_the_overview(page)
    await _the_content_is_skipped_to(page)
    await _a_key_that_cannot_be_sent_is_not_taken(page)
    await _a_job_is_paused_by_keyboard(page)
    await _a_schedule_is_changed_and_taken_back(page)
    await _a_held_truncate_is_approved(page, pipeline)
    await _a_refused_row_is_discarded(page, pipeline)
    apply.kill()
    await page.until("the flows are unknown", lambda: "UNKNOWN" in page.row("orders"))
    assert "apply:copy is silent" in page.text("#sentence")
    assert page.one(".node.broken strong").text == "Apply"
    assert page.row("orders").count("unknown") >= 2  # its figures, which are not zero
    page.shoot("dashboard-killed")

    asked = page.requests()
    assert f"{page.url}page/vendor/uPlot.iife.min.js" in asked
    assert [url for url in asked if not url.startswith((page.url, "data:"))] == []
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    refused = [message.partition("status of ")[2][:3] for message in severe]
    assert refused == ["401", "422"], severe  # the wrong key, and the bad cron line


async def test_each_trouble_is_seen(
    pipeline: Pipeline, browser: webdriver.Chrome, shots: Path | None
) -> None:
    """Slow by a trigger of the target, stalled by a lock in it; in error; rewound by a replay; paused."""
    configure(pipeline)
    pipeline.config["targets"]["copy"]["batch"] = {"rows": 50, "wait": "1ms"}
    pipeline.write_config()
    await execute(pipeline.source_url, *MADE)
    _, apply = await pipeline.start_both()
    pipeline.start("serve")
    page = Page(browser, await url_of(pipeline), shots)
    page.open()
    await page.until("the flows are shown", lambda: "IDLE" in page.row("orders"))
    await _a_trigger_that_takes_long_makes_it_slow(page, pipeline)
    await _a_lock_makes_it_stalled(page, pipeline)
    await _the_lines_of_lag_begin_before_the_page_was_opened(page)
    await _a_table_that_does_not_fit_is_an_error(page, pipeline)
    await _a_replay_is_rewound(page, pipeline)
    await _a_flow_is_paused_and_goes_on(page, pipeline)
    assert apply.running
    assert await _states_differ_without_colour(page)


async def test_the_focus_comes_back_from_dialogs_and_commands(
    pipeline: Pipeline, browser: webdriver.Chrome, shots: Path | None
) -> None:
    configure(pipeline)
    await execute(pipeline.source_url, *MADE)
    await pipeline.start_both()
    pipeline.start("serve")
    page = Page(browser, await url_of(pipeline), shots)
    page.open()
    await page.until("the flows are shown", lambda: "IDLE" in page.row("orders"))
    page.tab_to("Key")
    for keys in ((Keys.ESCAPE,), (ADMIN, Keys.ENTER), (Keys.ESCAPE,)):  # asked, given, not forgotten
        page.press(Keys.ENTER)
        await page.until("the dialog is there", lambda: page.one("#ask").is_displayed())
        page.press(*keys)
        await page.until("it is gone", lambda: not page.one("#ask").is_displayed())
        assert page.focused().accessible_name == "Key"
    page.driver.execute_script("sessionStorage.clear()")
    page.tab_to("orders").send_keys(Keys.ENTER)
    await page.until("its page is there", lambda: "IDLE" in page.text("#detail"))

    page.tab_to("Replay from: how long ago, or a time")
    page.press(*[Keys.BACKSPACE] * 3, "1ms")
    page.tab_to("Replay…")
    page.press(Keys.ENTER)
    await page.until("a key is asked for", lambda: page.one("#ask").is_displayed())
    page.press(ADMIN, Keys.ENTER)
    await page.until("nothing is found", lambda: "nothing was changed" in page.text(".output"))
    assert "○ NOTHING, exit 1" in page.text(".output .bar")
    assert page.focused().accessible_name == "Replay…", "after the key, and the dry run"

    page.tab_to("all of the log")
    page.press(Keys.SPACE)
    page.tab_to("Replay…")
    page.press(Keys.ENTER)
    await page.until("it can be done", lambda: page.focused().accessible_name == "Do it")
    page.press(Keys.ENTER)
    await page.until("it is done", lambda: "dry run" not in page.text(".output"))
    assert page.focused().accessible_name == "Replay…"
    await page.until("it has ended", lambda: "✓ OK, exit 0" in page.text(".output .bar"))
    assert page.focused().accessible_name == "Replay…"
    await page.until("all is applied again", lambda: "IDLE" in page.text("#detail .bar"))
    page.tab_to("Pause")
    page.press(Keys.ENTER)
    await page.until("it is paused", lambda: "Resume" in page.text(".acts-box"))
    assert page.focused().accessible_name == "Resume", "which stands in its place"


async def _a_trigger_that_takes_long_makes_it_slow(page: Page, pipeline: Pipeline) -> None:
    await execute(
        pipeline.target_url,
        "CREATE FUNCTION mirror.dawdle() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END'",
        "CREATE TRIGGER dawdle BEFORE INSERT ON mirror.orders FOR EACH ROW EXECUTE FUNCTION mirror.dawdle()",
        "ALTER TABLE mirror.orders ENABLE ALWAYS TRIGGER dawdle",
    )
    await execute(pipeline.source_url, "INSERT INTO orders SELECT n, 1 FROM generate_series(6001, 6500) n")
    await page.until("it is slow", lambda: "SLOW" in page.row("orders"))
    assert "s behind" in page.row("orders")
    page.shoot("state-slow")
    await execute(pipeline.target_url, "DROP FUNCTION mirror.dawdle CASCADE")
    await page.until("it goes on by itself", lambda: "IDLE" in page.row("orders"))


async def _a_lock_makes_it_stalled(page: Page, pipeline: Pipeline) -> None:
    async with await psycopg.AsyncConnection.connect(pipeline.target_url) as locked:
        await locked.execute("LOCK TABLE mirror.orders")
        await execute(pipeline.source_url, "INSERT INTO orders VALUES (5000, 1), (5001, 2)")
        await page.until("it is stalled", lambda: "STALLED" in page.row("orders"))
        assert "waits for pid" in page.row("orders")
        assert "LOCK TABLE mirror.orders" in page.text("#sentence"), "who is waited for"
        assert "LOCK TABLE mirror.orders" in str(page.one("#said").get_attribute("textContent")), "read out"
        page.shoot("state-stalled")
        page.scheme("dark")
        page.shoot("state-stalled-dark")
        page.scheme("light")
        page.narrow()
        page.shoot("state-stalled-narrow", width=NARROW_PX)
        assert page.too_wide() == []
        page.wide()
    await page.until("it goes on by itself", lambda: "IDLE" in page.row("orders"))


async def _the_lines_of_lag_begin_before_the_page_was_opened(page: Page) -> None:
    """The lag of the lock is in the line of a page that is opened when it is over."""
    asked = (
        "return fetch('/api/lag/history').then((found) => found.json())"
        ".then((found) => Math.max(0, ...(found.flows.orders ?? [])))"
    )
    await page.until("the lag is stored", lambda: bool(page.driver.execute_script(asked) > LOCKED_LAG_S))
    page.open()
    await page.until("its line is drawn", lambda: page.lag_line("orders")[0] > OPENED_S)
    _, most_s, path = page.lag_line("orders")
    assert most_s > LOCKED_LAG_S
    assert path.count("L") > 1


async def _a_table_that_does_not_fit_is_an_error(page: Page, pipeline: Pipeline) -> None:
    await execute(pipeline.target_url, "ALTER TABLE mirror.items DROP CONSTRAINT items_pkey")
    await execute(pipeline.source_url, "UPDATE items SET count = 7 WHERE id = 1")
    await page.until("it is an error", lambda: "ERROR" in page.row("items"))
    assert "✖" in page.row("items")
    page.shoot("state-error")
    await execute(pipeline.target_url, "ALTER TABLE mirror.items ADD PRIMARY KEY (id)")
    await page.until("it goes on by itself", lambda: "ERROR" not in page.row("items"), 90.0)


async def _a_replay_is_rewound(page: Page, pipeline: Pipeline) -> None:
    """Long enough to be seen: a lock holds its first batch."""
    async with await psycopg.AsyncConnection.connect(pipeline.target_url) as locked:
        code, said = await pipeline.run("replay", "customers", "--from-start")
        await locked.execute("LOCK TABLE mirror.customers IN SHARE ROW EXCLUSIVE MODE")
        assert code == 0, said
        await page.until("it is rewound", lambda: "REWOUND" in page.row("customers"))
        assert "replayed as a person has asked" in page.row("customers")
        page.shoot("state-rewound")
    await page.until("it is done", lambda: "IDLE" in page.row("customers"))


async def _a_flow_is_paused_and_goes_on(page: Page, pipeline: Pipeline) -> None:
    """By keyboard, with a reason; what comes meanwhile waits."""
    page.driver.execute_script("sessionStorage.setItem('tailrace-key', arguments[0])", ADMIN)
    page.tab_to("orders").send_keys(Keys.ENTER)
    await page.until("its page is there", lambda: "nothing more of it is written" in page.text("#detail"))
    page.tab_to("Why it is paused").send_keys("the month is closed")
    page.back_tab()
    assert page.focused().accessible_name == "Pause"
    page.press(Keys.ENTER)
    await page.until("the command has ended", lambda: "exit 0" in page.text(".output"))
    await page.until("it is paused", lambda: "(the month is closed)" in page.text(".reason"))
    await page.until("it can be resumed", lambda: "Resume" in page.text(".acts-box"))
    await execute(pipeline.source_url, "INSERT INTO orders VALUES (7000, 1), (7001, 2)")
    await page.until("what waits is shown", lambda: "0 records" not in page.text(".cards"))
    page.shoot("flow-paused")
    page.press(Keys.ESCAPE)
    await page.until(
        "what waits is shown", lambda: "PAUSED" in page.row("orders") and "2" in page.row("orders")
    )
    assert "❙❙" in page.row("orders")
    assert "orders is PAUSED" in page.text("#sentence")
    page.shoot("state-paused")
    code, said = await pipeline.run("check", "--max-lag", "100ms", "orders")
    assert code == 1, said
    assert "flow orders is PAUSED" in said
    count = "SELECT count(*) FROM mirror.orders WHERE id >= 7000"
    assert await pipeline.target_value(count) == 0
    page.tab_to("orders").send_keys(Keys.ENTER)
    await page.until("its page is there", lambda: "Resume" in page.text(".acts-box"))
    page.tab_to("Resume")
    page.press(Keys.ENTER)
    await page.until("it can be paused", lambda: "Pause\n" in page.text(".acts-box"))
    page.press(Keys.ESCAPE)
    await page.until("it goes on", lambda: "PAUSED" not in page.row("orders"))
    await pipeline.equal()


async def _states_differ_without_colour(page: Page) -> bool:
    """Each badge has its word and its sign."""
    script = "return [...document.querySelectorAll('.flows .state')].map((each) => each.innerText)"
    return all(len(text.split()) == 2 for text in page.driver.execute_script(script))


async def _all_is_well(page: Page, pipeline: Pipeline) -> None:
    page.open()
    await page.until("the flows are shown", lambda: "orders" in page.row("orders"))
    paints_ms = [page.paint_ms()]
    for _ in range(2):  # what else this machine does only adds
        page.open()
        await page.until("the flows are shown", lambda: "orders" in page.row("orders"))
        paints_ms.append(page.paint_ms())
    assert min(paints_ms) < FIRST_PAINT_MS
    code, said = await pipeline.run("reconcile")
    assert code == 0, said
    await rows(pipeline, SHOWN_RATE_S if page.keeps else RATE_S)
    await page.until("all is well", lambda: page.text("#sentence").startswith("All 3 flows are within"))
    await page.until("it is proven", lambda: "proven equal within" in page.text("#sentence"))
    assert "OK" in page.row("orders")
    assert "IDLE" in page.row("customers")
    assert "✓ equal" in page.row("orders")
    assert "never" in page.row("audit")
    page.shoot("dashboard")
    page.scheme("dark")
    page.shoot("dashboard-dark")
    page.scheme("light")
    assert _gaps(page) == []
    unnamed = [
        each
        for each in page.driver.find_elements(By.CSS_SELECTOR, "button, a, input, meter, svg")
        if each.is_displayed() and not each.accessible_name
    ]
    assert unnamed == []


async def _nothing_hangs_over_a_narrow_page(page: Page) -> None:
    """Of the overview, a flow's and a job's: all has words that only a reader of the screen hears."""
    page.narrow()
    for place in ("", "flow/orders", "job/audit"):
        page.driver.execute_script("location.hash = `#/${arguments[0]}`", place)
        wanted = "#detail" if place else "#overview"
        await page.until(f"{place or 'all'} is shown", lambda shown=wanted: bool(page.text(f"{shown} h2")))
        await page.until("it has its width", lambda: page.too_wide() == [], 5.0)
    page.wide()
    page.driver.execute_script("location.hash = '#/'")


async def _addresses_that_are_none_show_the_overview(page: Page) -> None:
    page.driver.execute_script("location.hash = '#/flow/orders'")
    await page.until("its page is there", lambda: page.one("#detail").is_displayed())
    page.driver.execute_script("location.hash = '#/flow/%E0%A4%A'")
    await page.until("the overview is there", lambda: "orders" in page.row("orders"))
    assert not page.one("#detail").is_displayed()
    page.driver.refresh()
    await page.until("it is live", lambda: page.text("#link") == "● live")
    page.driver.execute_script("location.hash = '#/'")


async def _the_content_is_skipped_to(page: Page) -> None:
    """On a flow's page, too, which stays."""
    page.driver.execute_script("location.hash = '#/flow/orders'")
    await page.until("its page is there", lambda: page.one("#detail").is_displayed())
    page.driver.execute_script("document.querySelector('.skip').focus()")
    page.press(Keys.ENTER)
    await page.until("the content has the focus", lambda: page.focused().get_attribute("id") == "main")
    assert page.one("#detail").is_displayed()
    assert page.driver.current_url.endswith("#/flow/orders")
    page.press(Keys.ESCAPE)
    await page.until("the overview is back", lambda: "orders" in page.row("orders"))


async def _a_key_that_cannot_be_sent_is_not_taken(page: Page) -> None:
    """No header has such a character: no request would leave the browser."""
    page.one("#key").send_keys(Keys.ENTER)
    await page.until("a key is asked for", lambda: page.one("#ask").is_displayed())
    page.press("a☃key", Keys.ENTER)
    told = "return document.getElementById('ask-input').validationMessage"
    assert 'No key has the character "☃"' in page.driver.execute_script(told)
    assert page.one("#ask").is_displayed()
    page.press(Keys.ESCAPE)
    await page.until("the page is back", lambda: not page.one("#ask").is_displayed())
    assert page.text("#link") == "● live"


def _gaps(page: Page) -> list[str]:
    """What somebody who does not see the page, or has no mouse, would miss."""
    script = """
      const bad = [], all = (selector) => [...document.querySelectorAll(selector)];
      const need = (ok, what) => ok || bad.push(what);
      need(document.documentElement.lang, "no language");
      need(all("h1").length === 1 && all("main").length === 1 && all("header").length === 1, "landmarks");
      need(document.querySelector("#said[role=status][aria-live=polite]"), "news are not read out");
      need(document.querySelector("#banner[role=alert]"), "DISABLED is not read out");
      for (const each of all("table")) need(each.caption?.textContent, "a table without a caption");
      for (const each of all("thead th")) need(each.scope === "col", `no scope: column ${each.innerText}`);
      for (const each of all("tbody th")) need(each.scope === "row", `no scope: row ${each.innerText}`);
      for (const each of all("section")) need(each.ariaLabel, "a section without a name");
      for (const each of all("input")) need(each.ariaLabel || each.labels.length, "an input without a label");
      for (const each of all("[tabindex]")) need(each.tabIndex <= 0, "an order of its own for Tab");
      for (const each of all(".unknown")) need(each.textContent.includes("unknown"), "unknown: a sign");
      return bad;
    """
    return [str(each) for each in page.driver.execute_script(script)]


async def _a_job_is_paused_by_keyboard(page: Page) -> None:
    page.press("/")
    assert page.focused().accessible_name.startswith("Filter flows")
    page.press("ord")
    await page.until("one flow is left", lambda: page.row("customers") == "")
    page.press(*[Keys.BACKSPACE] * 3)
    await page.until("all are shown", lambda: page.row("customers") != "")
    page.tab_to("Pause nightly")
    page.press(Keys.ENTER)
    await page.until("a key is asked for", lambda: page.one("#ask").is_displayed())
    page.press("wrong", Keys.ENTER)
    await page.until("it is refused", lambda: "not right" in page.text("#ask-text"))
    page.press(ADMIN, Keys.ENTER)
    await page.until("the job is paused", lambda: "PAUSED" in page.row("nightly"))
    assert page.focused().accessible_name == "Resume nightly", "the button that asked for the key"
    assert "WAITING" in page.row("audit")


async def _a_schedule_is_changed_and_taken_back(page: Page) -> None:
    page.tab_to("nightly")
    page.press(Keys.ENTER)
    await page.until("the job is shown", lambda: "the file counts" in page.text("#detail"))
    page.tab_to("What to change").send_keys("cron")
    page.tab_to("Its new value")
    page.press("every day", Keys.TAB, Keys.ENTER)
    await page.until("it is refused", lambda: "not a cron line" in page.text("#ask-text"))
    page.press(Keys.ENTER)
    await page.until("the page is back", lambda: not page.one("#ask").is_displayed())
    page.driver.execute_script("arguments[0].focus()", page.one("#detail input"))
    page.press(*[Keys.BACKSPACE] * 9, "0 4 * * *", Keys.TAB, Keys.ENTER)
    await page.until("it is in force", lambda: 'cron: "0 4 * * *"' in page.text("#detail"))
    page.tab_to("Take back cron")
    page.press(Keys.ENTER)
    await page.until("it asks", lambda: page.one("#ask").is_displayed())
    page.press(Keys.ENTER)
    await page.until("the file counts", lambda: "the file counts" in page.text("#detail"))
    page.press(Keys.ESCAPE)
    await page.until("the overview is back", lambda: "PAUSED" in page.row("nightly"))


async def _a_held_truncate_is_approved(page: Page, pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, "TRUNCATE customers")
    await page.until("the flow is held", lambda: "HELD" in page.row("customers"))
    assert "customers is HELD" in page.text("#sentence")
    page.shoot("dashboard-held")
    page.tab_to("customers").send_keys(Keys.ENTER)
    await page.until("its page is there", lambda: "truncate of" in page.text("#detail"))
    assert page.focused().text == "customers"
    page.tab_to("Approve")
    page.press(Keys.ENTER)
    await page.until("it asks once more", lambda: page.one("#ask").is_displayed())
    page.press(Keys.ENTER)
    await page.until("the command has ended", lambda: "exit 0" in page.text(".output"))
    await pipeline.equal()
    page.press(Keys.ESCAPE)
    await page.until("the overview is back", lambda: "IDLE" in page.row("customers"))


async def _a_refused_row_is_discarded(page: Page, pipeline: Pipeline) -> None:
    await execute(pipeline.target_url, "ALTER TABLE mirror.items ADD CONSTRAINT few CHECK (count < 1000)")
    await execute(pipeline.source_url, "UPDATE items SET count = 5000 WHERE id IN (7, 8)")
    page.tab_to("items").send_keys(Keys.ENTER)
    await page.until(
        "both keys wait", lambda: "2 keys wait" in page.one("#detail").get_attribute("textContent")
    )
    await page.until(
        "the chart is drawn", lambda: bool(page.driver.find_elements(By.CSS_SELECTOR, ".chart canvas"))
    )
    await page.until("its figures have come", lambda: "2 keys" in page.text(".cards"))
    page.shoot("dashboard-flow")
    chart = page.one(".chart")
    assert re.search(r"last p50 [0-9.]+ ms, p99 [0-9.]+ ms", chart.accessible_name), chart.accessible_name
    assert ("p50 ms" in chart.text, "p99 ms" in chart.text) == (True, True)
    page.tab_to('Discard {"id":7}')
    page.press(Keys.ENTER)
    await page.until("it is foretold", lambda: "discard would be of 1 key" in page.text(".output"))
    await page.until("it can be done", lambda: page.focused().accessible_name == "Do it")
    page.press(Keys.ENTER)
    await page.until("it is done", lambda: "1 key discarded" in page.text(".output"))
    await execute(pipeline.target_url, "ALTER TABLE mirror.items DROP CONSTRAINT few")
    await page.until(
        "one key waits", lambda: "1 key waits" in page.one("#detail").get_attribute("textContent")
    )
    page.tab_to('Retry {"id":8}').send_keys(Keys.ENTER)
    await page.until("it is applied", lambda: "refused nothing that still waits" in page.text("#detail"))
    page.press(Keys.ESCAPE)
    await page.until("the overview is back", lambda: "items" in page.row("items"))
