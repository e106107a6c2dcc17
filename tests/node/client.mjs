// Talks over WebSockets and prints what became of it: node client.mjs '{"url", "ca", "cookie"}'

import { WebSocket } from "ws";

const { url, ca, cookie } = JSON.parse(process.argv[2]);
const headers = cookie ? { cookie } : {};

const heard = await new Promise((tell) => {
  const heard = { messages: [] };
  const socket = new WebSocket(url, ["echo.v1", "echo.v2"], { ca, headers, perMessageDeflate: true });
  const large = Buffer.alloc(1 << 20, "Zoë ");
  socket.on("open", () => {
    heard.protocol = socket.protocol;
    heard.extensions = socket.extensions;
    socket.ping("are you there?");
    socket.send("Zoë");
    socket.send(Buffer.from([0, 255, 0]));
    socket.send(large);
    socket.send("", { compress: false });
    socket.send("bye");
  });
  socket.on("pong", (bytes) => (heard.pong = String(bytes)));
  socket.on("message", (message, binary) => {
    if (message.length > 1000) message = message.equals(large) ? "all of it" : "something else";
    heard.messages.push(binary ? { binary: message.toString("hex") } : String(message));
    if (message === "all of it") heard.messages[heard.messages.length - 1] = message;
  });
  socket.on("unexpected-response", (_, response) => tell({ status: response.statusCode }));
  socket.on("error", (error) => tell({ error: String(error) }));
  socket.on("close", (code, reason) => tell({ ...heard, code, reason: String(reason) }));
});

console.log(JSON.stringify(heard));
process.exit(0);
