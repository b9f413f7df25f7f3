"""OpenAI's Videos protocol over the same jobs: ``/v1/videos`` and ``/v1/models``. See ``docs/openai.md``."""
