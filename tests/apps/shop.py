# A small CAD service as people build it: an API (Flask) that hands jobs to a worker (Celery over Redis), which starts
# FreeCAD as a subprocess, with the trace's context in its environment. Both have the OpenTelemetry SDK.
#   python shop.py PORT            the API
#   python -m celery -A shop worker    the worker
import os
import subprocess
import sys

from celery import Celery
from celery.signals import worker_process_init
from flask import Flask, jsonify
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

celery = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])


def observe():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()


@worker_process_init.connect(weak=False)
def in_worker(**_):
    observe()


@celery.task(name="shop.make")
def make(number):
    with trace.get_tracer("shop").start_as_current_span("freecad") as span:
        context = {}
        propagate.inject(context)
        environment = dict(os.environ, JOB_ID=f"job-{number}", REQUEST_ID=f"request-{number}", FLOW_TYPE="plate")
        environment.update({name.upper(): value for name, value in context.items()})
        done = subprocess.run(
            [os.environ["FREECAD"], os.environ["SCRIPT"]], env=environment, stdin=subprocess.DEVNULL, capture_output=True
        )
        return {"trace": format(span.get_span_context().trace_id, "032x"), "said": done.stdout.decode()[-400:]}


api = Flask("shop")


@api.get("/ready")
def ready():
    return "yes"


@api.post("/jobs/<int:number>")
def jobs(number):
    return jsonify(make.delay(number).get(timeout=120))


if __name__ == "__main__":
    observe()
    FlaskInstrumentor().instrument_app(api, excluded_urls="ready")
    api.run("127.0.0.1", int(sys.argv[1]), threaded=True)
