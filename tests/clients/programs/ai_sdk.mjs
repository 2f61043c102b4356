// The Vercel AI SDK with its OpenAI provider and its Open Responses provider: the same scenarios for both.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenResponses } from "@ai-sdk/open-responses";
import { APICallError, Output, embedMany, generateText, isStepCount, streamText, tool } from "ai";
import { z } from "zod";

import {
  API_KEY, BASE_URL, assert, collect, play, recordingFetch, sentBodies, waitForCounters, words,
} from "./scenarios.mjs";

const settings = { apiKey: API_KEY, fetch: recordingFetch };
const openai = createOpenAI({ ...settings, baseURL: BASE_URL });
const openResponses = createOpenResponses({ ...settings, name: "dwctl", url: `${BASE_URL}/responses` });

const getWeather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.enum(["Oslo"]) }),
  execute: async ({ city }) => ({ city, celsius: -3 }),
});
const Place = z.object({ name: z.string(), inhabitants: z.number() });
const place = { name: "Oslo", inhabitants: 700000 };
const once = { maxRetries: 0 };

function scenariosOf(provider) {
  const hasReferences = provider === openai;
  return {
    async generateText() {
      const { text, usage, finishReason, warnings } = await generateText({
        ...once, model: provider("echo-5"), system: "Be short.", prompt: "hello",
      });
      assert.equal(text, words(5));
      assert.equal(finishReason, "stop");
      assert.deepEqual(warnings ?? [], []);
      return `${usage.outputTokens} output tokens`;
    },

    async streamText() {
      const result = streamText({ ...once, model: provider("echo-9-each"), prompt: "hello" });
      const deltas = await collect(result.textStream);
      assert.equal(deltas.join(""), words(9));
      assert.equal(await result.finishReason, "stop");
      return `${deltas.length} deltas, ${(await result.usage).outputTokens} output tokens`;
    },

    async "output by a schema"() {
      const { output } = await generateText({
        ...once, model: provider("parrot"), prompt: JSON.stringify(place), output: Output.object({ schema: Place }),
      });
      assert.deepEqual(output, place);
      return `output.name is ${output.name}`;
    },

    async "output by a schema, streamed"() {
      const result = streamText({
        ...once, model: provider("parrot-each"), prompt: JSON.stringify(place, null, 1),
        output: Output.object({ schema: Place }),
      });
      const partial = await collect(result.partialOutputStream);
      assert.deepEqual(await result.output, place);
      return `${partial.length} partial objects`;
    },

    async "tools in three steps"() {
      const { text, steps, toolResults } = await generateText({
        ...once, model: provider("tools-2-then-tools-1-then-echo-4"), prompt: "Oslo?",
        tools: { getWeather }, stopWhen: isStepCount(5),
      });
      assert.equal(text, words(4));
      assert.equal(steps.length, 3);
      const results = steps.flatMap((step) => step.toolResults);
      assert.deepEqual(results.map((result) => result.output.celsius), [-3, -3, -3]);
      return `${steps.length} steps, ${results.length} calls, ${references()} item references`;
    },

    async "tools in three steps, streamed, with reasoning"() {
      const result = streamText({
        ...once, model: provider("tools-1-each-then-tools-1-each-then-reasoning-3-4-each"), prompt: "Oslo?",
        tools: { getWeather }, stopWhen: isStepCount(5), ...reasoning(),
      });
      const parts = await collect(result.fullStream);
      assert.deepEqual(parts.filter((part) => part.type === "error"), []);
      assert.equal(await result.text, words(4));
      assert.equal((await result.steps).length, 3);
      return `${parts.length} parts, ${references()} item references`;
    },

    async "a second turn with the messages of the first"() {
      const messages = [{ role: "user", content: "Oslo?" }];
      const options = { ...once, tools: { getWeather }, stopWhen: isStepCount(5), ...reasoning() };
      const first = await generateText({ ...options, model: provider("tools-1-then-reasoning-3-4"), messages });
      messages.push(...first.response.messages, { role: "user", content: "And now?" });
      const second = await generateText({ ...options, model: provider("reasoning-3-5"), messages });
      assert.equal(second.text, words(5));
      return `${second.usage.inputTokens} input tokens, ${references()} item references`;
    },

    async "tools of the server's, and a second turn"() {
      const messages = [{ role: "user", content: "Snow?" }];
      const result = streamText({ ...once, model: provider("with-tools"), messages });
      const parts = await collect(result.fullStream);
      assert.deepEqual(parts.filter((part) => part.type === "error"), []);
      assert.equal(await result.text, words(4));
      const whole = await generateText({ ...once, model: provider("with-tools"), messages });
      assert.equal(whole.text, words(4));
      messages.push(...(await result.response).messages, { role: "user", content: "And now?" });
      const second = await generateText({ ...once, model: provider("echo-2"), messages });
      assert.equal(second.text, words(2));
      const shown = new Set(parts.map(({ type }) => type).filter((type) => type.startsWith("tool-")));
      return `${[...shown].join(", ") || "no parts of tools"}; ${references()} item references`;
    },

    async reasoning() {
      const result = await generateText({
        ...once, model: provider("reasoning-3-5"), prompt: "hello", ...reasoning(),
      });
      assert.equal(result.text, words(5));
      return `${result.usage.outputTokenDetails?.reasoningTokens} reasoning tokens, ` +
        `${result.reasoning.length} reasoning parts`;
    },

    async "tool choice and its limits"() {
      const { toolCalls } = await generateText({
        ...once, model: provider("tools-1"), prompt: "Oslo?", tools: { getWeather },
        toolChoice: { type: "tool", toolName: "getWeather" }, maxOutputTokens: 100, temperature: 0.5, topP: 0.9,
      });
      assert.deepEqual(toolCalls.map((call) => call.input), [{ city: "Oslo" }]);
      return `${toolCalls.length} call`;
    },

    async "an image in the prompt"() {
      const image = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
      const content = [
        { type: "text", text: "What is it?" }, { type: "file", data: image, mediaType: "image/png" },
      ];
      const { text } = await generateText({ ...once, model: provider("inspect"), messages: [{ role: "user", content }] });
      assert.ok(text.includes("iVBORw0KGgo="));
      return "the model got it";
    },

    async abort() {
      const controller = new AbortController();
      const result = streamText({
        ...once, model: provider("slow-500-20"), prompt: "hello", abortSignal: controller.signal,
      });
      let parts = 0;
      for await (const part of result.fullStream) {
        parts += 1;
        if (part.type === "text-delta") {
          controller.abort();
        }
        if (part.type === "abort") {
          break;
        }
      }
      const { open } = await waitForCounters((counts) => counts.open === 0);
      return `${open} model calls under way then`;
    },

    async "an error"() {
      const error = await generateText({ ...once, model: provider("error-429-1"), prompt: "hello" }).catch((e) => e);
      assert.ok(APICallError.isInstance(error), String(error));
      assert.equal(error.statusCode, 429);
      assert.ok(error.isRetryable);
      return `${error.statusCode}: ${error.message}`;
    },

    async "a failure in the stream"() {
      const errors = [];
      const result = streamText({
        ...once, model: provider("each-3-cut"), prompt: "hello", onError: ({ error }) => errors.push(error),
      });
      await collect(result.fullStream);
      assert.equal(errors.length, 1);
      return String(errors[0]?.message ?? JSON.stringify(errors[0])).slice(0, 80);
    },
  };

  function references() {
    const count = sentBodies().join("").split('"item_reference"').length - 1;
    assert.ok(hasReferences || count === 0);
    return count;
  }

  function reasoning() {
    return provider === openai
      ? { providerOptions: { openai: { forceReasoning: true, reasoningEffort: "low", reasoningSummary: "auto" } } }
      : { providerOptions: { dwctl: { reasoningEffort: "low", reasoningSummary: "auto" } } };
  }
}

