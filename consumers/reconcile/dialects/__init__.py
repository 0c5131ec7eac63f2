"""The canonical text of a row (docs/digest.md) as each kind of store can make it."""
