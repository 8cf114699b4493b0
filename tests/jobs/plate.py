# Cuts a plate with JOB_ROWS × JOB_ROWS holes, twice: a boolean of two shapes that takes its time and its memory.
import os

import FreeCAD as App
import Part

rows = int(os.environ.get("JOB_ROWS", "16"))
plate = Part.makeBox(4 * rows + 4, 4 * rows + 4, 5)
holes = Part.makeCompound(
    [Part.makeCylinder(1, 20, App.Vector(4 * i + 4, 4 * j + 4, -5)) for i in range(rows) for j in range(rows)]
)
for _ in range(2):
    faces = len(plate.cut(holes).Faces)
print("job done", faces)
