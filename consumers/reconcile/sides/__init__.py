"""The stores that reconcile reads, each behind the one Protocol of base."""
