# A sketch with 100 constraints, solved; one that cannot be solved.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, expect_some, scope

import FreeCAD as App
import Part
import Sketcher

S = "a4_constraint_solve_duration_seconds"
V = App.Vector
scope(S)
doc = App.newDocument("Sketch")
sketch = doc.addObject("Sketcher::SketchObject", "Sketch")
N = 25
# Each polygon of four lines has four coincident corners.
for i in range(N):
    x = 20 * i
    corners = [V(x, 0, 0), V(x + 10, 1, 0), V(x + 9, 10, 0), V(x + 1, 9, 0)]
    sketch.addGeometry([Part.LineSegment(corners[k], corners[(k + 1) % 4]) for k in range(4)], False)
sketch.addConstraint([Sketcher.Constraint("Coincident", 4 * i + k, 2, 4 * i + (k + 1) % 4, 1) for i in range(N) for k in range(4)])
assert sketch.ConstraintCount == 100
scope("a4_solver_iterations_per_solve", solver="planegcs")
for _ in range(3):
    assert sketch.solve() == 0
    expect(S, solver="planegcs", status="ok")
    expect("a4_solver_iterations_per_solve", solver="planegcs")
over = doc.addObject("Sketcher::SketchObject", "Over")
over.addGeometry([Part.LineSegment(V(0, 0, 0), V(10, 0, 0))], False)
over.addConstraint([Sketcher.Constraint("Distance", 0, length) for length in (10, 20)])
for _ in range(2):
    assert over.solve() < 0
    expect(S, solver="planegcs", status="error")
    expect("a4_solver_iterations_per_solve", solver="planegcs")
expect_some("a4_solver_iterations_total", solver="planegcs")
done()
