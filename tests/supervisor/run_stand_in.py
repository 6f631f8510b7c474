"""`run.py` with the tiny application in its workers, so that what is tested is the running and not the product."""

import os
import sys

from config import commands
from gateway.supervisor import Supervisor

if __name__ == "__main__":
    defaults = Supervisor.__init__.__kwdefaults__
    assert defaults is not None
    defaults["command"] = (sys.executable, "-m", "tests.supervisor.stand_in")
    patience = float(os.environ.get("STAND_IN_PATIENCE", "30"))
    for there in (commands.postgres_there, commands.redis_there):
        there.__defaults__ = (patience,)
    import run

    sys.exit(run.main())
