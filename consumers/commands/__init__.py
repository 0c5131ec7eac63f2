"""One module a command of the consumers' side; `consumers.cli` mounts them."""
