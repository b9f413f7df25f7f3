"""How nodes come to be. Empty until the multi-host cluster lands."""
