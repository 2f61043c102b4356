// openai-node: responses that are stored or queued, and the endpoints beside them.
import OpenAI from "openai";

import { client, statusOf, weather } from "./openai_client.mjs";
import { assert, assertWhole, collect, play, waitForCounters, words } from "./scenarios.mjs";

const { responses } = client;

async function poll(response) {
  let polls = 0;
  while (response.status === "queued" || response.status === "in_progress") {
    await new Promise((resolve) => setTimeout(resolve, 20));
    response = await responses.retrieve(response.id);
    polls += 1;
  }
  return { response, polls };
}

await play({
  async retrieve() {
    const created = await responses.create({ model: "echo-5", input: "hello" });
    const stored = await responses.retrieve(created.id);
    assert.deepEqual(stored, created);
    return "equal to the created one";
  },

  async "retrieve, streamed"() {
    const live = await collect(await responses.create({ model: "echo-5-each", input: "hello", stream: true }));
    const again = await collect(await responses.retrieve(live[0].response.id, { stream: true }));
    assert.deepEqual(again, live);
    return `${again.length} events, equal to the live ones`;
  },

  async "delete"() {
    const { id } = await responses.create({ model: "echo-5", input: "hello" });
    await responses.delete(id);
    const status = await statusOf(responses.retrieve(id), OpenAI.NotFoundError);
    return `then retrieve() is ${status}`;
  },

  async "background, polled"() {
    const created = await responses.create({ model: "slow-5-20", input: "hello", background: true });
    assert.equal(created.status, "queued");
    const { response, polls } = await poll(created);
    assert.equal(response.status, "completed");
    assert.equal(response.output_text, words(5));
    return `${polls} polls`;
  },

  async "background, cancelled"() {
    const created = await responses.create({ model: "hang", input: "hello key:cancelled", background: true });
    await waitForCounters(({ open }) => open > 0);
    const cancelled = await responses.cancel(created.id);
    assert.equal(cancelled.status, "cancelled");
    await waitForCounters(({ open }) => open === 0);
    return "the model call was aborted";
  },

  async "background stream, cut and resumed"() {
    const body = { model: "slow-9-20", input: "hello", background: true, stream: true };
    let resumed = 0;
    for (const count of [1, 3, 8]) {
      const seen = [];
      for await (const event of await responses.create(body)) {
        seen.push(event);
        if (seen.length === count) {
          break;
        }
      }
      const { id } = seen[0].response;
      const query = { stream: true, starting_after: seen.at(-1).sequence_number };
      const rest = await collect(await responses.retrieve(id, query));
      assertWhole([...seen, ...rest]);
      assert.deepEqual([...seen, ...rest], await collect(await responses.retrieve(id, { stream: true })));
      resumed += rest.length;
    }
    return `cut 3 times, ${resumed} events after starting_after`;
  },

  async "stream() of a response_id, starting_after"() {
    const live = await collect(await responses.create({ model: "echo-5-each", input: "hello", stream: true }));
    const stream = responses.stream({ response_id: live[0].response.id, starting_after: 4 });
    const rest = await collect(stream);
    assert.equal(rest[0].sequence_number, 5);
    assert.equal((await stream.finalResponse()).output_text, words(5));
    return `${rest.length} of ${live.length} events`;
  },

  async "a stream that is left"() {
    const stream = await responses.create({ model: "slow-500-20", input: "hello", stream: true });
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") {
        break;
      }
    }
    const { open } = await waitForCounters((counts) => counts.open === 0);
    return `${open} model calls under way then`;
  },

  async "flex"() {
    const response = await responses.create({ model: "echo-5", input: "hello", service_tier: "flex" });
    assert.equal(response.output_text, words(5));
    assert.equal(response.service_tier, "flex");
    return response.status;
  },

  async "flex, streamed"() {
    const body = { model: "echo-5-each", input: "hello", service_tier: "flex", stream: true };
    const events = await collect(await responses.create(body));
    assertWhole(events);
    assert.equal(events[1].type, "response.queued");
    return `${events.length} events, the second is ${events[1].type}`;
  },

  async "inputItems.list, page by page"() {
    const input = Array.from({ length: 7 }, (_, index) => ({ role: "user", content: `message ${index}` }));
    const { id } = await responses.create({ model: "echo-2", input });
    const read = async (order) => {
      const texts = [];
      for await (const item of responses.inputItems.list(id, { limit: 3, order })) {
        texts.push(item.content[0].text);
      }
      return texts;
    };
    const texts = input.map(({ content }) => content);
    assert.deepEqual(await read("asc"), texts);
    assert.deepEqual(await read("desc"), texts.toReversed());
    return "7 items in 3 pages, both orders";
  },

  async "inputTokens.count"() {
    const counted = await responses.inputTokens.count({ model: "echo-2", input: "one two three" });
    assert.equal(counted.object, "response.input_tokens");
    assert.ok(counted.input_tokens > 0);
    return `${counted.input_tokens} tokens`;
  },

  async "chat.completions"() {
    const messages = [{ role: "user", content: "hello" }];
    const completion = await client.chat.completions.create({ model: "echo-5", messages });
    assert.equal(completion.choices[0].message.content, words(5));
    return `${completion.usage.completion_tokens} completion tokens`;
  },

  async "chat.completions, streamed"() {
    const messages = [{ role: "user", content: "hello" }];
    const stream = client.chat.completions.stream({
      model: "echo-5-each", messages, stream_options: { include_usage: true },
    });
    const completion = await stream.finalChatCompletion();
    assert.equal(completion.choices[0].message.content, words(5));
    return `${(await stream.totalUsage()).completion_tokens} completion tokens`;
  },

  async "chat.completions, tools run by the SDK"() {
    const runner = client.chat.completions.runTools({
      model: "tools-1",
      messages: [{ role: "user", content: "Oslo?" }],
      tools: [{ type: "function", function: { ...weather, function: () => "cold", parse: JSON.parse } }],
    });
    assert.equal(await runner.finalContent(), words(10));
    return `${runner.messages.length} messages`;
  },

  async "completions"() {
    const completion = await client.completions.create({ model: "echo-5", prompt: "hello" });
    assert.equal(completion.choices[0].text, words(5));
    return `${completion.usage.completion_tokens} completion tokens`;
  },

  async "completions, streamed"() {
    const chunks = await collect(await client.completions.create({ model: "echo-5-each", prompt: "hello", stream: true }));
    assert.equal(chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.text)).join(""), words(5));
    return `${chunks.length} chunks`;
  },

  async "embeddings"() {
    const { data } = await client.embeddings.create({ model: "echo-5", input: ["one", "two"] });
    assert.equal(data.length, 2);
    return `${data[0].embedding.length} dimensions`;
  },

  async "models"() {
    const models = await collect(client.models.list());
    const model = await client.models.retrieve(models[0].id);
    assert.deepEqual(model, models[0]);
    return `${models.length} of the configuration`;
  },
});
