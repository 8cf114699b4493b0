# Expressions: an engine with some in it runs; those without are no operations.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, scope

import FreeCAD as App

S = "a4_constraint_solve_duration_seconds"
scope(S, solver="expression")
doc = App.newDocument("Expressions")
boxes = [doc.addObject("Part::Box", "Box%d" % i) for i in range(30)]
doc.recompute()
for i, box in enumerate(boxes[1:11]):
    box.setExpression("Length", "%s.Length + 1 mm" % boxes[i].Name)
doc.recompute()
# Twice a recompute: what only gives output is left to the second run.
expect(S, EXPECTED, solver="expression", status="ok")
done()
