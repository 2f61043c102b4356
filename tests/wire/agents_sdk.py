"""What the tests with the OpenAI Agents SDK share: runs of an agent in a thread, and what they came to."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import attrs
import httpx
import openai
import trio
from agents import Agent, OpenAIResponsesModel, RunConfig, Runner, function_tool
from tests.http.server_tools import ToolWorld, check_prompt

SDK_S = 30.0
"""Bound of the SDK's own waits."""
OWN_OUTPUT = "the client looked at word1"


@attrs.define
class Ran:
    """One run of an agent, as the SDK tells it."""

    own_calls: list[str] = attrs.Factory(list)
    """The arguments of each call of the client's own function."""
    kinds: list[str] = attrs.Factory(list)
    """The types of the items that the run has added, those of the wire."""
    events: list[str] = attrs.Factory(list)
    """The types of the events, if it was streamed."""
    final_output: Any = None
    agent: str = ""
    """Who answered."""
    response_ids: list[str] = attrs.Factory(list)
    """One for each request that the run made."""
    sent: list[Any] = attrs.Factory(list)
    """The input of each of these requests."""


MakeAgent = Callable[[Callable[[str], OpenAIResponsesModel], Any], Agent[None]]
"""An agent out of what makes a model by its name, and the client's own function."""


async def run_agent(
    world: ToolWorld, make_agent: MakeAgent, *, streamed: bool, prompt: str = "hello", **options: Any
) -> Ran:
    """Run an agent under asyncio, in a thread, as its users do; *options* are the runner's."""
    ran = Ran()

    @function_tool
    def own(city: str) -> str:
        """Look at a city."""
        ran.own_calls.append(city)
        return f"the client looked at {city}"

    async def note(request: httpx.Request) -> None:
        ran.sent.append(json.loads(request.content)["input"])

    async def work() -> None:
        async with (
            httpx.AsyncClient(trust_env=False, event_hooks={"request": [note]}) as http,
            openai.AsyncOpenAI(
                base_url=f"{world.service.url}/v1", api_key="unused", max_retries=0, timeout=SDK_S, http_client=http
            ) as client,
        ):
            agent = make_agent(lambda model: OpenAIResponsesModel(model, client), own)
            options["run_config"] = RunConfig(tracing_disabled=True)
            if streamed:
                result: Any = Runner.run_streamed(agent, prompt, **options)
                async for event in result.stream_events():
                    if event.type == "raw_response_event":
                        ran.events.append(event.data.type)
            else:
                result = await Runner.run(agent, prompt, **options)
            ran.kinds = [_kind_of(item.raw_item) for item in result.new_items]
            ran.final_output, ran.agent = result.final_output, result.last_agent.name
            ran.response_ids = [response.response_id for response in result.raw_responses]

    with trio.fail_after(SDK_S):
        await trio.to_thread.run_sync(asyncio.run, work(), abandon_on_cancel=True)
    for messages in world.prompts():
        check_prompt(messages)
    return ran


def _kind_of(item: Any) -> str:
    kind = item["type"] if isinstance(item, dict) else item.type
    assert isinstance(kind, str)
    return kind
