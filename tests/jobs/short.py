# A job as short as FreeCAD allows, whose first act after the import is a boolean.
import Part

a = Part.makeBox(10, 10, 10)
b = Part.makeCylinder(3, 20)
faces = [len(a.fuse(b).Faces), len(a.cut(b).Faces), len(a.common(b).Faces)]
print("job done", faces)
