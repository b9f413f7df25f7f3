"""The service around the models: HTTP API, durable jobs, dispatcher, intake, storage and webhooks."""
