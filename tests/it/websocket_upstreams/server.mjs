// A WebSocket server over HTTP/2 (RFC 8441) on Node's own http2: it says every message again, but for
// "told?", to which it says what it was asked with.
import http2 from "node:http2";

const server = http2.createServer({ settings: { enableConnectProtocol: true } });

server.on("stream", (stream, headers) => {
  stream.on("error", () => {});
  if (headers[":method"] !== "CONNECT" || headers[":protocol"] !== "websocket") {
    stream.respond({ ":status": 200, "content-type": "text/plain" });
    stream.end("a page");
    return;
  }
  stream.respond({ ":status": 200, "sec-websocket-protocol": "chat" });
  let bytes = Buffer.alloc(0);
  stream.on("data", (piece) => {
    bytes = Buffer.concat([bytes, piece]);
    for (let frame; (frame = take(bytes)); ) {
      bytes = frame.rest;
      const told = frame.payload.length === 5 && frame.payload.toString() === "told?";
      send(stream, frame.opcode, told ? Buffer.from(JSON.stringify(headers)) : frame.payload);
      if (frame.opcode === 8) {
        stream.end();
        return;
      }
    }
  });
});

// RFC 6455, section 5.2. A client's frames are masked, and these are never in fragments.
function take(bytes) {
  if (bytes.length < 2) return null;
  let length = bytes[1] & 0x7f;
  let at = 2;
  if (length === 126) {
    if (bytes.length < 4) return null;
    length = bytes.readUInt16BE(2);
    at = 4;
  } else if (length === 127) {
    if (bytes.length < 10) return null;
    length = Number(bytes.readBigUInt64BE(2));
    at = 10;
  }
  if (bytes.length < at + 4 + length) return null;
  const mask = bytes.subarray(at, at + 4);
  const payload = Buffer.from(bytes.subarray(at + 4, at + 4 + length));
  for (let i = 0; i < length; i++) payload[i] ^= mask[i % 4];
  return { opcode: bytes[0] & 0x0f, payload, rest: bytes.subarray(at + 4 + length) };
}

function send(stream, opcode, payload) {
  let head;
  if (payload.length < 126) {
    head = Buffer.from([0x80 | opcode, payload.length]);
  } else if (payload.length < 65536) {
    head = Buffer.from([0x80 | opcode, 126, 0, 0]);
    head.writeUInt16BE(payload.length, 2);
  } else {
    head = Buffer.from([0x80 | opcode, 127, 0, 0, 0, 0, 0, 0, 0, 0]);
    head.writeBigUInt64BE(BigInt(payload.length), 2);
  }
  stream.write(Buffer.concat([head, payload]));
}

server.listen(Number(process.argv[2]), "127.0.0.1");
