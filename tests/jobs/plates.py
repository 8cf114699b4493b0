# Drills plates until it is told to end: each cut takes a second or two, whatever the machine, and each round has a
# fillet that cannot be made. Runs in freecadcmd of 0.20 and later.
import os
import time

import FreeCAD as App
import Part

V = App.Vector
until = time.monotonic() + float(os.environ.get("JOB_SECONDS", "300"))


def parts(holes):
    tools = [Part.makeCylinder(3, 9, V(15 + 4 * i, 10, -2)) for i in range(holes)]
    return Part.makeBox(5 * holes + 40, 20, 5), Part.makeCompound(tools)


def enough():
    holes = 40
    while True:
        base, tool = parts(holes)
        begin = time.monotonic()
        base.cut(tool)
        if time.monotonic() - begin > 1.0:
            return holes
        holes = holes * 3 // 2


def drill(base, tool):
    return base.cut(tool)


holes = enough()
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
