# One worker of the soak: works for JOB_SECONDS, then ends as JOB_END says. Cuts are what the test counts; a worker that
# is ended by force does unions instead, for it cannot tell how many.
import os
import signal
import time

import Part

work, end = os.environ["JOB_WORK"], os.environ["JOB_END"]
until = time.monotonic() + float(os.environ["JOB_SECONDS"])
box, cylinder = Part.makeBox(10, 10, 10), Part.makeCylinder(3, 20)
done = 0
print("working", flush=True)
while time.monotonic() < until:
    box.cut(cylinder) if work == "cut" else box.fuse(cylinder)
    done += 1
    time.sleep(0.005)
    if done % 10 == 0:
        try:
            box.makeFillet(50, box.Edges)
        except Exception:
            pass
if end == "three":
    os._exit(3)
if end == "segv":
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)
if end == "abort":
    os.abort()
if end == "hang":
    time.sleep(3600)
print("job done", done, flush=True)
