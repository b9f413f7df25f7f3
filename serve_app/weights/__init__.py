"""Checkpoints in the bucket: copied there once, read by GPU nodes through links that expire."""
