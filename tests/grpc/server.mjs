// A gRPC server on 127.0.0.1, over clear text: node server.mjs PORT

import { Metadata, Server, ServerCredentials, status } from "@grpc/grpc-js";
import { service } from "./service.mjs";

const told = (call) => {
  const one = (name) => call.metadata.get(name).map(String);
  return { user: one("x-forwarded-user"), session: one("x-session"), cookie: one("cookie") };
};

const server = new Server();
server.addService(service, {
  Unary(call, answer) {
    const trailers = new Metadata();
    trailers.set("x-checksum", "7");
    if (call.request.update) trailers.set("x-session-update", JSON.stringify(call.request.update));
    answer(null, { echo: call.request, told: told(call) }, trailers);
  },
  Fail(call, answer) {
    answer({ code: status.FAILED_PRECONDITION, details: "Zoë is not ready: 100%" });
  },
  Count(call) {
    let next = 0;
    const timer = setInterval(() => {
      call.write({ n: next, padding: "x".repeat(call.request.bytes ?? 0) });
      if (++next === call.request.to) {
        clearInterval(timer);
        call.end();
      }
    }, call.request.pause);
    call.on("cancelled", () => {
      clearInterval(timer);
      console.log("cancelled");
    });
  },
  Sum(call, answer) {
    let sum = 0;
    let bytes = 0;
    call.on("data", (message) => {
      sum += message.n;
      bytes += message.padding.length;
    });
    call.on("end", () => answer(null, { sum, bytes }));
  },
  Chat(call) {
    call.on("data", (message) => call.write({ heard: message.n }));
    call.on("end", () => call.end());
  },
});

server.bindAsync(`127.0.0.1:${process.argv[2]}`, ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
});
