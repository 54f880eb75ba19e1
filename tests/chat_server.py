"""A chat server on loopback that misbehaves on request: it speaks /v1/chat/completions as far as nip's client needs it.

What it does with a question is written in the question: "fail: 429, 500, reset; what is 2 + 2?" is met with these faults, one
each time that it is asked, and then with an answer. `FAULTS` lists them. It counts what it was asked, and how much at a time.
"""

import json
import os
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = {
    "429": lambda h: h.error(429, "Rate limit reached"),
    "429 after": lambda h: h.error(429, "Rate limit reached", {"Retry-After": "0.2"}),
    "429 date": lambda h: h.error(429, "Rate limit reached", {"Retry-After": "Thu, 01 Jan 2026 00:00:00 GMT"}),
    "429 nonsense": lambda h: h.error(429, "Rate limit reached", {"Retry-After": "soon"}),
    "429 long": lambda h: h.error(429, "Daily limit reached", {"Retry-After": "40000"}),
    "429 quota": lambda h: h.error(429, "You exceeded your quota", code="insufficient_quota"),
    "500": lambda h: h.error(500, "Something went wrong"),
    "503": lambda h: h.error(503, "Overloaded"),
    "400": lambda h: h.error(400, "Unknown parameter: 'foo'"),
    "401": lambda h: h.error(401, f"Incorrect API key provided: {h.headers['Authorization'].split()[-1]}"),
    "403": lambda h: h.error(403, "Country not supported"),
    "404": lambda h: h.error(404, "The model does not exist"),
    "hang": lambda h: h.server.owner.over.wait(5),
    "drip": lambda h: h.drip(),
    "reset": lambda h: h.reset(),
    "cut": lambda h: h.cut(),
    "cut stream": lambda h: h.cut_stream(),
    "invalid": lambda h: h.send(200, b'{"choices": [{"message'),
    "html": lambda h: h.send(200, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}),
    "empty": lambda h: h.send(200, b""),
    "wrong": lambda h: h.send_json(200, {"choices": "none"}),
    "list": lambda h: h.send_json(200, [1, 2]),
    "number": lambda h: h.send_json(200, {"choices": [{"finish_reason": "stop", "message": {"content": 5}}]}),
    "no choices": lambda h: h.send_json(200, {"choices": []}),
    "error inside": lambda h: h.send_json(200, {"error": {"message": "Upstream failed", "code": 502}}),
    "odd finish": lambda h: h.send_json(200, h.completion("half", finish="tool_calls")),
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner, question = self.server.owner, body["messages"][-1]["content"]
        with owner.lock:
            owner.now += 1
            owner.most = max(owner.most, owner.now)
            owner.asked.append(body)
            times = owner.times[question]
            owner.times[question] += 1
        try:
            faults = question.removeprefix("fail: ").partition(";")[0].split(", ")
            time.sleep(owner.delay)
            if question.startswith("fail: ") and (times < len(faults) or faults[-1].endswith("...")):
                FAULTS[faults[min(times, len(faults) - 1)].removesuffix("...")](self)
            else:
                with owner.lock:
                    owner.answered.append(question)
                self.send_json(200, self.completion(owner.reply(body), body))
        except OSError:
            self.close_connection = True  # the client hung up
        finally:
            with owner.lock:
                owner.now -= 1

    def completion(self, text, body=None, finish="stop"):
        body = body or {}
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        if body.get("logprobs"):
            top = [{"token": t, "logprob": -i - 0.5, "bytes": None} for i, t in enumerate("ab")]
            choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top[: body["top_logprobs"]]}]}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }

    def send(self, status, content, headers=()):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | dict(headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_json(self, status, value, headers=()):
        self.send(status, json.dumps(value).encode(), headers)

    def error(self, status, message, headers=(), code=None):
        self.send_json(status, {"error": {"message": message, "type": "error", "code": code}}, headers)

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")

    def drip(self):
        "A byte now and then, for ever"
        self.begin()
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b" ")
            if self.server.owner.over.wait(0.05):
                break

    def cut(self):
        "Hang up in the middle of the body"
        self.begin()
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def cut_stream(self):
        "Hang up in the middle of a chunk"
        self.begin()
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"ff\r\n" + b'{"choices": [')
        self.close_connection = True

    def reset(self):
        "The other end is gone, in the middle of the body"
        self.begin()
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


class Quiet(ThreadingHTTPServer):
    request_queue_size = 100

    def handle_error(self, request, client_address):
        "A client that hangs up is no error"


class ChatServer:
    "Starts on a free port; `url` is what `base_url` should be"

    def __init__(self, reply=lambda body: body["messages"][-1]["content"].upper(), delay: float = 0.0):
        self.reply, self.delay, self.over = reply, delay, threading.Event()
        self.lock, self.now = threading.Lock(), 0
        self.forget()
        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.http.owner = self
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def forget(self):
        "What was asked (bodies), what was answered (questions), how often each came, and the most at a time"
        self.asked, self.answered, self.times, self.most = [], [], Counter(), 0

    def close(self):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()
