"""Networks as files for other runtimes: one form for all of them, then one module a format.

After a file is written, its own runtime runs it on photos, and its answers are compared with
PyTorch's.
"""
