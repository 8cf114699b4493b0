# Plates with holes, for jobs whose cuts have to take a while on any machine.
import time

import FreeCAD as App
import Part

V = App.Vector


def parts(holes):
    tools = [Part.makeCylinder(3, 9, V(15 + 4 * i, 10, -2)) for i in range(holes)]
    return Part.makeBox(5 * holes + 40, 20, 5), Part.makeCompound(tools)


def enough(seconds):
    """So many holes that the cut takes longer than this."""
    holes = 40
    while True:
        base, tool = parts(holes)
        begin = time.process_time()  # on a busy machine the wall clock would say more than the next cut takes
        base.cut(tool)
        if time.process_time() - begin > seconds:
            return holes
        holes = holes * 3 // 2
