"""Model folders, and checkpoints in the layouts of other libraries."""
