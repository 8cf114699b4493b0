# An assembly of boxes held by joints, solved a known number of times; and one that has nothing that holds it.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, expect_some, scope

import FreeCAD as App
import Assembly

sys.path.append("/usr/share/freecad/Mod/Assembly")
import JointObject

S = "a4_constraint_solve_duration_seconds"
scope(S, solver="ondsel")
scope("a4_solver_iterations_per_solve", solver="ondsel")
doc = App.newDocument("Assembly")
assembly = doc.addObject("Assembly::AssemblyObject", "Assembly")
joints = assembly.newObject("Assembly::JointGroup", "Joints")
first = assembly.newObject("Part::Box", "First")
second = assembly.newObject("Part::Box", "Second")
second.Placement.Base = App.Vector(20, 3, 5)
for _ in range(2):
    # Nothing is grounded: FreeCAD 1.0 refuses, 1.1 takes the first part.
    expect("a4_solver_iterations_per_solve", solver="ondsel")
    expect(S, solver="ondsel", status="error" if assembly.solve() else "ok")
ground = joints.newObject("App::FeaturePython", "Ground")
JointObject.GroundedJoint(ground, first)
for _ in range(5):
    assert assembly.solve() == 0
    expect(S, solver="ondsel", status="ok")
    expect("a4_solver_iterations_per_solve", solver="ondsel")
expect_some("a4_solver_iterations_total", solver="ondsel")
both = assembly.newObject("Part::Fuse", "Both")
both.Base, both.Tool = [assembly.newObject("Part::Box", name) for name in ("One", "Other")]
both.Tool.Placement.Base.x = 5
doc.recompute()
expect(S, solver="ondsel", status="ok")
expect("a4_solver_iterations_per_solve", solver="ondsel")
T = "topology_hash_compute_duration_seconds"
scope(T)
expect_some(T, scope="part")  # none of scope "assembly"
done()
