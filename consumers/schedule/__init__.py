"""Jobs at their times: when each is due, who runs it, and what came of it."""