const onlyOpenAI = {
  async "store: false, encrypted reasoning"() {
    const options = { forceReasoning: true, store: false, reasoningEffort: "low" };
    const { text, steps } = await generateText({
      ...once, model: openai("tools-1-then-reasoning-3-4"), prompt: "Oslo?", tools: { getWeather },
      stopWhen: isStepCount(5), providerOptions: { openai: options },
    });
    assert.equal(text, words(4));
    assert.ok(sentBodies().every((body) => !body.includes('"item_reference"')));
    assert.ok(sentBodies()[0].includes("reasoning.encrypted_content"));
    return `${steps.length} steps, no item references`;
  },

  async "previousResponseId"() {
    const first = await generateText({ ...once, model: openai("echo-2"), prompt: "one" });
    const { responseId } = first.providerMetadata.openai;
    const second = await generateText({
      ...once, model: openai("echo-2"), prompt: "two", providerOptions: { openai: { previousResponseId: responseId } },
    });
    assert.equal(second.usage.inputTokens, 4);
    return `${second.usage.inputTokens} input tokens`;
  },

  async "provider options"() {
    const options = {
      metadata: { a: "b" }, parallelToolCalls: false, serviceTier: "flex", user: "u", promptCacheKey: "k",
      safetyIdentifier: "s", strictJsonSchema: true, textVerbosity: "low", instructions: "Be short.",
    };
    const { text } = await generateText({
      ...once, model: openai("echo-2"), prompt: "one", providerOptions: { openai: options },
    });
    assert.equal(text, words(2));
    return Object.keys(options).join(", ");
  },

  async "logprobs"() {
    const { text } = await generateText({
      ...once, model: openai("echo-2"), prompt: "one", providerOptions: { openai: { logprobs: 2 } },
    });
    assert.equal(text, words(2));
    return "asked for 2";
  },

  async "the chat model"() {
    const { text, steps } = await generateText({
      ...once, model: openai.chat("tools-1-then-echo-4"), prompt: "Oslo?", tools: { getWeather },
      stopWhen: isStepCount(5),
    });
    assert.equal(text, words(4));
    return `${steps.length} steps`;
  },

  async "the chat model, streamed"() {
    const result = streamText({ ...once, model: openai.chat("echo-9-each"), prompt: "hello" });
    assert.equal((await collect(result.textStream)).join(""), words(9));
    return `${(await result.usage).outputTokens} output tokens`;
  },

  async "the completion model"() {
    const { text } = await generateText({ ...once, model: openai.completion("echo-5"), prompt: "hello" });
    assert.equal(text, words(5));
    return `${text.length} characters`;
  },

  async "embedMany"() {
    const { embeddings } = await embedMany({ ...once, model: openai.embedding("echo-5"), values: ["one", "two"] });
    assert.equal(embeddings.length, 2);
    return `${embeddings[0].length} dimensions`;
  },
};

await play({
  ...named("openai", { ...scenariosOf(openai), ...onlyOpenAI }),
  ...named("open-responses", scenariosOf(openResponses)),
});

function named(prefix, scenarios) {
  return Object.fromEntries(Object.entries(scenarios).map(([name, scenario]) => [`${prefix}: ${name}`, scenario]));
}
