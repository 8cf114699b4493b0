# Reads a small file, which is over at once, and writes a large one, which takes long.
import os
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, path

import FreeCAD as App
import Part

try:
    Part.Shape().read(os.environ["INPUT"])
except Exception:
    pass  # it is empty
spheres = [Part.makeSphere(5, App.Vector(12 * i, 0, 0)) for i in range(int(os.environ["SPHERES"]))]
Part.makeCompound(spheres).exportStep(path("long.step"))
done()
