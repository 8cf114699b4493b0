# Asks an AI provider with the official client (on httpx2, which took over from httpx), and says how long each call took by
# the client's own clock: one JSON line a call in ASKED. NAME makes the models' names differ between processes. Runs in
# python3 and in freecadcmd.
import json
import os
import sys
import time

sys.path.append(os.environ["OTEL_PACKAGES"])
if os.environ.get("IN_FREECAD"):
    import Part

    Part.makeBox(1, 1, 1).cut(Part.makeBox(1, 1, 2))
import httpx2 as httpx
import openai

SECRET, NAME = os.environ["SECRET"], os.environ["NAME"]
took = {}


class Body(httpx.SyncByteStream):
    def __init__(self, inner):
        self.inner = inner

    def end(self):
        took["whole"] = took["whole"] or time.perf_counter() - took["begin"]

    def __iter__(self):
        yield from self.inner
        self.end()

    def close(self):
        # A stream is left at its last event, before its last bytes.
        self.end()
        self.inner.close()


class Timed(httpx.HTTPTransport):
    # Times by the client's own account of what it does: without the time to connect, to the head and to the end of the
    # answer.
    def handle_request(self, request):
        took.update(begin=0, first=0, whole=0)
        request.extensions["trace"] = self.trace
        response = super().handle_request(request)
        response.stream = Body(response.stream)
        return response

    @staticmethod
    def trace(event, _):
        if event == "http11.send_request_headers.started":
            took["begin"] = time.perf_counter()
        if event == "http11.receive_response_headers.complete":
            took["first"] = time.perf_counter() - took["begin"]


http = httpx.Client(transport=Timed(verify=os.environ["CERTIFICATE"]))
client = openai.OpenAI(
    base_url=os.environ["PROVIDER"],
    api_key=SECRET + "-key",
    http_client=http,
    max_retries=0,
    default_headers={"X-Secret": SECRET + "-header"},
    default_query={"secret": SECRET + "-query"},
)


def ask(kind, number):
    model = f"{kind}-{NAME}-{number}"
    # A body of which the model stands far behind, beside a text that looks like one.
    messages = [{"role": "user", "content": SECRET + "-prompt " + '"model":"wrong" ' + "x" * 3000}]
    status = 200
    try:
        if kind == "stream":
            for _ in client.chat.completions.create(model=model, messages=messages, stream=True):
                pass
        else:
            client.chat.completions.create(model=model, messages=messages)
    except openai.APIStatusError as error:
        status = error.status_code
    except openai.APIConnectionError:
        status = 0
    return {"model": model, "kind": kind, "status": status, "first": took["first"], "whole": took["whole"]}


with open(os.environ["ASKED"], "w") as asked:
    ask("plain", "warm")
    for number in range(8):
        for kind in ("plain", "stream", "error"):
            asked.write(json.dumps(ask(kind, number)) + "\n")
    asked.write(json.dumps(ask("gone", 0)) + "\n")
    asked.write(json.dumps(ask("plain", "last")) + "\n")
print("job done", flush=True)
while not os.path.exists(os.environ["STOP"]):
    time.sleep(0.05)
