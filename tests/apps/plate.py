# The job of shop.py: a document with a cut, and ten cuts with a span of the OpenTelemetry SDK around each.
import os
import sys

sys.path.append(os.environ["OTEL_PACKAGES"])
import FreeCAD as App
import Part
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
tracer = provider.get_tracer("plate")
parent = propagate.extract({name: os.environ.get(name.upper(), "") for name in ("traceparent", "tracestate")})
V = App.Vector
plate = Part.makeBox(60, 20, 5)
tools = Part.makeCompound([Part.makeCylinder(3, 9, V(10 + 10 * i, 10, -2)) for i in range(5)])
for n in range(10):
    with tracer.start_as_current_span("sdk cut", context=parent):
        plate.cut(tools)
document = App.newDocument("Plate")
box, pin = document.addObject("Part::Box", "Box"), document.addObject("Part::Cylinder", "Pin")
cut = document.addObject("Part::Cut", "Drilled")
cut.Base, cut.Tool = box, pin
document.recompute()
provider.shutdown()
print("job done")
