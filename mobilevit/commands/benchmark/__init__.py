"""`mobilevit benchmark`: models side by side, in every runtime."""
