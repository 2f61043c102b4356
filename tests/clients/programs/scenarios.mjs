// What the programs share: they play scenarios one after the other and print one JSON line for each.
import assert from "node:assert/strict";

export { assert };

/** The server under test, ending in /v1, a key of it, and the simulator's origin. */
export const { BASE_URL, API_KEY, SIMULATOR } = process.env;

const SCENARIO_MS_MAX = 30_000;
const SHOWN_CHARACTERS_MAX = 2000;

let exchanges = [];

/** `fetch` that remembers what a scenario sent and the head of what it got, for the report of a failure. */
export async function recordingFetch(url, options) {
  const exchange = { method: options?.method ?? "GET", url: String(url), body: options?.body ?? "" };
  exchanges.push(exchange);
  const answer = await fetch(url, options);
  exchange.status = answer.status;
  if (answer.status >= 400) {
    exchange.answer = (await answer.clone().text()).slice(0, SHOWN_CHARACTERS_MAX);
  }
  return answer;
}

/** The bodies that the scenario under way has sent so far, as text. */
export function sentBodies() {
  return exchanges.map(({ body }) => body);
}

function shown({ body, ...exchange }) {
  return { ...exchange, body: body.slice(0, SHOWN_CHARACTERS_MAX) };
}

/** Play them; each returns its figure, a text. Ends the process with status 1 if one of them failed. */
export async function play(scenarios) {
  let failures = 0;
  for (const [name, scenario] of Object.entries(scenarios)) {
    exchanges = [];
    let timer;
    try {
      const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`not done after ${SCENARIO_MS_MAX} ms`)), SCENARIO_MS_MAX);
      });
      print({ name, ok: true, figure: await Promise.race([scenario(), late]) });
    } catch (error) {
      failures += 1;
      print({ name, ok: false, figure: String(error?.stack ?? error), exchanges: exchanges.slice(-3).map(shown) });
    } finally {
      clearTimeout(timer);
    }
  }
  process.exit(failures ? 1 : 0);
}

function print(line) {
  console.log(JSON.stringify(line));
}

/** Read an iterable to its end. */
export async function collect(iterable) {
  const items = [];
  for await (const item of iterable) {
    items.push(item);
  }
  return items;
}

/** What the simulated model says: `word0 word1 … `. */
export function words(count) {
  return Array.from({ length: count }, (_, index) => `word${index} `).join("");
}

/** The events are numbered 0, 1, 2, … and only the last one is terminal. */
export function assertWhole(events) {
  assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, index) => index));
  const terminal = /^response\.(completed|failed|incomplete)$/;
  assert.deepEqual(events.flatMap((event, index) => (terminal.test(event.type) ? [index] : [])), [events.length - 1]);
}

/** The counts of the simulator. */
export async function counters() {
  return (await fetch(`${SIMULATOR}/control/counters`)).json();
}

/** Wait until `predicate` holds of the counters. */
export async function waitForCounters(predicate) {
  for (;;) {
    const now = await counters();
    if (predicate(now)) {
      return now;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
