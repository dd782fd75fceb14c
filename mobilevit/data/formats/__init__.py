"""Annotation formats: one reader each."""
