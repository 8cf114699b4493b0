# Loads everything that the other jobs use, so that its files are known to the agent before they are measured.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done

import FreeCAD as App

for name in (
    "Part PartDesign Sketcher Assembly AssemblyApp Mesh MeshPart Import Materials Spreadsheet TechDraw Fem Surface Points "
    "ReverseEngineering Inspection Measure Robot DraftUtils Path Drawing Image Raytracing Start Web"
).split():
    try:
        __import__(name)
    except ImportError:
        pass
doc = App.newDocument("Warm")
for kind in "Part::Box", "PartDesign::Body", "Sketcher::SketchObject", "Assembly::AssemblyObject":
    try:
        doc.addObject(kind, "Warm")
    except Exception:
        pass
doc.recompute()
import time

time.sleep(1.5)  # long enough for the last of them to be attached
done()
