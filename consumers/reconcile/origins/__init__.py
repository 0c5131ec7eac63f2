"""What a flow's rows come from, as reconcile sees it: one module a kind of source, each behind base."""
