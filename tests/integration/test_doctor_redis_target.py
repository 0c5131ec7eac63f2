"""The doctor on a Redis target behind a Postgres source: keys are judged by the source's real catalogue."""

from __future__ import annotations

import psycopg
import pytest

from streamer.config import Config, parse
from streamer.doctor import Check, Level, examine

USERS = """
CREATE TABLE users (id int PRIMARY KEY, email varchar(40) NOT NULL, points numeric(6,2));
CREATE TABLE notes (text text);
"""


@pytest.fixture
def source(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(USERS.encode())
    return database


def config_of(source: str, valkey: str, kafka: str, name: str, flow: str) -> Config:
    text = f"""\
name: {name}
kafka: {{brokers: "{kafka}"}}
sources:
  {name}: {{kind: postgres, url: "{source}", tables: {{"public.*": {{}}}}}}
targets:
  cache: {{kind: redis, url: "{valkey}"}}
flows:
  users: {{from: {name}.public.users, to: cache, {flow}}}
"""
    return parse(text, environ={})


async def keys_of(config: Config) -> list[Check]:
    report = await examine(config)
    target = [check for check in report.checks if check.subject == "target cache"]
    assert any(check.check == "reachable" and check.ok for check in target)
    return [check for check in target if check.check == "keys"]


async def test_a_key_of_other_columns_than_the_tables_key(
    source: str, valkey: str, kafka: str, kafka_name: str
) -> None:
    names = source, valkey, kafka, kafka_name
    (found,) = await keys_of(config_of(*names, 'key: "user:{id}:{email}"'))
    assert found.level is Level.FAIL
    assert "flows.users.key names 'email', which is not of the key of public.users (id)" in found.what
    (found,) = await keys_of(config_of(*names, 'key: "all", as: zset, member: id, score: email'))
    assert "'email' of public.users is character varying(40), which is no number" in found.what
    assert await keys_of(config_of(*names, 'key: "user:{id}"')) == []
    assert await keys_of(config_of(*names, 'key: "all", as: zset, member: id, score: points')) == []
