"""Programs and functions that read strangers' bytes, kept from everything else.

They get open files and nothing to open more by: no network, no file system, no other process, no environment of ours,
little time and memory. ``process.py`` starts them, ``keeper.py`` says what runs as what, ``layers.py`` what protects.
"""
