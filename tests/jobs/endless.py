# Works until it is told to end: a cut every 20 ms.
import os
import time

import Part

until = time.monotonic() + float(os.environ.get("JOB_SECONDS", "60"))
done = 0
while time.monotonic() < until and not os.path.exists(os.environ.get("JOB_STOP", "/nonexistent")):
    Part.makeBox(10, 10, 10).cut(Part.makeCylinder(3, 20))
    done += 1
    time.sleep(0.02)
print("job done", done)
