// Calls each kind of method through a gateway and prints what came of it as JSON:
// node client.mjs '{"address": "localhost:8443", "ca": "PEM", "cookie": "name=value"}'

import { Client, Metadata, credentials } from "@grpc/grpc-js";
import { service } from "./service.mjs";

const { address, ca, cookie } = JSON.parse(process.argv[2]);
const client = new Client(address, credentials.createSsl(Buffer.from(ca)));
const metadata = () => {
  const metadata = new Metadata();
  if (cookie) metadata.set("cookie", cookie);
  metadata.set("x-forwarded-user", "mallory");
  return metadata;
};
const options = { deadline: Date.now() + 30_000 };

const problem = (error) => ({ code: error.code, details: error.details });

/** A call without a stream of requests. */
const call = ({ path, requestSerialize, responseDeserialize }, request) =>
  new Promise((resolve) => {
    const result = {};
    const answered = (error, response) =>
      Object.assign(result, error ? problem(error) : { response });
    client
      .makeUnaryRequest(
        path, requestSerialize, responseDeserialize, request, metadata(), options, answered)
      .on("status", ({ metadata }) => resolve(Object.assign(result, { trailers: metadata.getMap() })));
  });

const count = (request, enough) =>
  new Promise((resolve) => {
    const { path, requestSerialize, responseDeserialize } = service.Count;
    const stream = client.makeServerStreamRequest(
      path, requestSerialize, responseDeserialize, request, metadata(), options);
    const got = [];
    const began = Date.now();
    const times = [];
    stream.on("data", ({ n }) => {
      got.push(n);
      times.push(Date.now() - began);
      if (got.length === enough) stream.cancel();
    });
    stream.on("error", () => {});
    stream.on("status", ({ code }) => resolve({ got, code, spread: times.at(-1) - times[0] }));
  });

const sum = (messages, bytes) =>
  new Promise((resolve) => {
    const { path, requestSerialize, responseDeserialize } = service.Sum;
    const stream = client.makeClientStreamRequest(
      path, requestSerialize, responseDeserialize, metadata(), options,
      (error, response) => resolve(error ? problem(error) : response));
    for (let n = 1; n <= messages; n++) stream.write({ n, padding: "x".repeat(bytes) });
    stream.end();
  });

/** Each message is sent when the one before was heard. */
const chat = (messages) =>
  new Promise((resolve) => {
    const { path, requestSerialize, responseDeserialize } = service.Chat;
    const stream = client.makeBidiStreamRequest(
      path, requestSerialize, responseDeserialize, metadata(), options);
    const heard = [];
    stream.write({ n: 0 });
    stream.on("data", (message) => {
      heard.push(message.heard);
      if (heard.length < messages) stream.write({ n: heard.length });
      else stream.end();
    });
    stream.on("error", () => {});
    stream.on("status", ({ code }) => resolve({ heard, code }));
  });

console.log(JSON.stringify({
  unary: await call(service.Unary, { hello: "Zoë" }),
  update: await call(service.Unary, { update: { theme: "dark" } }),
  after: await call(service.Unary, {}),
  fail: await call(service.Fail, {}),
  count: await count({ to: 5, pause: 100 }),
  large: await count({ to: 20, pause: 1, bytes: 200_000 }),
  cancelled: await count({ to: 1000, pause: 20 }, 3),
  sum: await sum(100, 20_000),
  chat: await chat(10),
  unimplemented: await call({ ...service.Unary, path: "/test.Echo/None" }, {}),
}));
client.close();
