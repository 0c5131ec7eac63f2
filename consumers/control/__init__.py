"""The control database: history, schedules, events, audit. Never a stream position."""
