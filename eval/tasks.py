"""The table of tasks, by name."""

from __future__ import annotations

from mathpipe.eval import bbh, held_out, math_suites, mmlu
from mathpipe.eval.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (mmlu.TASK, bbh.TASK, *math_suites.TASKS, held_out.TASK)}
