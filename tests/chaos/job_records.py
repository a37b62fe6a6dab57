"""What the job database says, only read."""

from collections import defaultdict

from sqlalchemy import Engine, NullPool, create_engine, text

from tests.chaos.judge import FINAL


class JobRecords:
    """Reads the tables of a running server. A connection is held for one query: the database may be killed."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = create_engine(url, poolclass=NullPool)

    def ids(self) -> set[str]:
        """Of all jobs there are."""
        with self._engine.connect() as connection:
            return set(connection.scalars(text("SELECT id FROM jobs")))

    def live(self) -> int:
        """How many jobs are not final."""
        final = ", ".join(f"'{state}'" for state in FINAL)
        with self._engine.connect() as connection:
            return int(connection.scalar(text(f"SELECT count(*) FROM jobs WHERE state NOT IN ({final})")) or 0)

    def sums(self) -> dict[str, float]:
        """What the jobs come to, by the names that the metrics have for it."""
        names = ("jobs_accepted", "jobs_ended", "gpu_seconds", "steps_run", "parks")
        ended = ", ".join(f"'{state}'" for state in FINAL)
        query = (
            f"SELECT COUNT(*), COUNT(*) FILTER (WHERE state IN ({ended})), SUM(device_s), SUM(steps_run), SUM(parks) "
            "FROM jobs"
        )
        with self._engine.connect() as connection:
            row = connection.execute(text(query)).one()
        return {f"mochi_serve_{name}_total": float(value or 0) for name, value in zip(names, row, strict=True)}

    def moves(self) -> dict[str, list[tuple[float, str, str]]]:
        """Time, state and note of each move, by job, the oldest first."""
        found: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
        with self._engine.connect() as connection:
            for job_id, at, state, note in connection.execute(
                text("SELECT job_id, at, state, note FROM job_moves ORDER BY id")
            ):
                found[job_id].append((at, state, note))
        return found


def read_only_sqlite(path: str) -> str:
    """URL of a SQLite file that this process can only read."""
    return f"sqlite:///file:{path}?mode=ro&uri=true"
