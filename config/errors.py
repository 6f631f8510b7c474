"""What a command can fail by, as its exit code tells it (`config.commands`)."""


class Failure(Exception):
    """A command did not do what it was asked for. The text is for people."""


class Usage(Failure):
    """An argument that cannot be meant."""


class Away(Failure):
    """PostgreSQL or Redis is not there."""


class Restored(Failure):
    """The database may have been put back to an older state, and nobody has decided what follows."""


class InUse(Failure):
    """Another process has the data folder."""
