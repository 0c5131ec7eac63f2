"""What a flow with `delete: soft` says of a table's other unique indexes: those that hold marked rows."""

from __future__ import annotations

from collections.abc import Collection

from streamer.errors import ConfigError


def refusal(index: str, columns: Collection[str], soft: str, cure: str, where: str) -> ConfigError:
    return ConfigError(
        f"its unique index {index} ({', '.join(sorted(columns))}) holds rows that are deleted, too: under"
        f" delete: soft({soft}) they keep their values, and a row that takes one of them would be refused",
        where=where,
        fix=f"{cure} or write delete: apply",
    )
