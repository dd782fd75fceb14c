"""The formats that networks are exported to: one module or package each."""
