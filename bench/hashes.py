"""bcrypt alone: hashes of cost 12 a second of CPU in one thread, as JSON.

python -m bench.hashes SECONDS
"""

import json
import sys
import time

import bcrypt


def main(seconds: float) -> float:
    stored = bcrypt.hashpw(b"x" * 64, bcrypt.gensalt(12))
    done, end, began = 0, time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end:
        bcrypt.checkpw(b"y" * 64, stored)
        done += 1
    return done / (time.process_time() - began)


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]))))
