"""The service around the models: HTTP API, durable jobs, dispatcher, intake, storage and webhooks."""

#: The one version number of the whole repository. pyproject.toml reads it, the API shows it, and a node has to have its
#: head's.
__version__ = "0.1.0"
