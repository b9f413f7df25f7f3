"""Who calls and what he may do: API keys, their scopes and their limits."""
