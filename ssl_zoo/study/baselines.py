"""What an arm has to beat: raw pixels, its own backbone before training, and so on.

Each number is kept beside all that it depends on, so arms that have that in common share it, and
a study that goes on measures only what it lacks.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_zoo import experiment
from ssl_zoo.study.grid import Run
from ssl_zoo.study.measurer import Answer, Failed, Measurer, answer_to
from ssl_zoo.system.files import write_text


@dataclass
class Task:
    """Baselines of one evaluation that are to be measured.

    Attributes:
        run: for which they are measured.
        runs: places of all that have to beat them, `run`'s first.
        outdated: results that they take the place of.
    """

    run: Run
    evaluation: str
    names: list[str]
    runs: list[int]
    outdated: list[dict[str, Any]]

    def __str__(self) -> str:
        others = ": the images are others than before" if self.outdated else ""
        return f"baselines of {self.run}: {self.evaluation}{others}"

    @property
    def request(self) -> tuple[dict[str, Any], str, list[str]]:
        return self.run.config, self.evaluation, self.names


Measure = Callable[[Sequence[Task], Callable[[str], None]], Iterable[tuple[Task, Answer | Failed]]]


def one_by_one(
    tasks: Sequence[Task], say: Callable[[str], None]
) -> Iterator[tuple[Task, Answer | Failed]]:
    """Measures in this process."""
    for task in tasks:
        say(str(task))
        yield task, answer_to(*task.request)


def side_by_side(measurers: Sequence[Measurer]) -> Measure:
    """Measures in processes; what was killed beside others is measured again, alone."""

    def measure(
        tasks: Sequence[Task], say: Callable[[str], None]
    ) -> Iterator[tuple[Task, Answer | Failed]]:
        if len(tasks) < 2:
            yield from one_by_one(tasks, say)
            return
        waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
        # A task that has begun, with None, or has ended, with its answer.
        events: queue.SimpleQueue[tuple[Task, Answer | Failed | None]] = queue.SimpleQueue()
        stopped = threading.Event()
        for task in tasks:
            waiting.put(task)

        def work(measurer: Measurer) -> None:
            with suppress(queue.Empty):
                while not stopped.is_set():
                    task = waiting.get_nowait()
                    events.put((task, None))
                    try:
                        events.put((task, measurer.ask(task.request)))
                    except Exception as error:  # no process could be started
                        events.put((task, Failed.of(error)))

        count = min(len(measurers), len(tasks))
        say(f"baselines at once: {count}; what they print is in {measurers[0].log}")
        killed, left = [], len(tasks)
        try:
            for measurer in measurers:
                threading.Thread(target=work, args=(measurer,), daemon=True).start()
            while left:
                task, answer = events.get()
                left -= answer is not None
                if answer is None:
                    say(str(task))
                elif isinstance(answer, Failed) and answer.killed:
                    killed.append(task)
                else:
                    yield task, answer
            for measurer in measurers if killed else ():
                measurer.kill()
            for task in killed:
                say(f"{task}: again, alone, since its process was killed beside others")
                yield task, measurers[0].ask(task.request)
        finally:
            stopped.set()
            for measurer in measurers:
                measurer.kill()

    return measure


class Baselines:
    """A study's baselines.json: a list of evaluations' results.

    Each has its `evaluation` and `baseline` by name, and what it `depends_on`. A file of an
    earlier form counts as empty: its numbers are measured again.
    """

    def __init__(self, path: Path):
        self.path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        ours = isinstance(known, list) and all("depends_on" in result for result in known)
        self.known: list[dict[str, Any]] = known if ours else []
        self._images: dict[str, dict[str, Any] | None] = {}  # looked at once in a sitting

    def of(self, run: Run) -> dict[str, dict[str, dict[str, Any] | None]]:
        """Evaluation -> baseline -> its result, None if it has not been measured."""
        return {
            evaluation: {name: self._find(_key(run, evaluation, name)) for name in baselines}
            for evaluation, baselines in run.baselines.items()
        }

    def _find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        return next((result for result in self.known if key.items() <= result.items()), None)

    def measure(
        self, runs: Sequence[Run], say: Callable[[str], None], how: Measure = one_by_one
    ) -> list[tuple[Run, Failed]]:
        """Measures and writes what runs have to beat and is not known, or of images that changed.

        What fails for one run is tried again for the others that have to beat the same.

        Returns:
            The runs for which it did not work, and why.
        """
        failed: dict[int, Failed] = {}  # by the place of a run
        pending = list(range(len(runs)))
        while pending:
            tasks = self._lacking(runs, pending, failed)
            pending = []
            for task, answer in how(tasks, say):
                if isinstance(answer, Failed):  # of the run that it was measured for; others try
                    failed[task.runs[0]] = answer
                    pending += task.runs[1:]
                else:
                    self._keep(task, answer)
            pending = sorted(set(pending) - set(failed))
        return [(runs[place], failed[place]) for place in sorted(failed)]

    def _lacking(
        self, runs: Sequence[Run], pending: Iterable[int], failed: dict[int, Failed]
    ) -> list[Task]:
        """What is to be measured, each once. A run whose images cannot be looked at has failed."""
        by_key: dict[str, Task] = {}
        for place in pending:
            run = runs[place]
            for evaluation, results in self.of(run).items():
                known = {name: result for name, result in results.items() if result is not None}
                try:
                    old = [n for n, of in known.items() if self._outdated(run, evaluation, of)]
                except Exception as error:
                    failed[place] = Failed.of(error)
                    break
                new = Task(run, evaluation, [], [], [known[name] for name in old])
                for name in results:
                    if name not in known or name in old:
                        key = json.dumps(_key(run, evaluation, name), sort_keys=True)
                        task = by_key.setdefault(key, new)
                        task.names += [name] if task is new else []
                        task.runs += [place] if place not in task.runs else []
        return list({id(task): task for task in by_key.values()}.values())

    def _keep(self, task: Task, answer: Answer) -> None:
        self.known = [r for r in self.known if not any(r is old for old in task.outdated)]
        self.known += [of | _key(task.run, task.evaluation, n) for n, of in answer.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.known, indent=1))

    def _outdated(self, run: Run, evaluation: str, result: dict[str, Any]) -> bool:
        if run.files.finished:  # its images may be gone
            return False
        which = json.dumps([run.config["data"], run.config["evaluations"][evaluation]])
        if which not in self._images:
            self._images[which] = experiment.images_of(run.config, evaluation)
        now = self._images[which]
        return now is not None and result["of"]["data"] != now


def _key(run: Run, evaluation: str, baseline: str) -> dict[str, Any]:
    of = run.baselines[evaluation][baseline]
    return {"evaluation": evaluation, "baseline": baseline, "depends_on": of}
