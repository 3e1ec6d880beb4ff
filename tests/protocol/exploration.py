"""Explores every order of events, breadth first, so that the first violation that it finds has a shortest history."""

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
    def numbered_history(self) -> str:
        """The history in numbered sentences."""
        lines = [f"{number}. {event}." for number, event in enumerate(self.history, start=1)]
        return "\n".join([*lines, f"Broken promise {self.promise}."])


@dataclass
class Exploration:
    """The result of an exploration."""

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
        started_at, exploration = time.process_time(), Exploration()
        first = self.start._replace(faults_left=self.faults)
        level, seen = [first], {canonical(first)}
        self._parents[first] = (None, "")
        while level and exploration.depth < self.max_depth and exploration.violation is None:
            next_level: list[World] = []
            for world in level:
                exploration.violation = self._expand(world, seen, next_level)
                if exploration.violation is not None or time.process_time() - started_at > self.max_seconds:
                    break
            else:
                level = next_level
                exploration.depth += 1
                continue
            break
        exploration.states, exploration.seconds = len(seen), time.process_time() - started_at
        exploration.is_complete = not level
        return exploration

    def _expand(self, world: World, seen: set[object], next_level: list[World]) -> Violation | None:
        for event in self._events(world):
            promise = broken_promise(world, event.world)
            if promise:
                return Violation(promise, [*self._history(world), event.description])
            representative = canonical(event.world)
            if representative in seen:
                continue
            seen.add(representative)
            self._parents[event.world] = (world, event.description)
            next_level.append(event.world)
            obstacle = self._why_not_settled(event.world)
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
        parent, description = self._parents[world]
        while parent is not None:
            events.append(description)
            parent, description = self._parents[parent]
        return events[::-1]

    def _why_not_settled(self, world: World) -> str:
        """Return "" if further events without faults settle all jobs; otherwise these events, and why they end."""
        current, path, descriptions = world._replace(faults_left=0), [], []
        while current not in self._verdicts:
            path.append(current)
            self._verdicts[current] = "the events repeat themselves"  # unless the end of this loop stores another one
            event = self._next_event(current)
            if event is None:
                self._verdicts[current] = "" if is_settled(current) else "nothing more happens"
                break
            descriptions.append(event.description)
            if broken_promise(current, event.world):
                self._verdicts[current] = ""  # the exploration finds this violation itself, with a shortest history
                break
            current = event.world
        verdict = self._verdicts[current]
        for state in path:
            self._verdicts[state] = verdict
        return "\n".join([*descriptions, verdict]) if verdict else ""

    def _next_event(self, world: World) -> Transition | None:
        """Return the next event without faults: first what restores agents, then work, then time."""
        for event in agents.transitions(world, self.decisions):
            if not event.is_fault and event.world != world:
                return event
        return None


def world_after(*descriptions: str, decisions: Decisions | None = None) -> World:
    """Return the state after these events, each identified by a part of its description."""
    world = World(faults_left=len(descriptions))
    for description in descriptions:
        events = agents.transitions(world, decisions or Decisions())
        world = next(event.world for event in events if description in event.description)
    return world
