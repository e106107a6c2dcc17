// An HTTP/1.1 server on 127.0.0.1 that knows WebSockets: node server.mjs PORT

import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { WebSocketServer } from "ws";

const pages = {
  // What it was told.
  "/told": (request, response) => {
    const { method, url, httpVersion, rawHeaders } = request;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ method, url, httpVersion, rawHeaders }));
  },

  // Four events, one after the other.
  "/events": async (_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (let number = 0; number < 4; number++) {
      response.write(`data: ${number}\n\n`);
      await sleep(200);
    }
    response.end();
  },

  "/trailers": (_, response) => {
    response.writeHead(200, { trailer: "x-checksum, x-session-update" });
    response.write("body");
    response.addTrailers({ "x-checksum": "7", "x-session-update": '{"theme":"dark"}' });
    response.end();
  },

  // What is sent, while it is sent.
  "/echo": (request, response) => {
    response.setHeader("x-length", request.headers["content-length"] ?? "none");
    request.pipe(response);
  },

  "/hints": (_, response) => {
    response.writeEarlyHints({ link: "</a.css>; rel=preload", "x-session-update": '{"early":1}' });
    response.end("final");
  },
};

const server = http.createServer((request, response) => {
  const page = pages[new URL(request.url, "http://localhost").pathname];
  if (page) return page(request, response);
  response.writeHead(404).end("nothing here");
});

const sockets = new WebSocketServer({
  server,
  perMessageDeflate: { threshold: 100 },
  handleProtocols: (protocols) => (protocols.has("echo.v2") ? "echo.v2" : false),
});
sockets.on("headers", (lines) => lines.push('X-Session-Update: {"live":true}'));
sockets.on("connection", (socket, request) => {
  socket.send(JSON.stringify({ user: request.headers["x-forwarded-user"] ?? null }));
  socket.on("message", (message, binary) => {
    if (String(message) === "bye") return socket.close(4001, "Zoë, goodbye");
    socket.send(message, { binary });
  });
  socket.on("close", (code, reason) => console.log(`closed ${code} ${reason}`));
});

server.listen(Number(process.argv[2]), "127.0.0.1");
