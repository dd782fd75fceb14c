"""Helpers for every package: files, devices, processes, tables."""
