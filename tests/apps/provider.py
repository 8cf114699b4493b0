# An AI provider, as far as a client sees: TLS, HTTP/1.1 with connections that stay, plain and streaming answers, errors.
#   python provider.py CERTIFICATE KEY    prints its port
# The model that is asked decides: `plain-…` answers after 40 ms, `stream-…` begins after 40 ms and goes on for 100 ms in
# pieces, `error-…` refuses with 429, `gone-…` hangs up without an answer.
import json
import os
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ["SECRET"]


class Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = asked["model"]
        time.sleep(0.04)
        said = {"role": "assistant", "content": SECRET + "-answer"}
        answer = {"id": "1", "created": 1, "model": model, "object": "chat.completion"}
        if model.startswith("gone"):
            self.close_connection = True
        elif model.startswith("error"):
            self.whole(429, {"error": {"message": SECRET + "-refusal", "type": "rate_limit"}})
        elif model.startswith("plain"):
            self.whole(200, dict(answer, choices=[{"index": 0, "finish_reason": "stop", "message": said}]))
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(5):
                part = dict(answer, object="chat.completion.chunk", choices=[{"index": 0, "delta": said}])
                # Now and then a piece that is longer than what is parsed at once.
                self.chunk(b"data: " + json.dumps(dict(part, padding="0\r\n\r\n" + "x" * 700 * n)).encode() + b"\n\n")
                time.sleep(0.02)
            self.chunk(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")

    def whole(self, status, answer):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_port, flush=True)
server.serve_forever()
