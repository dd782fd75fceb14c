"""What every package may use: files, devices, processes, tables."""
