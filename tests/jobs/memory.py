# Booleans of many solids: enough memory inside operations that it makes the peak of the process.
import Part
from FreeCAD import Vector

plate = Part.makeBox(400, 400, 10)
holes = [Part.makeCylinder(3, 20, Vector(8 + 9 * (i % 40), 8 + 9 * (i // 40), -5)) for i in range(600)]
result = plate.cut(holes)
print("faces", len(result.Faces))
with open("/proc/self/status") as status:
    for line in status:
        if line.startswith("VmHWM"):
            print("VmHWM", line.split()[1])
