"""What acceptance, crash and bench share: real processes, a reader of the log, a proxy."""
