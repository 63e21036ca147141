"""The folder with the finished parts of a run, so that it can continue after a kill at any point; and the output.

A folder as the output: ``part-NNNNNN.parquet`` per partition; ``_run/`` while it is not finished; at the end
``_errors.jsonl`` (if rows failed) and ``_manifest.json``. A file as the output: ``OUT.partial/`` has the parts and all
else; at the end come ``OUT.errors.jsonl``, ``OUT`` and ``OUT.manifest.json``. A part counts
if its note is in ``done/``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from pyarrow.fs import FileType
from pydantic import BaseModel, ConfigDict

from polyhead.files import LockedError, file_lock, replaced_file
from polyhead_rows.output import open_output
from polyhead_rows.place import split_name
from polyhead_scoring import ScoringError
from polyhead_scoring.job import Job, check_same
from polyhead_scoring.partition import Partition
from polyhead_scoring.storage import Place

OWN_NAMES = ("job.json", "plan.json", "done", "errors", "tries", "clearing", "published")  # in a run's own folder
OWN_STARTS = ("part-", "whole-", ".")


class Done(BaseModel):
    """A partition whose part is complete: what the manifest says about it.

    Attributes:
        errors: rows without an answer.
        rejected: by head that may reject: its rejected answers.
        precision: in which the engine computed; None if a server did.
        output: the part's name.
        sha256: of the part.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    rows: int
    errors: int
    rejected: dict[str, int] = {}
    tokens: int
    precision: str | None
    output: str
    size: int
    sha256: str


