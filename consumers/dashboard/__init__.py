"""The page and the API of `tailrace serve`: what the status topic and the control database say, over HTTP.

Changes nothing by itself: what a person asks for runs as the `tailrace` command that does it.
"""
