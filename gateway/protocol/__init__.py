"""The wire: the Centrifuge client protocol as data and bytes. Pure: no sockets, no clocks, no settings."""
