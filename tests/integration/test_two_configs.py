"""Two configs of one `name` on one Kafka, with other targets: each is told, by real processes."""

from __future__ import annotations

import pytest

from streamer.sandbox import PostgresServer
from tests.harness.pipeline import Pipeline, execute
from tests.servers import fresh_database

pytestmark = pytest.mark.thorough


async def test_h30_the_other_configs_apply_stands_for_none_of_ours(
    pipeline: Pipeline, postgres_target_server: PostgresServer
) -> None:
    await execute(pipeline.source_url, "CREATE TABLE orders (id int PRIMARY KEY)")
    _, first = await pipeline.start_both()
    for other in fresh_database(postgres_target_server):
        ours = {**pipeline.config["targets"]["copy"]}
        pipeline.config["targets"]["copy"]["url"] = other
        pipeline.write_config()
        second = pipeline.start("apply")
        assert await second.wait() == 2
        second.killed = True  # it was to end
        code, said = await pipeline.run("status")
        assert code == 1, said
        shown = " ".join(said.split())
        assert "mirror" in shown
        assert "belongs to another target than this store" in shown
        assert f"process {first.pid} on " in shown
        assert "two configs have the name" in shown
        pipeline.config["targets"]["copy"] = ours
        pipeline.write_config()
        code, said = await pipeline.run("status")
        shown = " ".join(said.split())
        assert code == 1, said
        assert f"process {second.pid} on " in shown, "it was refused just now"
        assert "belongs to another target" not in shown, "that is the other's"
    records = {record.pid: record for record in await pipeline.status("apply")}
    assert len({records[child.pid].store for child in (first, second)} - {""}) == 2
    (capture,) = await pipeline.status("capture")
    assert capture.store.partition("/")[0].isdigit()
    assert capture.place.startswith("postgres://")
