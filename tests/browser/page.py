"""The page in headless Chromium, as a person sees it and presses its keys."""

from __future__ import annotations

import asyncio
import json
import re
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

WAIT_S = 90.0
POLL_S = 0.1
FIRST_PAINT_MS = 300
NARROW_PX = 390


class Page:
    """What a person sees and presses."""

    def __init__(self, driver: webdriver.Chrome, url: str, shots: Path | None) -> None:
        self.driver = driver
        self.url = url
        self._shots = shots

    @property
    def keeps(self) -> bool:
        return self._shots is not None

    def open(self) -> None:
        self.driver.get(self.url)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(
            self.driver.execute_script(
                "return document.querySelector(arguments[0])?.innerText ?? ''", selector
            )
        )

    def row(self, name: str) -> str:
        """Of a table: its words."""
        script = (
            "return [...document.querySelectorAll('tbody tr')].find((row) => row.offsetParent &&"
            " row.querySelector('th a, th')?.innerText.split('\\n')[0] === arguments[0])?.innerText ?? ''"
        )
        return " ".join(str(self.driver.execute_script(script, name)).split())

    def lag_line(self, flow: str) -> tuple[float, float, str]:
        """The seconds that a flow's line of lag is long, the most in it, and its path; -1: none."""
        script = (
            "const row = [...document.querySelectorAll('.flows tbody tr')]"
            ".find((row) => row.querySelector('a').innerText === arguments[0]);"
            "const line = row?.querySelector('.spark');"
            "return line ? [line.getAttribute('aria-label'), line.firstChild.getAttribute('d')] : ['', '']"
        )
        label, path = self.driver.execute_script(script, flow)
        found = re.fullmatch(r"lag of the last (\d+) s: at most ([\d.]+) s", label)
        return (float(found[1]), float(found[2]), path) if found else (-1, -1, "")

    async def until(self, what: str, check: Callable[[], bool], wait_s: float = WAIT_S) -> None:
        end_s = time.monotonic() + wait_s
        while not await asyncio.to_thread(check):
            assert time.monotonic() < end_s, f"waiting until {what}:\n{self.text('body')}"
            await asyncio.sleep(POLL_S)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def back_tab(self) -> None:
        chain = webdriver.ActionChains(self.driver)
        chain.key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()

    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def tab_to(self, name: str, limit: int = 80) -> WebElement:
        """By Tab alone, to what has this accessible name."""
        for _ in range(limit):
            if self.focused().accessible_name == name:
                return self.focused()
            self.press(Keys.TAB)
        raise AssertionError(f"Tab does not lead to {name!r}")

    def narrow(self) -> None:
        """As on a telephone."""
        size = {"width": NARROW_PX, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def wide(self) -> None:
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def too_wide(self) -> list[str]:
        """What makes the whole page scroll to the side; a table may by itself."""
        script = (
            "const width = document.documentElement.clientWidth;"
            "const own = (e) => e.closest('.scroll, .strip, .hidden, caption, .skip');"
            "return [...document.querySelectorAll('body *')]"
            ".filter((e) => e.getBoundingClientRect().right > width + 1 && !own(e))"
            ".map((e) => `${e.tagName}.${e.className} ${e.getBoundingClientRect().right}`)"
        )
        found = [str(each) for each in self.driver.execute_script(script)]
        room = "const all = document.documentElement; return [all.scrollWidth, all.clientWidth]"
        wide, shown = self.driver.execute_script(room)
        return found if wide == shown else [*found, f"the page is {wide} wide, and {shown} are shown"]

    def shoot(self, name: str, width: int = 1280) -> None:
        """All of it, however high it is."""
        if self._shots is None:
            return
        self._shots.mkdir(parents=True, exist_ok=True)
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        wanted = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", wanted)["data"]
        (self._shots / f"{name}.png").write_bytes(b64decode(data))

    def scheme(self, value: str) -> None:
        feature = {"features": [{"name": "prefers-color-scheme", "value": value}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)

    def requests(self) -> list[str]:
        """Of our page; the browser's own first page has its own."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            sent = message["params"] if message["method"] == "Network.requestWillBeSent" else {}
            if str(sent.get("documentURL", "")).startswith(self.url):
                found.append(str(sent["request"]["url"]))
        return found

    def paint_ms(self) -> float:
        script = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 1e9"
        return float(self.driver.execute_script(script))
