"""Untrusted media on its way in: fetched safely, recognised, measured and stored before any GPU is rented."""
