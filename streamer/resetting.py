"""The steps of `tailrace reset`, as every message that advises it names them: all of them, in their order.

Owns the words only; a reset is refused while a capture of the source runs, and nothing starts one by itself.
"""

from __future__ import annotations


def reset_steps(source: str, *, above: int | str = "") -> str:
    """`above`: an epoch that the targets have already."""
    more = f" --above {above}" if above else ""
    return (
        f"stop `tailrace run` (or `tailrace capture {source}`), run `tailrace reset {source}{more} --yes`,"
        " and start again what has stopped"
    )


def key_steps(source: str) -> str:
    """A reset that gives a table a key, or another one, which its copies were made without."""
    return (
        "in each target drop the table's copy, which was made without this key (DROP TABLE; not for identity"
        f" FULL without a primary key), then {reset_steps(source)}"
    )


def reset_fix(source: str, *, above: int | str = "") -> str:
    """With what it does."""
    return (
        f"{reset_steps(source, above=above)}: a new epoch begins and every table is copied again; "
        "targets keep their rows meanwhile and lose what the source no longer has"
    )


def processor_reset_steps(processor: str, *, above: int | str = "") -> str:
    """Of a processor: all its rows are derived again, of what Kafka has of its inputs."""
    more = f" --above {above}" if above else ""
    return (
        f"stop `tailrace run` (or every `tailrace process {processor}`), run"
        f" `tailrace reset {processor}{more} --yes`, and start again what has stopped"
    )