class RunFolder:
    """The run of one output.

    Args:
        name: path or URI of the output.
        one_file: whether it is a file; see `is_one_file`.
    """

    def __init__(self, name: str, *, one_file: bool) -> None:
        self.name = name
        self.one_file = one_file
        self.output = Place.of(name)
        if one_file:
            self.run = self.parts = self.output.beside(".partial")
            self.manifest, self.errors = self.output.beside(".manifest.json"), self.output.beside(".errors.jsonl")
        else:
            self.run, self.parts = self.output / "_run", self.output
            self.manifest, self.errors = self.output / "_manifest.json", self.output / "_errors.jsonl"
        self.job = self.run / "job.json"
        self.plan = self.run / "plan.json"
        self.done = self.run / "done"
        self.failed_rows = self.run / "errors"
        self.tries = self.run / "tries"
        self.clearing = self.run / "clearing"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the output against other runs on this machine. A killed run holds no lock. Object stores have no locks.

        Raises:
            ScoringError: another run holds it, or the output cannot be written.
        """
        if not self.output.is_local:
            yield
            return
        output = Path(self.output.path)
        path = output.with_name(f".{output.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise ScoringError(f"{self.name}: cannot be written ({error})") from error
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(path, remove=True))
            except LockedError:
                raise ScoringError(
                    f"{self.name}: another run is writing here; wait for its end or name another output"
                ) from None
            except OSError:  # a file system without locks
                stack.callback(path.unlink, missing_ok=True)
            yield

    @property
    def is_ours(self) -> bool:
        """Whether a run has begun or finished here."""
        return self.run.exists() or self.manifest.exists()

    def holds(self, place: Place) -> bool:
        """Whether a file is one that the run writes."""
        return any(place.is_within(own) for own in (self.output, self.run, self.manifest, self.errors))

    def check_free(self, *, restart: bool) -> None:
        """Checks that this run may write the output.

        Raises:
            ScoringError: something else is there. `restart` may replace a file, but not a folder.
        """
        if self.run.exists():
            is_folder = self.run.info().type == FileType.Directory
            if not is_folder or not all(name in OWN_NAMES or name.startswith(OWN_STARTS) for name in self.run.names()):
                raise ScoringError(f"{self.run.path}: is not of a scoring run; name another output")
        if self.manifest.exists() and not _is_manifest(self.manifest.read()):
            raise ScoringError(f"{self.manifest.path}: is not of a scoring run; name another output")
        if self.is_ours:
            return
        if self.one_file and not restart:
            for place in (self.output, self.errors):
                if place.exists():
                    raise ScoringError(
                        f"{place.path}: exists already; name another output, or replace it with --restart"
                    )
        if not self.one_file and self.output.names():
            raise ScoringError(f"{self.name}: holds something that is not a scoring run; name another output")

    def begin(self, job: Job, *, restart: bool) -> dict[str, Any] | None:
        """Notes the job, or makes sure that a run continues as the job that it began as.

        Returns:
            The manifest, if this job is finished already.

        Raises:
            ScoringError: the output holds something else, or another job.
        """
        self.check_free(restart=restart)
        if (self.is_ours and restart) or self.clearing.exists():
            self.clear()
        elif self.manifest.exists():
            manifest, before = self._read_job(self.manifest, "job")
            check_same(before, job, self.name)
            with _noted(self.manifest):
                holds = self._holds_what(manifest)
            if not holds:
                raise ScoringError(f"{self.name}: was changed after it was scored; score it anew with --restart")
            self.run.remove()  # it is left if a kill came between the manifest and this
            return manifest
        elif self.plan.exists():  # nothing is scored without a plan: before it, a mistyped column can be corrected
            check_same(self._read_job(self.job)[1], job, self.name)
            self.tries.remove()
            return None
        self.job.write(_json(job.model_dump(mode="json")))
        return None

    def _holds_what(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the output still has the sizes that the manifest says."""
        if self.one_file:
            return bool(self.output.info().size == manifest["size"])
        sizes = self.parts.sizes()
        return all(sizes.get(one["output"]) == one["size"] for one in manifest["partitions"])

    def _read_job(self, place: Place, *below: str) -> tuple[dict[str, Any], Job]:
        """A file that holds a job, at its top or below a key; and the job."""
        with _noted(place):
            content: dict[str, Any] = json.loads(place.read())
            return content, Job.model_validate(content[below[0]] if below else content)

    def clear(self) -> None:
        """Removes what runs wrote, except a file as the output; if this is killed, the next run continues with it."""
        self.clearing.write(b"")
        self.manifest.remove()
        self.errors.remove()
        self._remove_parts("part-", ".part-")
        for place in (self.done, self.failed_rows, self.plan, self.run):
            place.remove()

    def discard(self) -> None:
        """Removes all files of a run that has no plan."""
        if not self.plan.exists() and not self.clearing.exists():
            self.run.remove()
            if not self.one_file and self.output.is_local and not self.output.names():
                self.output.remove()

    def _remove_parts(self, *beginnings: str) -> None:
        for name in self.parts.names():
            if name.startswith(beginnings):
                (self.parts / name).remove()

    def write_plan(self, partitions: list[Partition], kept: pyarrow.Schema) -> None:
        """Writes down the partitions, and the input columns that the output keeps."""
        self.plan.write(
            _json({"kept": kept.serialize().to_pybytes().hex(), "partitions": [p.model_dump() for p in partitions]})
        )

    def read_plan(self, job: Job) -> tuple[list[Partition], pyarrow.Schema] | None:
        """What `write_plan` noted, if there is a plan.

        Raises:
            ScoringError: it is damaged, or names files or columns that are not the job's: who can write into the folder
                could otherwise have any file of this user copied into the output.
        """
        if not self.plan.exists():
            return None
        with _noted(self.plan):
            plan = json.loads(self.plan.read())
            kept = pyarrow.ipc.read_schema(pyarrow.py_buffer(bytes.fromhex(plan["kept"])))
            partitions = [Partition.model_validate(partition) for partition in plan["partitions"]]
            strange = {partition.file for partition in partitions} - {file.name for file in job.inputs}
            if strange or (job.keep is not None and tuple(kept.names) != job.keep):
                raise ValueError("the plan of another job")
        return partitions, kept

    def count_try(self, partition: Partition) -> int:
        """Notes that a partition is begun. Returns how often it was begun since this run began or continued.

        Without this count, Ray would repeat a task that dies forever.
        """
        folder = self.tries / partition.name
        number = len(folder.names()) + 1
        (folder / f"{number}").write(b"")
        return number

    def write_part(self, partition: Partition, content: bytes, error_lines: bytes, done: Done) -> None:
        """Writes the lines of the rows that failed, the part, and last the note that it is done."""
        if error_lines:
            (self.failed_rows / f"{partition.name}.jsonl").write(error_lines)
        (self.parts / done.output).write(content)
        (self.done / f"{partition.name}.json").write(done.model_dump_json().encode())

    def finished(self) -> dict[int, Done]:
        """The partitions that are not scored again: their note is there, and their part at its full size.

        Raises:
            ScoringError: a note is damaged, or names another file than its part.
        """
        found = {}
        for name in self.done.names():
            if name.startswith("part-"):
                with _noted(self.done / name):
                    done = Done.model_validate_json((self.done / name).read())
                    part = f"part-{done.number:06d}"
                    if (name, done.output) != (f"{part}.json", f"{part}.parquet"):
                        raise ValueError("the note of another part")
                if (self.parts / done.output).info().size == done.size:
                    found[done.number] = done
        return found

    def finish(
        self,
        job: Job,
        heads: Sequence[Mapping[str, Any]],
        schema: pyarrow.Schema,
        partitions: list[Partition],
        done: dict[int, Done],
    ) -> dict[str, Any]:
        """Makes the output appear, and last the manifest, which says that the run is complete.

        Raises:
            ScoringError: a part is missing.
        """
        entries: list[dict[str, Any]] = []
        for partition in partitions:
            found = done.get(partition.number)
            if found is None or (self.parts / found.output).info().size != found.size:
                raise ScoringError(f"{self.name}: {partition.name} is missing or changed; run the command again")
            left_out = {"number", "output", "size", "sha256"} if self.one_file else {"number"}
            entries.append(
                {"input": partition.file, "first_row": partition.first_row} | found.model_dump(exclude=left_out)
            )
        in_order = [done[partition.number] for partition in partitions]
        may_reject = dict.fromkeys(name for one in in_order for name in one.rejected)
        manifest = {
            "format": 2,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": sum(one.rows for one in in_order),
            "errors": sum(one.errors for one in in_order),
            "rejected": {name: sum(one.rejected.get(name, 0) for one in in_order) for name in may_reject},
            "tokens": sum(one.tokens for one in in_order),
            "job": job.model_dump(mode="json"),
            "heads": list(heads),
            "partitions": entries,
        }
        if manifest["errors"]:
            names = [f"{partition.name}.jsonl" for partition in partitions if done[partition.number].errors]
            self._publish(self.errors, ((self.failed_rows / name).read() for name in names))
        else:
            self.errors.remove()  # the file of an earlier job
        if self.one_file:
            manifest["size"] = self._assemble(in_order, schema)
        self._remove_parts(".part-")  # of tasks that were killed
        self._publish(self.manifest, [_json(manifest)])
        self.run.remove()
        return manifest

    def _assemble(self, parts: Iterable[Done], schema: pyarrow.Schema) -> int:
        """Writes all parts, in order, as the one output file; gives its size."""
        target = Path(self.output.path)
        staged = Path(self.run.path) / f"whole-{target.name}"
        with replaced_file(staged) as path, open_output(path, schema) as output:
            for part in parts:
                with self.parts.files.open_input_file((self.parts / part.output).path) as file:
                    output.write(pyarrow.parquet.read_table(file))
        size = staged.stat().st_size
        os.replace(staged, target)
        return size

    def _publish(self, place: Place, chunks: Iterable[bytes]) -> None:
        """Writes a file in one step and leaves nothing outside the run's own folder if it is killed."""
        if not place.is_local:
            place.write(b"".join(chunks))
            return
        staged = Path(self.run.path) / "published"
        with replaced_file(staged) as path, path.open("wb") as file:
            file.writelines(chunks)
        os.replace(staged, place.path)


