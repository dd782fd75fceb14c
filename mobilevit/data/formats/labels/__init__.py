"""Formats that give an image one class."""
