"""The tool's own line to Redis, past the proxy.

A server that is busy, or that the machine does not let run, is asked again until ASKED_S have passed: what
the tool cannot find out is no finding about the capture.
"""

from __future__ import annotations

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

ANSWER_S = 5.0
AGAIN_S = 1.0
ASKED_S = 60.0
_RETRIES = round(ASKED_S / (ANSWER_S + AGAIN_S)) - 1


def client(url: str, *, decode_responses: bool = False) -> aioredis.Redis:
    """Each of its commands may be carried out twice."""
    return aioredis.from_url(
        url,
        decode_responses=decode_responses,
        socket_timeout=ANSWER_S,
        socket_connect_timeout=ANSWER_S,
        retry=Retry(ConstantBackoff(AGAIN_S), _RETRIES),
    )
