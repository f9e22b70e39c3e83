"""What an arm has to beat: raw pixels, its own backbone before training, and so on.

Each number is kept beside all that it depends on, so arms that have that in common share it, and
a study that goes on measures only what it lacks.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
        runs: that have to beat them; they are measured for the first.
        outdated: results that they take the place of.
    """

    evaluation: str
    names: list[str]
    runs: list[Run]
    outdated: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        others = ": the images are others than before" if self.outdated else ""
        return f"baselines of {self.runs[0]}: {self.evaluation}{others}"

    @property
    def request(self) -> tuple[dict[str, Any], str, list[str]]:
        return self.runs[0].config, self.evaluation, self.names


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
        answered: queue.SimpleQueue[tuple[Task, Answer | Failed]] = queue.SimpleQueue()
        stopped = threading.Event()
        for task in tasks:
            waiting.put(task)

        def work(measurer: Measurer) -> None:
            with suppress(queue.Empty):
                while not stopped.is_set():
                    task = waiting.get_nowait()
                    say(str(task))
                    answered.put((task, measurer.ask(task.request)))

        count = min(len(measurers), len(tasks))
        say(f"baselines at once: {count}; what they print is in {measurers[0].log}")
        killed = []
        try:
            for measurer in measurers:
                threading.Thread(target=work, args=(measurer,), daemon=True).start()
            for _ in tasks:
                task, answer = answered.get()
                if isinstance(answer, Failed) and answer.killed:
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

        Returns:
            The runs for which it did not work, each once, and why.
        """
        tasks, failed = self._lacking(runs)
        for task, answer in how(tasks, say):
            if isinstance(answer, Failed):
                failed += [(run, answer) for run in task.runs]
                continue
            run, evaluation = task.runs[0], task.evaluation
            self.known = [r for r in self.known if not any(r is old for old in task.outdated)]
            self.known += [of | _key(run, evaluation, name) for name, of in answer.items()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self.known, indent=1))
        first = ((run, next((why for of, why in failed if of is run), None)) for run in runs)
        return [(run, why) for run, why in first if why is not None]

    def _lacking(self, runs: Iterable[Run]) -> tuple[list[Task], list[tuple[Run, Failed]]]:
        """What is to be measured, each once; and the runs whose images cannot be looked at."""
        tasks: list[Task] = []
        failed: list[tuple[Run, Failed]] = []
        by_key: dict[str, Task] = {}
        for run in runs:
            for evaluation, results in self.of(run).items():
                known = {name: result for name, result in results.items() if result is not None}
                try:
                    old = [n for n, of in known.items() if self._outdated(run, evaluation, of)]
                except Exception as error:
                    failed.append((run, Failed.of(error)))
                    break
                new = Task(evaluation, [], [], [known[name] for name in old])
                for name in results:
                    if name in known and name not in old:
                        continue
                    key = json.dumps(_key(run, evaluation, name), sort_keys=True)
                    task = by_key.setdefault(key, new)
                    if task is new:
                        new.names.append(name)
                    if not any(run is other for other in task.runs):
                        task.runs.append(run)
                tasks += [new] if new.names else []
        return tasks, failed

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