@contextmanager
def _noted(place: Place) -> Iterator[None]:
    """Turns what a file of the run raises, if it was not written by this version, into a ScoringError."""
    try:
        yield
    except (
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        pyarrow.ArrowException,
    ):  # pydantic's error is a ValueError
        raise ScoringError(
            f"{place.path}: is not of a scoring run, or of another version; name another output or use --restart"
        ) from None


def is_one_file(output: str) -> bool:
    """Whether an output is a file; else it is a folder of Parquet parts.

    Raises:
        ScoringError: it is a file in an object store, or its ending is not that of a table.
    """
    if output.endswith("/"):
        return False
    kind, _ = split_name(output)
    name = output.rpartition("/")[2]
    if kind is None or kind == "lines":
        if "://" in output or "." not in name.strip(".") or Path(output).is_dir():
            return False
        raise ScoringError(
            f"{output}: must end as a table does, such as .csv, .jsonl.gz or .parquet; for a folder of Parquet parts, "
            "end it with a /"
        )
    if "://" in output:
        raise ScoringError(f"{output}: one file can only be written on this machine's file systems; name a folder")
    return not Path(output).is_dir()


def _is_manifest(content: bytes) -> bool:
    """Whether this is a manifest of a scoring run, of any version. Other programs have files of that name, too."""
    try:
        found = json.loads(content)
    except ValueError:
        return False
    return isinstance(found, dict) and {"job", "partitions"} <= found.keys()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
