"""The report of a training run as one page: its frame, and its plots."""
