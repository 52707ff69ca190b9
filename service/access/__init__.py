"""Who may ask for what, and how often: keys, sessions, rate limits."""
