"""The stores that changes are applied to: one Protocol (base), one module a kind."""
