# Shapes that are checked.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, scope

from ocp_shapes import boxes
from OCP.BRepCheck import BRepCheck_Analyzer

F = "occt_feature_duration_seconds"
scope(F, feature="check")
for _ in range(7):
    assert BRepCheck_Analyzer(boxes(1)[0]).IsValid()
    expect(F, feature="check", status="ok")
done()
