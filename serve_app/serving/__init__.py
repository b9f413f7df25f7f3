"""The service on Ray Serve: what runs there, how it is deployed, scaled and placed."""
