"""The commands that use a model, each a function with the same options in Python."""
