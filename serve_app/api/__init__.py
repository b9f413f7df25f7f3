"""The HTTP API: thin routers over the store, one file per noun."""
