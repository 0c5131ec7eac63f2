"""`tailrace demo`: a shop, the real pipeline, two kills and a verdict. Imports nothing of the tests."""
