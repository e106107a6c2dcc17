"""A legacy page behind Vestibule: who is it, and what does the session hold? One header each way.

Run it: python3 examples/python/app.py 9000
"""

import json
import sys
from urllib.parse import parse_qs
from wsgiref.simple_server import make_server


def app(environ, start_response):
    session = json.loads(environ.get("HTTP_X_SESSION", "{}"))
    headers = [("Content-Type", "text/plain; charset=utf-8")]
    query = parse_qs(environ["QUERY_STRING"])
    if "theme" in query:
        update = {"theme": query["theme"][0], "views": {"$add": 1}}
        headers.append(("X-Session-Update", json.dumps(update)))
    start_response("200 OK", headers)
    name = session.get("user", {}).get("name", "stranger")
    page = f"Hello {name}\ntheme: {session.get('theme', 'none')}\nviews: {session.get('views', 0)}\n"
    return [page.encode()]


if __name__ == "__main__":
    make_server("127.0.0.1", int(sys.argv[1]), app).serve_forever()
