"""bcrypt alone: hashes of cost 12 a second in one thread, as JSON.

python -m bench.hashes SECONDS
"""

import json
import sys
import time

import bcrypt


def main(seconds: float) -> float:
    stored = bcrypt.hashpw(b"x" * 64, bcrypt.gensalt(12))
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        bcrypt.checkpw(b"y" * 64, stored)
        done += 1
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    print(json.dumps({"per second": main(float(sys.argv[1]))}))
