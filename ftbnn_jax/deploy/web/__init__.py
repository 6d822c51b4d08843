"""Exported networks as a page for a browser."""
