"""Model folders, and the layouts of others' weights."""
