"""Redis capture: notifications are hints, state is re-read, diffed against the shadow, and published."""
