"""The keys that the writer writes, and the config that captures them: an entity of every type and form.

Owns names only. Two databases; `misc:` keys are nobody's, `user:`, `note:` and `names` only feed the pivot.
"""

from __future__ import annotations

from typing import Any

DATABASES = (0, 1)

ENTITIES: dict[str, dict[str, Any]] = {
    "raws": {"pattern": "raw:{id}", "type": "string", "expires_at": "until"},
    "bins": {"pattern": "bin:{id*}", "type": "string", "value": "bytes", "key": {"id": "bytes"}},
    "docs": {"pattern": "doc:{id}", "type": "json"},
    "profiles": {"pattern": "prof:{id}", "type": "json", "columns": {"age": "int", "name": "text"}},
    "players": {
        "pattern": "player:{id}",
        "type": "hash",
        "columns": {"score": "int", "name": "text"},
        "expires_at": "until",
    },
    "cards": {"pattern": "card:{id}", "type": "hash"},
    "fields": {"pattern": "field:{id}", "type": "hash", "rows": {"field": "f", "value": "v"}},
    "boards": {"pattern": "board:{id}", "type": "zset", "rows": {"member": "user_id", "score": "points"}},
    "ranks": {"pattern": "rank:{id}", "type": "zset"},
    "tags": {"pattern": "tag:{id}", "type": "set", "rows": {"member": "tag"}, "expires_at": "until"},
    "pools": {"pattern": "pool:{id}", "type": "set"},
    "queues": {"pattern": "queue:{id}", "type": "list", "rows": {"index": "i", "value": "v"}},
    "lines": {"pattern": "line:{id}", "type": "list"},
    "logs": {"pattern": "log:{id}", "type": "stream", "rows": {"id": "entry", "fields": "content"}},
    "leaders": {
        "pivot": "user_id",
        "exists": {"any": ["daily", "weekly"]},
        "columns": {
            "daily": {"zset": "board:daily"},
            "weekly": {"zset": "board:weekly"},
            "name": {"hash": "user:{user_id}", "field": "name"},
            "nick": {"hash": "names"},
            "note": {"string": "note:{user_id}"},
        },
    },
}

# What a key begins with -> its type.
FAMILIES: dict[bytes, str] = {
    b"raw": "string",
    b"bin": "string",
    b"doc": "string",
    b"prof": "string",
    b"note": "string",
    b"misc": "string",
    b"player": "hash",
    b"card": "hash",
    b"field": "hash",
    b"user": "hash",
    b"board": "zset",
    b"rank": "zset",
    b"tag": "set",
    b"pool": "set",
    b"queue": "list",
    b"line": "list",
    b"log": "stream",
}
DAILY, WEEKLY, BIG, NAMES = b"board:daily", b"board:weekly", b"board:big", b"names"
FIXED = (
    DAILY,
    WEEKLY,
    BIG,
    NAMES,
)  # seldom of another type: a pivot's row that cannot be read proves nothing
