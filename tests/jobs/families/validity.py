# Shapes that are checked, and nothing else that would check them.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, scope, stage

import Part

F = "occt_feature_duration_seconds"
scope(F, feature="check")
box = Part.makeBox(10, 10, 10)
for _ in range(7):
    assert box.isValid()
    expect(F, feature="check", status="ok")
scope("model_generation_stage_duration_seconds", stage="validation")
stage("validation", 7)
done()
