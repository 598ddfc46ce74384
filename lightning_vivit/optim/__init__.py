"""The import paths that ViViT users know."""
