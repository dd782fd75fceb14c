"""Networks as files for other runtimes.

`rewrite` makes the inference graph, `wrap` the module that a file holds, `backends` has a module a
format, which writes files and runs them, and `verify` compares a file with PyTorch.
"""
