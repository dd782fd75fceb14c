"""Prediction over a Ray cluster."""
