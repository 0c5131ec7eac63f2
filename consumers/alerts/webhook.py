"""Signed messages to the channels' URLs.

The body is JSON, the header `Tailrace-Signature` is `t=SECONDS,v1=HEX`: HMAC-SHA256 with the channel's secret
of `SECONDS.BODY`, as payment services sign theirs. Each is given TIMEOUT_S as a whole, no redirect is
followed, and no answer is read beyond its status.
"""

from __future__ import annotations

import asyncio
import hmac
from hashlib import sha256
from typing import Any

import httpx2
import orjson

from consumers.control.feed import Delivery
from streamer.logs import redact

FORMAT = 1
SIGNATURE = "Tailrace-Signature"
TIMEOUT_S = 10.0
RETRY_S = (5.0, 15.0, 60.0, 300.0, 900.0)  # after each failure; then it is given up
PROBLEM_LIMIT = 200


def message(name: str, delivery: Delivery) -> bytes:
    """`name`: of the config."""
    event = delivery.event
    return orjson.dumps(
        {
            "format": FORMAT,
            "name": name,
            "kind": delivery.kind,
            "number": delivery.number,
            "event": event.event,
            "rule": event.rule,
            "subject": event.subject,
            "text": redact(event.text),
            "since_us": event.since_us,
            "resolved_us": event.resolved_us,
        }
    )


def trial(name: str, channel: str, at_us: int) -> bytes:
    return orjson.dumps(
        {
            "format": FORMAT,
            "name": name,
            "kind": "test",
            "number": 0,
            "event": None,
            "rule": None,
            "subject": f"channel {channel}",
            "text": "a test of this channel: nothing is wrong",
            "since_us": at_us,
            "resolved_us": None,
        }
    )


def sign(secret: str, body: bytes, at_s: int) -> str:
    signed = hmac.new(secret.encode(), f"{at_s}.".encode() + body, sha256).hexdigest()
    return f"t={at_s},v1={signed}"


async def send(client: httpx2.AsyncClient, url: str, secret: str, body: bytes, at_s: int) -> str:
    """Why it did not arrive; empty when it did. `secret` empty: it is not signed."""
    headers = {"Content-Type": "application/json", "User-Agent": "tailrace"}
    if secret:
        headers[SIGNATURE] = sign(secret, body, at_s)
    return await request(client, "POST", url, content=body, headers=headers)


async def request(client: httpx2.AsyncClient, method: str, url: str, **more: Any) -> str:
    """Why it did not succeed; empty when it did. The URL, which may hold a secret, is never part of it."""
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            client.stream(method, url, timeout=TIMEOUT_S, follow_redirects=False, **more) as answer,
        ):
            return "" if answer.is_success else f"the receiver answers {answer.status_code}"
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
        return "it is no URL of http or https"
    except (TimeoutError, httpx2.TimeoutException):
        return f"no answer within {TIMEOUT_S:g} s"
    except httpx2.HTTPError as error:
        return redact(f"{type(error).__name__}: {error}".replace(url, "URL"))[:PROBLEM_LIMIT]


def again_after_s(tries: int) -> float | None:
    """None: it is given up."""
    return RETRY_S[tries - 1] if tries <= len(RETRY_S) else None
