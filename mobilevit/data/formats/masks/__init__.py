"""Masks: how they are stored and drawn, and formats that store one for each image."""
