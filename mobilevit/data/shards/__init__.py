"""Tar shards and tables: their index, reading and writing them."""
