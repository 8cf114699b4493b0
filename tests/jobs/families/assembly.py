# An assembly of boxes held by joints, solved a known number of times; and one that has nothing that holds it.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, scope

import FreeCAD as App
import Assembly

sys.path.append("/usr/share/freecad/Mod/Assembly")
import JointObject

S = "a4_constraint_solve_duration_seconds"
scope(S, solver="ondsel")
doc = App.newDocument("Assembly")
assembly = doc.addObject("Assembly::AssemblyObject", "Assembly")
joints = assembly.newObject("Assembly::JointGroup", "Joints")
first = assembly.newObject("Part::Box", "First")
second = assembly.newObject("Part::Box", "Second")
second.Placement.Base = App.Vector(20, 3, 5)
for _ in range(2):
    # Nothing is grounded: FreeCAD 1.0 refuses, 1.1 takes the first part.
    expect(S, solver="ondsel", status="error" if assembly.solve() else "ok")
ground = joints.newObject("App::FeaturePython", "Ground")
JointObject.GroundedJoint(ground, first)
for _ in range(5):
    assert assembly.solve() == 0
    expect(S, solver="ondsel", status="ok")
done()
