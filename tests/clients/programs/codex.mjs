// The Codex CLI with a custom provider: turns of `codex exec` whose model calls the shell tool that Codex offers.
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { API_KEY, BASE_URL, assert, play, words } from "./scenarios.mjs";

const CODEX = join(import.meta.dirname, "node_modules", ".bin", "codex");
const CODEX_MS_MAX = 25_000;
const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";
const run = promisify(execFile);

const provider = `
model_provider = "dwctl"
web_search = "disabled"

[model_providers.dwctl]
name = "dwctl"
base_url = "${BASE_URL}"
env_key = "DWCTL_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0

`;

/** A home of Codex and a folder to work in, for one scenario. */
async function withFolder(config, scenario) {
  const folder = await mkdtemp(join(tmpdir(), "dwctl-codex-"));
  try {
    await writeFile(join(folder, "config.toml"), provider + config);
    return await scenario(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The events of one `codex exec --json`. */
async function codex(folder, model, ...words) {
  const flags = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--model", model];
  const env = { PATH: process.env.PATH, HOME: folder, CODEX_HOME: folder, DWCTL_KEY: API_KEY };
  const child = run(CODEX, ["exec", ...flags, ...words], { cwd: folder, env, timeout: CODEX_MS_MAX });
  child.child.stdin.end();
  const { stdout } = await child.catch((error) => {
    throw new Error(`codex ended with ${error.code}:\n${error.stdout}\n${error.stderr}`);
  });
  return stdout.split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
}

function completedItems(events, type) {
  return events.filter((event) => event.type === "item.completed" && event.item.type === type).map(({ item }) => item);
}

/** What makes the simulated model run a command. */
function ask(command) {
  return `Do it: call:exec_command${JSON.stringify({ cmd: command, login: false, yield_time_ms: 5000 })}`;
}

function assertTurn(events, outputs, text) {
  assert.deepEqual(events.filter(({ type }) => type === "error" || type === "turn.failed"), []);
  const commands = completedItems(events, "command_execution");
  assert.deepEqual(commands.map((item) => [item.exit_code, item.aggregated_output]), outputs.map((each) => [0, each]));
  assert.equal(completedItems(events, "agent_message").at(-1)?.text, text);
  const { usage } = events.find(({ type }) => type === "turn.completed");
  return `${commands.length} commands, ${usage.input_tokens} input and ${usage.output_tokens} output tokens`;
}

await play({
  async "a turn without tools"() {
    return withFolder("", async (folder) => assertTurn(await codex(folder, "echo-5", "hello"), [], words(5)));
  },

  async "a turn with a tool round"() {
    return withFolder("", async (folder) => {
      const events = await codex(folder, "toolsasked-1-then-echo-7", ask("echo made > it.txt; cat it.txt"));
      const figure = assertTurn(events, ["made\n"], words(7));
      assert.equal(await readFile(join(folder, "it.txt"), "utf8"), "made\n");
      return figure;
    });
  },

  async "a turn with reasoning and two tool rounds"() {
    return withFolder("", async (folder) => {
      const model = "toolsasked-1-each-then-toolsasked-1-then-reasoning-5-7-each";
      const reasoning = ["--config", "model_reasoning_effort=low", "--config", "model_reasoning_summary=auto"];
      const events = await codex(folder, model, ...reasoning, ask("echo again"));
      return assertTurn(events, ["again\n", "again\n"], words(7));
    });
  },

  async "a patch, by a custom tool"() {
    return withFolder("[agents]\nenabled = false\n", async (folder) => {
      const patch = "*** Begin Patch\n*** Add File: new.txt\n+patched\n*** End Patch\n";
      const events = await codex(folder, "gpt-5.5", `call:apply_patch${JSON.stringify({ input: patch })}`);
      const figure = assertTurn(events, [], words(7));
      const changes = completedItems(events, "file_change").map(({ status }) => status);
      assert.deepEqual(changes, ["completed"]);
      assert.equal(await readFile(join(folder, "new.txt"), "utf8"), "patched\n");
      return `1 file changed, ${figure}`;
    });
  },

  async "an image that the model looks at"() {
    return withFolder("", async (folder) => {
      const path = join(folder, "pixel.png");
      await writeFile(path, Buffer.from(PIXEL, "base64"));
      const events = await codex(folder, "toolsasked-1-then-echo-7", `call:view_image${JSON.stringify({ path })}`);
      return assertTurn(events, [], words(7));
    });
  },

  async "a tool of an MCP server"() {
    const server = `[mcp_servers.lookup]\ncommand = "node"\nargs = ["${join(import.meta.dirname, "mcp_server.mjs")}"]\n`;
    return withFolder(server, async (folder) => {
      const events = await codex(folder, "toolsasked-1-then-echo-7", 'call:mcp__lookup__look_up{"word":"snow"}');
      const figure = assertTurn(events, [], words(7));
      const calls = completedItems(events, "mcp_tool_call").map(({ server, tool, status }) => [server, tool, status]);
      assert.deepEqual(calls, [["lookup", "look_up", "completed"]]);
      return `1 call, ${figure}`;
    });
  },

  async "a session that is resumed"() {
    return withFolder("", async (folder) => {
      const model = "toolsasked-1-then-reasoning-2-7";
      assertTurn(await codex(folder, model, ask("echo one")), ["one\n"], words(7));
      return assertTurn(await codex(folder, model, "resume", "--last", ask("echo two")), ["two\n"], words(7));
    });
  },
});
