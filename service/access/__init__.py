"""Access control: keys, scopes, sessions, rate limits."""
