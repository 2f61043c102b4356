// openai-node: the client of its programs, and what they share.
import OpenAI from "openai";

import { API_KEY, BASE_URL, assert, recordingFetch } from "./scenarios.mjs";

export const options = { baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0, timeout: 20_000, fetch: recordingFetch };
export const client = new OpenAI(options);

export const weather = {
  type: "function",
  name: "get_weather",
  description: "The weather in a city.",
  parameters: {
    type: "object",
    properties: { city: { type: "string", enum: ["Oslo"] } },
    required: ["city"],
    additionalProperties: false,
  },
  strict: true,
};

/** The status of the refusal that `promise` ends with, which must be a whole error of this kind. */
export async function statusOf(promise, kind) {
  const error = await promise.then(
    () => assert.fail("it was not refused"),
    (refusal) => refusal,
  );
  assert.ok(error instanceof kind, `${error}`);
  for (const key of ["type", "code", "param"]) {
    assert.ok(key in error.error, `${key} is missing in ${JSON.stringify(error.error)}`);
  }
  assert.ok(error.requestID, "the error has no request id");
  return error.status;
}
