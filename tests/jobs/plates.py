# Drills plates until it is told to end: each cut takes a second or two, whatever the machine, and each round has a
# fillet that cannot be made. Runs in freecadcmd of 0.20 and later.
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import FreeCAD as App
import Part
from drilled import enough, parts

until = time.monotonic() + float(os.environ.get("JOB_SECONDS", "300"))


def drill(base, tool):
    return base.cut(tool)


holes = enough(1.0)
document = App.newDocument("Plates")
while time.monotonic() < until and not os.path.exists(os.environ.get("JOB_STOP", "/nonexistent")):
    drill(*parts(holes))
    try:
        Part.makeBox(1, 1, 1).makeFillet(5, Part.makeBox(1, 1, 1).Edges)
    except Exception:
        pass
    document.addObject("Part::Box", "Plate")
    document.recompute()
print("job done")
