"""The command `tailrace`, and `python -m consumers`, which is the same."""

from __future__ import annotations

import gc

# What imports and configs leave is hardly ever garbage; to look for some in it costs a fifth of a start.
GC_THRESHOLDS = (50_000, 20, 20)


def main() -> None:
    gc.set_threshold(*GC_THRESHOLDS)
    from consumers.cli import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
