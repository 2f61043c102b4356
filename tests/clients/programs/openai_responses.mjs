// openai-node: what `client.responses.create`, `stream` and `parse` give, and how they fail.
import OpenAI from "openai";
import { zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { client, options, statusOf, weather } from "./openai_client.mjs";
import { assert, assertWhole, collect, play, words } from "./scenarios.mjs";

const { responses } = client;
const Place = z.object({ name: z.string(), inhabitants: z.number().nullable() });
const place = { name: "Oslo", inhabitants: 700000 };

await play({
  async create() {
    const response = await responses.create({ model: "echo-5", input: "hello", metadata: { a: "b" } });
    assert.equal(response.output_text, words(5));
    assert.equal(response.status, "completed");
    assert.deepEqual(response.metadata, { a: "b" });
    assert.ok(response._request_id);
    return `${response.usage.output_tokens} output tokens`;
  },

  async "create, streamed"() {
    const events = await collect(await responses.create({ model: "echo-9-each", input: "hello", stream: true }));
    assertWhole(events);
    const said = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
    assert.equal(said.join(""), words(9));
    assert.equal(events.at(-1).response.output[0].content[0].text, words(9));
    return `${events.length} events, ${said.length} deltas`;
  },

  async "stream() and finalResponse()"() {
    const stream = responses.stream({ model: "reasoning-3-9-each", input: "hello" });
    const kinds = new Set();
    for await (const event of stream) {
      kinds.add(event.type);
    }
    const final = await stream.finalResponse();
    assert.equal(final.output_text, words(9));
    const stored = await responses.retrieve(final.id);
    assert.deepEqual(stored.output, JSON.parse(JSON.stringify(final.output, (key, value) => key === "parsed" ? undefined : value)));
    assert.ok(kinds.has("response.reasoning_text.delta"));
    return `${kinds.size} kinds of events, same output as retrieve()`;
  },

  async "parse() with zod"() {
    const text = { format: zodTextFormat(Place, "place") };
    const response = await responses.parse({ model: "parrot", input: JSON.stringify(place), text });
    assert.deepEqual(response.output_parsed, place);
    assert.equal(response.text.format.type, "json_schema");
    return `output_parsed.name is ${response.output_parsed.name}`;
  },

  async "stream() with zod"() {
    const text = { format: zodTextFormat(Place, "place") };
    const stream = responses.stream({ model: "parrot", input: JSON.stringify(place), text });
    const final = await stream.finalResponse();
    assert.deepEqual(final.output_parsed, place);
    return `output_parsed.name is ${final.output_parsed.name}`;
  },

  async "function tool, previous_response_id"() {
    const first = await responses.create({ model: "tools-1", input: "Oslo?", tools: [weather] });
    const [call] = first.output.filter((item) => item.type === "function_call");
    assert.deepEqual(JSON.parse(call.arguments), { city: "Oslo" });
    const second = await responses.create({
      model: "tools-1",
      previous_response_id: first.id,
      input: [{ type: "function_call_output", call_id: call.call_id, output: "cold" }],
      tools: [weather],
    });
    assert.equal(second.output_text, words(10));
    assert.equal(second.previous_response_id, first.id);
    return `2 turns, ${second.usage.input_tokens} input tokens in the second`;
  },

  async "function tool, replayed input"() {
    const input = [{ role: "user", content: "Oslo?" }];
    let calls = 0;
    let response;
    do {
      response = await responses.create({
        model: "tools-2-then-tools-1-then-reasoning-2-4", input, tools: [weather], store: false,
        include: ["reasoning.encrypted_content"],
      });
      input.push(...response.output);
      for (const item of response.output.filter((each) => each.type === "function_call")) {
        input.push({ type: "function_call_output", call_id: item.call_id, output: "cold" });
        calls += 1;
      }
    } while (response.output.some((item) => item.type === "function_call"));
    assert.equal(calls, 3);
    assert.equal(response.output_text, words(4));
    return `${calls} calls in 3 turns, store: false`;
  },

  async "function tool, parsed by zod, streamed"() {
    const tool = zodResponsesFunction({ name: "get_weather", parameters: z.object({ city: z.enum(["Oslo"]) }) });
    const stream = responses.stream({ model: "tools-1-each", input: "Oslo?", tools: [tool] });
    const deltas = [];
    stream.on("response.function_call_arguments.delta", (event) => deltas.push(event.delta));
    const final = await stream.finalResponse();
    const [call] = final.output;
    assert.equal(deltas.join(""), call.arguments);
    assert.deepEqual(call.parsed_arguments, { city: "Oslo" });
    return `${deltas.length} deltas of arguments`;
  },

  async "custom tool"() {
    const tools = [{ type: "custom", name: "note", description: "Takes a note." }];
    const first = await responses.create({ model: "tools-1", input: "Note it.", tools });
    const [call] = first.output.filter((item) => item.type === "custom_tool_call");
    const output = { type: "custom_tool_call_output", call_id: call.call_id, output: "noted" };
    const input = [{ role: "user", content: "Note it." }, call, output];
    const second = await responses.create({ model: "tools-1", input, tools });
    assert.equal(second.output_text, words(10));
    return `input of ${call.input.length} characters`;
  },

  async "tools of the server's"() {
    const events = await collect(await responses.create({ model: "with-tools", input: "Snow?", stream: true }));
    assertWhole(events);
    const { output } = events.at(-1).response;
    assert.deepEqual(output.map((item) => [item.type, item.status]), [
      ["mcp_call", "completed"], ["mcp_call", "failed"], ["message", "completed"],
    ]);
    assert.equal(output[0].output, "12 cm");
    const input = [{ role: "user", content: "Snow?" }, ...output, { role: "user", content: "And now?" }];
    const second = await responses.create({ model: "echo-2", input });
    assert.equal(second.output_text, words(2));
    return `${events.filter((event) => event.type.startsWith("response.mcp_call")).length} events of 2 calls, sent back`;
  },

  async "log probabilities"() {
    const response = await responses.create({
      model: "echo-3-each", input: "hello", top_logprobs: 2, include: ["message.output_text.logprobs"],
    });
    const { logprobs } = response.output[0].content[0];
    assert.equal(logprobs.map(({ token }) => token).join(""), words(3));
    return `${logprobs.length} tokens, ${logprobs[0].top_logprobs.length} each`;
  },

  async "conversation of three turns"() {
    let previous = null;
    const tokens = [];
    for (const input of ["one", "two", "three"]) {
      const response = await responses.create({ model: "echo-2", input, previous_response_id: previous });
      previous = response.id;
      tokens.push(response.usage.input_tokens);
    }
    assert.deepEqual(tokens, [1, 4, 7]);
    return `input tokens ${tokens.join(", ")}`;
  },

  async "an image in the input"() {
    const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=";
    const content = [
      { type: "input_text", text: "What is it?" },
      { type: "input_image", image_url: `data:image/png;base64,${pixel}`, detail: "auto" },
    ];
    const response = await responses.create({ model: "inspect", input: [{ role: "user", content }] });
    assert.ok(response.output_text.includes(pixel));
    return "the model got it as image_url";
  },

  async "incomplete"() {
    const response = await responses.create({ model: "echo-20-length", input: "hello", max_output_tokens: 20 });
    assert.equal(response.status, "incomplete");
    return response.incomplete_details.reason;
  },

  async "refusal"() {
    const response = await responses.create({ model: "refusal-3", input: "hello" });
    assert.equal(response.output[0].content[0].type, "refusal");
    return response.output[0].content[0].refusal.trim();
  },

  async "a failure in the stream"() {
    const events = await collect(await responses.create({ model: "each-3-cut", input: "hello", stream: true }));
    assertWhole(events);
    assert.equal(events.at(-1).type, "response.failed");
    return `${events.at(-1).response.error.code} after ${events.length} events`;
  },

  async "error classes"() {
    const bad = new OpenAI({ ...options, apiKey: "sk-dwctl-none" });
    const hello = { model: "echo-2", input: "hello" };
    const statuses = [
      await statusOf(bad.responses.create(hello), OpenAI.AuthenticationError),
      await statusOf(responses.create({ ...hello, max_output_tokens: 1 }), OpenAI.BadRequestError),
      await statusOf(responses.create({ ...hello, previous_response_id: "resp_none" }), OpenAI.BadRequestError),
      await statusOf(responses.retrieve(`resp_${"0".repeat(32)}`), OpenAI.NotFoundError),
      await statusOf(responses.create({ ...hello, model: "error-429-1" }), OpenAI.RateLimitError),
      await statusOf(responses.create({ ...hello, model: "error-500", stream: true }), OpenAI.InternalServerError),
    ];
    return statuses.join(", ");
  },

  async "retries by itself"() {
    const patient = new OpenAI({ ...options, maxRetries: 2 });
    const response = await patient.responses.create({ model: "flaky-1-3", input: "hello key:retried" });
    assert.equal(response.output_text, words(3));
    return "a 5xx, then the answer";
  },
});
