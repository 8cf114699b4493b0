# Asks an AI provider with the official client, and says how long each call took by the client's own clock: one JSON line
# a call in ASKED. NAME makes the models' names differ between processes. Runs in python3 and in freecadcmd.
import json
import os
import sys
import time

sys.path.append(os.environ["OTEL_PACKAGES"])
if os.environ.get("IN_FREECAD"):
    import Part

    Part.makeBox(1, 1, 1).cut(Part.makeBox(1, 1, 2))
import httpx
import openai

SECRET, NAME = os.environ["SECRET"], os.environ["NAME"]
took = {}


class Timed(httpx.HTTPTransport):
    # Time to the head of the answer, where the client itself sends and receives.
    def handle_request(self, request):
        took["begin"] = time.perf_counter()
        try:
            return super().handle_request(request)
        finally:
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
    whole = time.perf_counter() - took["begin"]
    return {"model": model, "kind": kind, "status": status, "first": took["first"], "whole": whole}


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
