"""WHO HEARS WHAT, NOW? Live connections, channels, fan-out, and the processes that carry them."""
