"""What every target does, in one suite that runs against each kind: the target's contract as tests.

The suite speaks to the Target protocol directly. Batches are made from real envelopes by the code of apply
(consumers.testing), so what it sends is what a flow sends; what it expects is written once, for all kinds.

To add a kind:

1. Write `adapters/<kind>.py` with a subclass of `Adapter` (adapters/base.py): how a target of the kind is
   configured, how its rows are read back without it (by the store's own client), how its lines are cut, how
   its store is made to refuse a row, where its process may be killed between rows and checkpoint.
2. Name the class in `ADAPTERS` (adapters/__init__.py).
3. Run `pytest tests/conformance -k <kind>`.

Rows are read back in the JSON form of the envelope (`{"id": 1, "name": "a"}`), every column of the table in
each row, without columns of Tailrace's own. An adapter whose store knows no types turns them back by itself:
`id` is the only number in the suite.

`abilities` is for what a kind lacks by nature, not for what it lacks yet: a test that needs one runs for the
kinds that have it and is not collected for the others. They are

    keyless   holds a table without a key, as a multiset
    durable   outlives the process that wrote it
    tables    a table is something that is there before its rows, and can have columns of its own
    schemas   keeps tables of one name apart by their schema
    ddl       a table is made before its first row, and may be dropped
"""
