# A job of JOB_CUTS booleans, and JOB_OBJECTS objects that are only added.
import os

import FreeCAD as App
import Part

plate, tool = Part.makeBox(60, 20, 5), Part.makeCylinder(3, 9, App.Vector(10, 10, -2))
for n in range(int(os.environ.get("JOB_CUTS", "3"))):
    plate.cut(tool)
document = App.newDocument("Cuts")
for n in range(int(os.environ.get("JOB_OBJECTS", "0"))):
    document.addObject("App::FeaturePython", "O")
print("job done")
