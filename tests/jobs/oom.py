# A cut of JOB_ROWS * JOB_ROWS holes, which needs 60 MiB for 20 rows and 120 MiB for 30 beyond what it began with.
import os
import time

import Part
from FreeCAD import Vector

rows = int(os.environ.get("JOB_ROWS", "30"))
cylinder = Part.makeCylinder(3, 20)
plate = Part.makeBox(9 * rows + 10, 9 * rows + 10, 10)
holes = [cylinder.translated(Vector(8 + 9 * (i % rows), 8 + 9 * (i // rows), -5)) for i in range(rows * rows)]
print("cutting", flush=True)
time.sleep(float(os.environ.get("JOB_WAIT", "0")))
plate.cut(holes)
print("job done", flush=True)
