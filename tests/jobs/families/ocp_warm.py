# Loads every library, so that its files are known to the agent before they are measured.
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done

import OCP

for module in "BRepAlgoAPI BRepFilletAPI BRepOffsetAPI BRepPrimAPI BRepMesh STEPControl IGESControl StlAPI BRepTools RWGltf ShapeFix".split():
    __import__("OCP." + module)
time.sleep(2)
done()
