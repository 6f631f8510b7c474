"""Servers to compare with: each file is a program that takes a port, and says `ready` on stdout."""
