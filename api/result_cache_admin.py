"""Deletes the results of the result cache: what `DELETE /cache` calls and answers."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from access.principals import MissingPermissionError
from api.openapi import Responses, answer, problem, problems
from api.problem_examples import NOT_AUTHENTICATED
from web.authentication import LocalOnlyError

RedisState = Literal["off", "deleted", "unreachable"]


@dataclass(frozen=True, slots=True)
class ClearedResults:
    """What was deleted. Deleting what is not there is no error.

    Attributes:
        entries: results in memory, of all workers.
        bytes: what they took.
        redis: whether the results in Redis are deleted as well. `unreachable`: they are still there.
        workers_unreachable: workers that have not answered. Theirs may still be there.
    """

    entries: int = 0
    bytes: int = 0
    redis: RedisState = "off"
    workers_unreachable: int = 0


@runtime_checkable
class ResultCacheAdmin(Protocol):
    """Administers the result cache of the service, of all its processes."""

    async def clear(self) -> ClearedResults:
        """Delete all results. What runs now is not kept afterwards."""
        ...


class NoResultCache:
    """Administers a service that keeps no results."""

    async def clear(self) -> ClearedResults:
        return ClearedResults()


CLEAR: Responses = {
    200: answer(
        ClearedResults,
        ClearedResults(entries=1204, bytes=2_224_992, redis="deleted"),
        description="What was deleted; zeros if there was nothing, or if the cache is off",
        further=[("Redis did not answer: its results are still there", ClearedResults(12, 22_176, "unreachable"))],
    ),
    **problems(
        *NOT_AUTHENTICATED,
        problem(MissingPermissionError, "This needs a key with the permission 'admin'.", scope="admin"),
        problem(LocalOnlyError, LocalOnlyError().detail),
    ),
}
