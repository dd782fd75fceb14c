"""Export of networks to files for other runtimes.

`rewrite` builds the inference graph, `wrap` the module that a file holds, `backends` writes and
opens the files of each format, and `verify` compares a file with PyTorch.
"""
