"""redis-py's leaf, by the conformance suite, on a live Redis: Streams, Pub/Sub and lists."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.integrations.adapter import Adapter
from tests.integrations.conformance import Conformance
from tests.integrations.redis_modes import ListsAdapter, PubSubAdapter, RedisAdapter, StreamsAdapter


async def driven(adapter: RedisAdapter) -> AsyncGenerator[Adapter, None]:
    yield adapter
    await adapter.close()


class TestStreams(Conformance):
    @pytest.fixture
    async def adapter(self, redis_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(StreamsAdapter(redis_url)):
            yield adapter


class TestPubSub(Conformance):
    @pytest.fixture
    async def adapter(self, redis_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(PubSubAdapter(redis_url)):
            yield adapter


class TestLists(Conformance):
    @pytest.fixture
    async def adapter(self, redis_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(ListsAdapter(redis_url)):
            yield adapter
