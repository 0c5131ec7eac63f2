"""The lists of what Redis users need hold every command that the scripts run, and keys for every flow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import consumers.targets
from streamer.config import Flow
from streamer.doctor.redis_target import COMMANDS
from streamer.redis.acl import Rights
from streamer.redis.rights import apply_rights, key_glob

_CALL = re.compile(r"""call\(\s*['"]([A-Z]+)['"]|\{'([A-Z]+)'""")


def test_apply_may_run_what_its_scripts_run() -> None:
    modules = sorted(Path(consumers.targets.__file__).parent.glob("redis*.py"))
    text = "\n".join(module.read_text(encoding="utf-8") for module in modules)
    run = {(found[1] or found[2]).lower() for found in _CALL.finditer(text)}
    assert len(run) > 20
    assert run <= set(apply_rights([]).commands)
    assert run <= {command.partition(" ")[0].lower() for command in COMMANDS}


def flow(**keys: Any) -> Flow:
    return Flow.model_validate({"__name__": "f", "from": "shop.public.orders", "to": "copy", **keys})


@pytest.mark.parametrize(
    ("keys", "glob"),
    [
        ({}, b"public:orders:*"),
        ({"to": "copy.mirror"}, b"mirror:orders:*"),
        ({"from": "shop.public.*", "to": "copy.mirror"}, b"mirror:*:*"),
        ({"from": "game.boards"}, b"game:boards:*"),
        ({"from": "totals"}, b"*:totals:*"),
        ({"key": "user:{id}"}, b"user:*"),
        ({"key": "a*b:{id}:c"}, rb"a\*b:*:c"),
        ({"key": "a:{id}:c", "write": "append"}, b"a:*:c*"),
        ({"as": "zset", "member": "id", "score": "n"}, b"public:orders"),
        ({"as": "set", "member": "id", "key": "all"}, b"all"),
    ],
)
def test_a_flow_writes_keys_of_its_glob(keys: dict[str, Any], glob: bytes) -> None:
    assert key_glob(flow(**keys)) == glob


def test_the_rule_of_an_old_server_names_nothing_that_it_does_not_know() -> None:
    rights = Rights(("get", "evalsha_ro", "pexpiretime"), (b"user:*",), (b"__keyspace@0__:user:*",))
    assert rights.rule("app", 6) == "ACL SETUSER app +get +evalsha ~user:*"
    assert rights.rule("app", 7) == (
        "ACL SETUSER app (+get +evalsha_ro +pexpiretime %R~user:* &__keyspace@0__:user:*)"
    )


def test_what_no_acl_can_hold_is_widened() -> None:
    rights = Rights((), (b'a "b" (c):*',), (b"one", b"two words"))
    assert rights.rule("app") == "ACL SETUSER app (%R~a??b???c?:* &*)"
