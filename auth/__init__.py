"""WHO IS THIS? Users, passwords, tokens and their keys, API keys, the limits on guessing."""
