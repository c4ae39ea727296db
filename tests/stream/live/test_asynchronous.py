"""The session under asyncio."""

import asyncio

import numpy as np
import pytest
from livenet import Cloud, images, three_exits

from eex.policies.core.errors import EexError
from eex.stream.live.answers import Answer, Refusal
from eex.stream.live.asynchronous import AsyncSession
from eex.stream.live.session import Refused

pytestmark = pytest.mark.timeout(60)


def opened(cloud=None, **options):
    return AsyncSession(net=three_exits(), offloader=cloud or Cloud(), worker="none", **options)


def test_many_tasks_each_get_their_answer():
    async def main():
        async with opened() as session:
            answers = await asyncio.gather(*(session.answer(image, "door") for image in images(50)))
        assert sorted(answer.frame for answer in answers) == list(range(50))

    asyncio.run(main())


def test_the_loop_runs_on_while_a_frame_is_in_the_cloud():
    async def main():
        cloud = Cloud(held=True)
        async with opened(cloud, policy="fixed", policy_option=("p_tar=1.0",)) as session:
            future = await session.submit(images(1)[0])
            await asyncio.sleep(0.02)
            assert not future.done()
            cloud.held = False
            cloud.release()
            assert isinstance(await future, Answer)

    asyncio.run(main())


def test_answers_come_until_the_session_is_closed():
    async def main():
        got = []

        async def read(session):
            async for given in session.answers():
                got.append(given)

        async with opened() as session:
            reader = asyncio.create_task(read(session))
            for image in images(20):
                await session.submit(image, "door")
        await asyncio.wait_for(reader, 10)
        assert [type(given) for given in got] == [Answer] * 20

    asyncio.run(main())


def test_a_refusal_is_raised_or_given():
    async def main():
        async with opened() as session:
            with pytest.raises(Refused, match="undecodable"):
                await session.answer(b"")
            assert isinstance(await (await session.submit(np.zeros((2, 2, 4)))), Refusal)
        assert (await (await session.submit(images(1)[0]))).reason == "closed"

    asyncio.run(main())


def test_outside_the_block_it_says_so():
    with pytest.raises(RuntimeError, match="is not open"):
        _ = opened().session


def test_answers_end_when_the_session_fails():
    async def main():
        async with opened() as session:
            session.session._playing.driver.feed = lambda batch: (_ for _ in ()).throw(RuntimeError("out of memory"))
            await session.submit(images(1)[0])
            async with asyncio.timeout(20):
                assert [given.reason async for given in session.answers()] == ["failed"]

    with pytest.raises(EexError, match="the session failed: out of memory"):
        asyncio.run(main())
