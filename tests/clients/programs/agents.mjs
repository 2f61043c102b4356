// The OpenAI Agents SDK for JavaScript: tools, hand-offs, sessions, streams.
import { Agent, OpenAIProvider, Runner, hostedMcpTool, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";

import { API_KEY, BASE_URL, assert, collect, play, recordingFetch, words } from "./scenarios.mjs";

const openAIClient = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0, fetch: recordingFetch });
const runnerOf = (useResponses) =>
  new Runner({ modelProvider: new OpenAIProvider({ openAIClient, useResponses }), tracingDisabled: true });
const runner = runnerOf(true);
const getWeather = tool({
  name: "get_weather",
  description: "The weather in a city.",
  parameters: z.object({ city: z.enum(["Oslo"]) }),
  execute: async ({ city }) => `cold in ${city}`,
});
const agentOf = (model, rest = {}) => new Agent({ name: "Helper", instructions: "Be short.", model, ...rest });

await play({
  async "run()"() {
    const result = await runner.run(agentOf("echo-5"), "hello");
    assert.equal(result.finalOutput, words(5));
    return `${result.state.usage.outputTokens} output tokens`;
  },

  async "tools in three turns"() {
    const agent = agentOf("tools-2-then-tools-1-then-reasoning-2-4", { tools: [getWeather] });
    const result = await runner.run(agent, "Oslo?");
    assert.equal(result.finalOutput, words(4));
    return `${result.rawResponses.length} model calls, ${result.newItems.length} items`;
  },

  async "tools in three turns, streamed"() {
    const agent = agentOf("tools-2-each-then-tools-1-each-then-reasoning-2-4-each", { tools: [getWeather] });
    const result = await runner.run(agent, "Oslo?", { stream: true });
    const events = await collect(result);
    await result.completed;
    assert.equal(result.finalOutput, words(4));
    return `${events.length} events`;
  },

  async "hand-off"() {
    const expert = new Agent({ name: "Expert", instructions: "Know it.", model: "echo-4" });
    const agent = Agent.create({ name: "Desk", instructions: "Pass it on.", model: "tools-1", handoffs: [expert] });
    const result = await runner.run(agent, "hello");
    assert.equal(result.lastAgent.name, "Expert");
    assert.equal(result.finalOutput, words(4));
    return `the last agent is ${result.lastAgent.name}`;
  },

  async "output by a schema"() {
    const agent = agentOf("parrot", { outputType: z.object({ name: z.string() }) });
    const result = await runner.run(agent, '{"name":"Oslo"}');
    assert.deepEqual(result.finalOutput, { name: "Oslo" });
    return `finalOutput.name is ${result.finalOutput.name}`;
  },

  async "previousResponseId"() {
    const agent = agentOf("tools-1-then-echo-2", { tools: [getWeather] });
    const first = await runner.run(agent, "one");
    const second = await runner.run(agentOf("echo-3"), "two", { previousResponseId: first.lastResponseId });
    assert.equal(second.finalOutput, words(3));
    return `${second.state.usage.inputTokens} input tokens`;
  },

  async "tools of the server's"() {
    const ours = hostedMcpTool({ serverLabel: "dwctl", requireApproval: "never" });
    const result = await runner.run(agentOf("with-tools", { tools: [ours] }), "Snow?");
    assert.equal(result.finalOutput, words(4));
    const second = await runner.run(agentOf("echo-2"), [...result.history, { role: "user", content: "And now?" }]);
    assert.equal(second.finalOutput, words(2));
    return `${result.newItems.length} items, sent back`;
  },

  async "over chat completions"() {
    const agent = agentOf("tools-1-each-then-echo-4-each", { tools: [getWeather] });
    const result = await runnerOf(false).run(agent, "Oslo?", { stream: true });
    await collect(result);
    await result.completed;
    assert.equal(result.finalOutput, words(4));
    return `${result.newItems.length} items`;
  },
});
