// Says for each captured request whether the libraries here accept its signature. None of this is ours but the glue;
// where no library knows a scheme, node's own crypto does the arithmetic.
//
// stdin:  [{scheme, headers: {name: value}, body: <base64>, secret, public_key}], names in lower case
// stdout: [true | false]
import { createHmac, createPublicKey, timingSafeEqual, verify as verifySignature } from "node:crypto";
import { json } from "node:stream/consumers";

import { verify as verifyGithub } from "@octokit/webhooks-methods";
import { Webhook } from "standardwebhooks";

const TOLERANCE_SECONDS = 300;

function sameText(one, other) {
  const [a, b] = [Buffer.from(one), Buffer.from(other)];
  return a.length === b.length && timingSafeEqual(a, b);
}

const hex = (method, { secret, body }) => createHmac(method, secret).update(body).digest("hex");

function isFresh(seconds) {
  return Math.abs(Date.now() / 1000 - Number(seconds)) <= TOLERANCE_SECONDS;
}

// the library takes text, which a signed body need not be
const text = ({ body }) => new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body);

const verifiers = {
  async websub(request) {
    const given = request.headers["x-hub-signature"];
    const [method] = given.split("=");
    if (method === "sha256" && request.body.length > 0) return verifyGithub(request.secret, text(request), given);
    return sameText(`${method}=${hex(method, request)}`, given);
  },

  async github(request) {
    const { headers, secret } = request;
    return (
      (await verifyGithub(secret, text(request), headers["x-hub-signature-256"])) &&
      sameText(`sha1=${hex("sha1", request)}`, headers["x-hub-signature"])
    );
  },

  async servicestack(request) {
    return sameText(`sha1=${hex("sha256", request)}`, request.headers["x-hub-signature"]);
  },

  async timestamped(request) {
    const { headers } = request;
    return sameText(hex("sha256", request), headers["x-webhook-signature"]) && isFresh(headers["x-webhook-timestamp"]);
  },

  async standard(request) {
    new Webhook(request.secret).verify(text(request), request.headers, { jsonParse: false });
    return true;
  },

  async "standard-ed25519"({ headers, body, public_key }) {
    const x = Buffer.from(public_key.replace(/^whpk_/, ""), "base64").toString("base64url");
    const key = createPublicKey({ format: "jwk", key: { kty: "OKP", crv: "Ed25519", x } });
    const content = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.`), body]);
    const signatures = headers["webhook-signature"].split(" ").map((entry) => entry.split(","));
    return (
      isFresh(headers["webhook-timestamp"]) &&
      signatures.some(
        ([version, given]) => version === "v1a" && verifySignature(null, content, key, Buffer.from(given, "base64")),
      )
    );
  },
};

const needed = {
  websub: ["x-hub-signature"],
  github: ["x-hub-signature-256", "x-hub-signature"],
  servicestack: ["x-hub-signature"],
  timestamped: ["x-webhook-signature", "x-webhook-timestamp"],
  standard: [],
  "standard-ed25519": ["webhook-id", "webhook-timestamp", "webhook-signature"],
};

const answers = [];
for (const { body, ...request } of await json(process.stdin)) {
  if (!needed[request.scheme].every((name) => request.headers[name])) {
    answers.push(false);
    continue;
  }
  try {
    answers.push(await verifiers[request.scheme]({ ...request, body: Buffer.from(body, "base64") }));
  } catch (error) {
    // the library says no by throwing; a fault of the glue must not pass for that
    if (error.name !== "WebhookVerificationError") throw error;
    answers.push(false);
  }
}
process.stdout.write(JSON.stringify(answers));
