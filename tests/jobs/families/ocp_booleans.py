# Booleans of each kind with 2, 5 and 20 solids, split, general fuse, and one without arguments.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import count_range, done, expect, scope

from ocp_shapes import boxes, listed
from OCP.BRepAlgoAPI import (
    BRepAlgoAPI_BuilderAlgo,
    BRepAlgoAPI_Common,
    BRepAlgoAPI_Cut,
    BRepAlgoAPI_Fuse,
    BRepAlgoAPI_Section,
    BRepAlgoAPI_Splitter,
)

B = "occt_boolean_duration_seconds"
scope(B)
KINDS = {"union": BRepAlgoAPI_Fuse, "cut": BRepAlgoAPI_Cut, "common": BRepAlgoAPI_Common, "section": BRepAlgoAPI_Section, "split": BRepAlgoAPI_Splitter}
for n in 2, 5, 20:
    first, *others = boxes(n)
    for operation, kind in KINDS.items():
        work = kind()
        work.SetArguments(listed([first]))
        work.SetTools(listed(others))
        work.Build()
        expect(B, operation=operation, solids_range=count_range(n), status="ok" if work.IsDone() else "error")
    work = BRepAlgoAPI_BuilderAlgo()
    work.SetArguments(listed([first] + others))
    work.Build()
    expect(B, operation="split", solids_range=count_range(n), status="ok" if work.IsDone() else "error")
work = BRepAlgoAPI_Fuse()
work.Build()
assert not work.IsDone()
expect(B, operation="union", solids_range=count_range(0), status="error")
done()
