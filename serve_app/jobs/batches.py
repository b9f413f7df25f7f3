"""What many ask for at a time, asked of PostgreSQL together.

While a statement is on its way, what comes meanwhile gathers and goes with the next one. So who is alone waits for
nobody, and a crowd costs few round trips.

Connections are in autocommit, statements are prepared, and no connection is asked whether it is alive before it is
used: one that turns out dead is replaced, and the statement said once more. So it has to be one that may be said twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import psycopg
from psycopg import AsyncConnection

from serve_app.jobs.database import open_plain

Question = TypeVar("Question")
Answer = TypeVar("Answer")

#: Statements on their way at a time; more would only take the crowd from each other.
LANES = 2
#: Questions in a statement.
MOST = 64
#: Seconds for a statement, longer than the server's own patience: only one that has stopped lets it come to that.
HUNG_S = 20.0


class Batches(Generic[Question, Answer]):
    """Questions of one kind. For one event loop."""

    def __init__(
        self,
        url: str,
        say: Callable[[AsyncConnection, Sequence[Question]], Awaitable[Sequence[Answer]]],
        *,
        lanes: int = LANES,
    ) -> None:
        """``say`` answers in the order of the questions, by a statement that may be said twice."""
        self._url = url
        self._say = say
        self._idle_lanes = lanes
        self._idle: list[AsyncConnection] = []
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._lanes: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question) -> Answer:
        """Raises psycopg.Error or TimeoutError. Who gives up leaves at once; the statement goes on for the others."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._idle_lanes:
            self._idle_lanes -= 1
            lane = asyncio.create_task(self._run())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await answer

    async def aclose(self) -> None:
        """Close the connections. Nothing may be asked any more."""
        await asyncio.gather(*self._lanes)
        while self._idle:
            await self._idle.pop().close()

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = [each for each in self._waiting[:MOST] if not each[1].done()]
                del self._waiting[:MOST]
                if batch:
                    await self._answer(batch)
        finally:
            self._idle_lanes += 1

    async def _answer(self, batch: Sequence[tuple[Question, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._said([question for question, _ in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, (psycopg.OperationalError, TimeoutError)):
                # One of them is at fault, and not the others.
                for each in batch:
                    await self._answer([each])
                return
            for _, waiting in batch:
                if not waiting.done():
                    waiting.set_exception(error)
            return
        for (_, waiting), answer in zip(batch, answers, strict=True):
            if not waiting.done():
                waiting.set_result(answer)

    async def _said(self, questions: Sequence[Question]) -> Sequence[Answer]:
        fresh = not self._idle
        connection = await open_plain(self._url) if fresh else self._idle.pop()
        try:
            async with asyncio.timeout(HUNG_S):
                return await self._say(connection, questions)
        except psycopg.OperationalError:
            if fresh or not connection.closed:
                raise
            # It had died since its last use; so may have the others.
            while self._idle:
                await self._idle.pop().close()
        except TimeoutError:
            await connection.close()
            raise
        finally:
            if not connection.closed:
                self._idle.append(connection)
        return await self._said(questions)
