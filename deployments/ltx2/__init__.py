"""LTX-2 and LTX-Video: an image and a prompt become a video (with sound for LTX-2)."""
