"""Where a flow's rows go, as reconcile sees it: one module a kind of target, each behind base."""
