# Cuts from its first moment on, without a pause, for a second and sixty cuts at least, and tells when each began and ended
# as operations.py does.
import json
import os
import time

import Part

record = open(os.environ["JOB_RECORD"], "w")
box, tool = Part.makeBox(10, 10, 10), Part.makeCylinder(3, 20)


def clock():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def tell(kind, start, end):
    record.write(json.dumps({"kind": kind, "start": start, "end": end, "outcome": "ok"}) + "\n")


until, cuts = time.monotonic() + 1, 0
while time.monotonic() < until or cuts < 60:
    start = clock()
    box.cut(tool)
    tell("cut", start, clock())
    cuts += 1
tell("end", clock(), clock())
record.close()
print("job done")
