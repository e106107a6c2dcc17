"""Servers of Python's own library on 127.0.0.1: python3 server.py WSGI_PORT PLAIN_PORT

The first is a WSGI app, which answers in HTTP/1.0 and ends most bodies with the connection. The
second speaks HTTP/1.1 and writes its chunks itself.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from wsgiref.simple_server import make_server


def app(environ, start_response):
    path = environ["PATH_INFO"]
    headers = [("Content-Type", "application/json")]
    if path.endswith("/update"):
        headers.append(("X-Session-Update", json.dumps({"theme": "Zoë's"})))
    if path.endswith("/missing"):
        start_response("404 Not Found", headers)
        return [b""]
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length).decode("latin-1")
    told = {name: value for name, value in environ.items() if name.startswith("HTTP_")}
    told["method"], told["body"], told["query"] = (
        environ["REQUEST_METHOD"], body, environ["QUERY_STRING"])
    start_response("200 OK", headers)
    # Several pieces: wsgiref cannot know how long they are together.
    text = json.dumps(told).encode()
    return iter([text[:10], text[10:], b" " * 100_000])


class Plain(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        if self.path.endswith("/chunks"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number in range(1, 200):
                piece = b"x" * number
                # Hexadecimal in capitals, and an extension that nobody knows.
                self.wfile.write(b"%X;piece=%d\r\n%b\r\n" % (number, number, piece))
            self.wfile.write(b"0\r\n\r\n")
        elif self.path.endswith("/close"):
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"until the end")
        else:
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"plain")

    def log_message(self, *_):
        pass


wsgi = make_server("127.0.0.1", int(sys.argv[1]), app)
plain = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Plain)
threading.Thread(target=plain.serve_forever, daemon=True).start()
wsgi.serve_forever()
