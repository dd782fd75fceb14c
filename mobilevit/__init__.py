"""MobileViT."""
