# A job whose slow operations are called from known lines: it says which, in JOB_FOLDER/record.
# They are made slow enough for the machine that it runs on. Runs in freecadcmd of 0.20 and later.
import json
import os
import sys
import time

import FreeCAD as App
import Part

# With one processor a cut in parallel threads takes as long as they do together.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
RECORD = open(os.environ["JOB_FOLDER"] + "/record", "w")
V = App.Vector


def here(what, kind):
    # The line of the caller: the call itself stands on it.
    frame = sys._getframe(1)
    RECORD.write(json.dumps({"what": what, "kind": kind, "line": frame.f_lineno, "function": frame.f_code.co_qualname}) + "\n")
    RECORD.flush()


def parts(holes):
    tools = [Part.makeCylinder(3, 9, V(15 + 4 * i, 10, -2)) for i in range(holes)]
    return Part.makeBox(5 * holes + 40, 20, 5), Part.makeCompound(tools)


def enough():
    holes = 40
    while True:
        base, tool = parts(holes)
        begin = time.process_time()  # what the next cut takes at least, however busy the machine is now
        base.cut(tool)
        if time.process_time() - begin > 0.6:
            return holes
        holes = holes * 3 // 2


class Plate:
    def drill(self, base, tool):
        for _ in range(2):
            here("method", "boolean cut"), base.cut(tool)


def nested(base, tool):
    return [(here("comprehension", "boolean cut"), base.cut(tool)) for _ in range(1)]


class Feature:
    # Runs inside a recompute: Python below C++ below Python.
    def __init__(self, obj, base, tool):
        self.base, self.tool = base, tool
        obj.Proxy = self

    def execute(self, obj):
        here("execute", "boolean union"), self.base.fuse(self.tool)


def run():
    base, tool = parts(enough())
    Plate().drill(base, tool)
    nested(base, tool)
    document = App.newDocument("Lines")
    obj = document.addObject("Part::FeaturePython", "Scripted")
    Feature(obj, base, tool)
    here("recompute", "recompute document"), document.recompute()
    (lambda: (here("lambda", "boolean cut"), base.cut(tool)))()


run()
print("job done")
sys.stdout.flush()
