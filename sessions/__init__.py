"""IS THIS LOGIN STILL ALIVE? Sessions, their ends, and the proof that every process knows of them.

A user is known here only as a *subject*: an id, a state, a credential version and roles.
"""
