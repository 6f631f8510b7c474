"""What every room stands on: settings, clock, logs, the HTTP edge, the connections to PostgreSQL and Redis.

Nothing here knows of users, sessions or channels.
"""
