"""Explores every order of events, breadth first, so that the first violation that is found has a shortest history."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from protocol import agents
from protocol.decisions import Decisions
from protocol.promises import broken_promise, is_settled
from protocol.worker import Transition
from protocol.world import World, canonical

#: This many events without a fault are enough to settle every job.
MAX_EVENTS_TO_SETTLE = 400


@dataclass(frozen=True)
class Violation:
    """A broken promise and a shortest history that breaks it."""

    promise: str
    history: list[str]

    @property
    def story(self) -> str:
        """The history in numbered sentences."""
        lines = [f"{number}. {event}." for number, event in enumerate(self.history, start=1)]
        return "\n".join([*lines, f"Broken promise {self.promise}."])


@dataclass
class Exploration:
    """What an exploration has found."""

    states: int = 0
    depth: int = 0
    seconds: float = 0.0
    is_complete: bool = False  #: no state is left unexplored within the number of faults
    violation: Violation | None = None

    @property
    def summary(self) -> str:
        extent = "all states" if self.is_complete else "all states to this depth"
        return f"{self.states} states, depth {self.depth} ({extent}), {self.seconds:.1f} s"


@dataclass
class Explorer:
    """Explores the states that are reachable with at most `faults` faults and `max_depth` events."""

    decisions: Decisions = field(default_factory=Decisions)
    faults: int = 2
    max_depth: int = 1000
    max_seconds: float = float("inf")
    start: World = field(default_factory=World)  #: where the exploration starts
    _parents: dict[World, tuple[World | None, str]] = field(default_factory=dict)
    #: For each state without faults: "" if the events that follow settle all jobs, otherwise why not.
    _verdicts: dict[World, str] = field(default_factory=dict)

    def explore(self) -> Exploration:
        """Explore until a promise is broken, or until all states within the bounds are explored."""
        started_at, found = time.process_time(), Exploration()
        first = self.start._replace(faults_left=self.faults)
        level, seen = [first], {canonical(first)}
        self._parents[first] = (None, "")
        while level and found.depth < self.max_depth and found.violation is None:
            next_level: list[World] = []
            for world in level:
                found.violation = self._expand(world, seen, next_level)
                if found.violation is not None or time.process_time() - started_at > self.max_seconds:
                    break
            else:
                level = next_level
                found.depth += 1
                continue
            break
        found.states, found.seconds = len(seen), time.process_time() - started_at
        found.is_complete = not level
        return found

    def _expand(self, world: World, seen: set[object], next_level: list[World]) -> Violation | None:
        for event in self._events(world):
            promise = broken_promise(world, event.world)
            if promise:
                return Violation(promise, [*self._history(world), event.story])
            representative = canonical(event.world)
            if representative in seen:
                continue
            seen.add(representative)
            self._parents[event.world] = (world, event.story)
            next_level.append(event.world)
            obstacle = self._obstacle(event.world)
            if obstacle:
                history = [*self._history(event.world), *obstacle.split("\n")]
                return Violation("R1: no further event settles every job", history)
        return None

    def _events(self, world: World) -> Iterator[Transition]:
        for event in agents.transitions(world, self.decisions):
            if not event.is_fault:
                yield event
            elif world.faults_left:
                yield event._replace(world=event.world._replace(faults_left=world.faults_left - 1))

    def _history(self, world: World) -> list[str]:
        events: list[str] = []
        parent, story = self._parents[world]
        while parent is not None:
            events.append(story)
            parent, story = self._parents[parent]
        return events[::-1]

    def _obstacle(self, world: World) -> str:
        """Return "" if further events without faults settle all jobs; otherwise these events, and why they end."""
        current, path, stories = world._replace(faults_left=0), [], []
        while current not in self._verdicts:
            path.append(current)
            self._verdicts[current] = "the events repeat themselves"  # unless the end of this loop stores another one
            event = self._next_event(current)
            if event is None:
                self._verdicts[current] = "" if is_settled(current) else "nothing more happens"
                break
            stories.append(event.story)
            if broken_promise(current, event.world):
                self._verdicts[current] = ""  # the exploration finds this violation itself, with a shortest history
                break
            current = event.world
        verdict = self._verdicts[current]
        for state in path:
            self._verdicts[state] = verdict
        return "\n".join([*stories, verdict]) if verdict else ""

    def _next_event(self, world: World) -> Transition | None:
        """Return the next event without faults: first what restores agents, then work, then time."""
        for event in agents.transitions(world, self.decisions):
            if not event.is_fault and event.world != world:
                return event
        return None


def world_after(*stories: str, decisions: Decisions | None = None) -> World:
    """Return the state after these events, each named by a part of its story."""
    world = World(faults_left=len(stories))
    for story in stories:
        events = agents.transitions(world, decisions or Decisions())
        world = next(event.world for event in events if story in event.story)
    return world
