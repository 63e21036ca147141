"""The output folder: ``part-NNNNNN.parquet`` a partition, ``_manifest.json`` once all are there.

Until then ``_run/`` holds what the run needs to go on: ``job.json``, ``plan.json`` and, for each finished partition,
``done/part-NNNNNN.json``, written after its output. Readers of Parquet folders pass over names that begin with ``_``.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
from pydantic import BaseModel, ConfigDict, ValidationError

from polyhead.schema import Schema
from polyhead_scoring.errors import OutputError
from polyhead_scoring.job import Job, check_same
from polyhead_scoring.partition import Partition
from polyhead_scoring.place import Place


class Done(BaseModel):
    """A partition whose output is whole: what the manifest says of it.

    Attributes:
        errors: rows without an answer.
        precision: in which the engine computed; with ``auto`` it is the node's.
        sha256: of the output file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    rows: int
    errors: int
    tokens: int
    precision: str
    output: str
    size: int
    sha256: str


class RunFolder:
    """The output folder of a job.

    Args:
        name: path or URI.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.place = Place.of(name)
        self.manifest = self.place / "_manifest.json"
        self.run = self.place / "_run"
        self.job = self.run / "job.json"
        self.plan = self.run / "plan.json"
        self.done = self.run / "done"
        self.tries = self.run / "tries"
        self.clearing = self.run / "clearing"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other runs on this machine away; the lock of a killed run is free. Object stores have no locks.

        Raises:
            OutputError: another run has it, or the folder cannot be written.
        """
        if not self.place.is_local:
            yield
            return
        path = Path(f"{self.place.path}.lock")
        path = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise OutputError(f"{self.name}: cannot be written ({error})") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"{self.name}: another run is writing here; wait for its end or name another output"
                ) from None
            except OSError:
                pass  # a file system that has no locks
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def begin(self, job: Job, *, restart: bool) -> dict[str, Any] | None:
        """Notes the job, or makes sure that an unfinished run goes on as the one that it began as.

        Returns:
            The manifest, if this job is finished already.

        Raises:
            OutputError: the folder holds something else, or another job.
        """
        ours = self.run.exists() or self.manifest.exists()
        if not ours and self.place.names():
            raise OutputError(f"{self.name}: holds something that is no scoring run; name another output")
        if (ours and restart) or self.clearing.exists():
            self.clear()
        elif self.manifest.exists():
            manifest: dict[str, Any] = json.loads(self.manifest.read())
            check_same(_read_job(manifest["job"], self.name), job, self.name)
            self.run.remove()  # if a kill came between the manifest and this
            return manifest
        elif self.plan.exists():  # without one nothing is scored yet: a mistyped column may be mended
            check_same(_read_job(json.loads(self.job.read()), self.name), job, self.name)
            self.tries.remove()
            return None
        self.job.write(_json(job.model_dump(mode="json")))
        return None

    def clear(self) -> None:
        """Removes what a run of ours wrote; if it is killed meanwhile, the next run goes on with that."""
        self.clearing.write(b"")
        self.manifest.remove()
        self._remove_files("part-", ".part-")
        self.done.remove()
        self.run.remove()

    def _remove_files(self, *beginnings: str) -> None:
        for name in self.place.names():
            if name.startswith(beginnings):
                (self.place / name).remove()

    def write_plan(self, partitions: list[Partition], kept: pyarrow.Schema) -> None:
        """Notes the partitions, and the columns that the output keeps of the input."""
        self.plan.write(
            _json({"kept": kept.serialize().to_pybytes().hex(), "partitions": [p.model_dump() for p in partitions]})
        )

    def read_plan(self) -> tuple[list[Partition], pyarrow.Schema] | None:
        """What `write_plan` noted, if it came to that."""
        if not self.plan.exists():
            return None
        plan = json.loads(self.plan.read())
        kept = pyarrow.ipc.read_schema(pyarrow.py_buffer(bytes.fromhex(plan["kept"])))
        return [Partition.model_validate(partition) for partition in plan["partitions"]], kept

    def count_try(self, partition: Partition) -> int:
        """Notes that a partition is begun; gives how often it was since the run was begun or gone on with.

        Ray itself would do a task again without end, whatever it dies of.
        """
        folder = self.tries / partition.name
        number = len(folder.names()) + 1
        (folder / f"{number}").write(b"")
        return number

    def finished(self) -> dict[int, Done]:
        """The partitions that need not be scored again: noted as done, and their output is there at its full size."""
        found = {}
        for name in self.done.names():
            if name.startswith("part-"):
                done = Done.model_validate_json((self.done / name).read())
                if (self.place / done.output).info().size == done.size:
                    found[done.number] = done
        return found

    def finish(self, job: Job, schema: Schema, partitions: list[Partition], done: dict[int, Done]) -> dict[str, Any]:
        """Writes the manifest, which says that the run is whole.

        Raises:
            OutputError: a partition's output is not there.
        """
        entries: list[dict[str, Any]] = []
        for partition in partitions:
            found = done.get(partition.number)
            if found is None or (self.place / found.output).info().size != found.size:
                raise OutputError(f"{self.name}/{partition.name}.parquet: is missing or changed; run the command again")
            entries.append(
                {"input": partition.file, "first_row": partition.first_row}
                | found.model_dump(exclude={"number"})
            )  # fmt: skip
        manifest = {
            "format": 1,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": sum(entry["rows"] for entry in entries),
            "errors": sum(entry["errors"] for entry in entries),
            "tokens": sum(entry["tokens"] for entry in entries),
            "job": job.model_dump(mode="json"),
            "heads": schema.to_json(),
            "partitions": entries,
        }
        self.manifest.write(_json(manifest))
        self._remove_files(".part-")  # of tasks that were killed
        self.run.remove()
        return manifest


def _read_job(fields: Any, name: str) -> Job:
    try:
        return Job.model_validate(fields)
    except ValidationError:
        raise OutputError(f"{name}: was written by another version; name another output or use --restart") from None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
