# Materials: what is in the library and what is not, applied to 20 objects; element names come with the shapes.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, scope

import FreeCAD as App
import Materials

A = "material_library_access_total"
P = "material_property_apply_duration_seconds"
L = "material_appearance_apply_duration_seconds"
for family in A, P, L:
    scope(family)
manager = Materials.MaterialManager()
steel = [uuid for uuid, material in manager.Materials.items() if material.Name == "Steel-Generic"][0]
for _ in range(3):
    material = manager.getMaterial(steel)
    expect(A, library="System", result="hit")
try:
    manager.getMaterial("00000000-dead-beef-0000-000000000000")
except LookupError:
    pass
expect(A, library="unknown", result="miss")
doc = App.newDocument("Materials")
for i in range(20):
    box = doc.addObject("Part::Box", "Box%d" % i)
    box.ShapeMaterial = material
    expect(P, property="material")
doc.recompute()
own = Materials.Material()
own.addPhysicalModel(Materials.UUIDs().Density)
own.setPhysicalValue("Density", "1 kg/m^3")
expect(P, property="physical")
own.addAppearanceModel(Materials.UUIDs().BasicRendering)
for _ in range(2):
    own.setAppearanceValue("Shininess", "0.5")
    expect(L, appearance_type="value")
holder = doc.addObject("App::FeaturePython", "Holder")
holder.addProperty("App::PropertyMaterial", "Look")
for _ in range(4):
    holder.Look = App.Material()
    expect(L, appearance_type="material")
holder.addProperty("App::PropertyMaterialList", "Faces")
for n in 1, 6, 20:
    holder.Faces = [App.Material()] * n  # as a shape's view has it for its faces
    expect(L, appearance_type="faces")
done()
