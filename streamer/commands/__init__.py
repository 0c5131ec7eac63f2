"""The commands that a person types, one module each; `streamer.cli` and `consumers.cli` mount them."""
