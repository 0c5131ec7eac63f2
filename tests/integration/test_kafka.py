"""Talking to a real Kafka: what must not be lost on the way."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer

from streamer.kafka import connect, shut


async def test_a_cancellation_while_a_client_closes_is_not_lost(kafka: str) -> None:
    """Whatever step of it the cancellation meets."""
    steps = 0
    while True:
        client = AIOKafkaConsumer(bootstrap_servers=kafka)
        await connect(client, kafka, None)
        task = asyncio.create_task(shut(client.stop))
        for _ in range(steps):
            await asyncio.sleep(0)
        cancelled = task.cancel()
        await asyncio.wait([task])
        if steps and not cancelled:
            break  # it was over before
        assert task.cancelled(), f"after {steps} steps"
        steps += 1
    assert steps > 1
