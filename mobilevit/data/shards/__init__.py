"""Tar shards and remote tables: index, read, write."""
