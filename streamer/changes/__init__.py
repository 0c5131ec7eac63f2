"""The contract both sides read: envelope, position, schema records, topics and keys. No I/O."""
