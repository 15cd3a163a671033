"""`metaopt dashboard`: run folders on a local page, filled from their metrics.jsonl and kept up with as they grow.

The page is trackio's. It is served to this machine only and asks no other; its database is made anew in a folder of its
own and removed at the end, for the run folders are the truth.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from metaopt import files
from metaopt.errors import UserError, printable
from metaopt.report.words import number
from metaopt.runs import folder, index
from metaopt.runs.interrupts import handling
from metaopt.runs.metrics import Follower, begun, grouped, time_of, validation_name
from metaopt.sinks.contents import pictures, result_rows

REMEDY = "pip install 'metaopt-jax[dashboard]'"
EVERY = 2.0  # seconds between two looks at the folders
ROWS_AT_ONCE = 20_000
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")  # of this machine, in a Host header
# What is looked at first is on top; within a group by name.
ORDER = ("losses/log10 of validation*", "losses/*", "validation/*", "train/meta_loss", "train/*", "health/*", "time/*")
MOST_AT_FIRST = 8  # runs that are drawn before others are chosen, for more curves cannot be told apart
LOSSES = ("train/meta_loss", "train/last_loss")
# Okabe and Ito's, which the colour-blind can tell apart.
PALETTE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#57606a", "#e69f00")


def _port(words: list[str]) -> int | None:
    text = words[0]
    if text.lower() == "none":
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65535):
        raise UserError(f"{text!r} is no port; give a number from 1 to 65535.")
    return int(text)


Port = Annotated[
    int | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PORT",
        instance_from_str=_port,
        is_instance=lambda value: value is None or isinstance(value, int),
        str_from_instance=lambda value: [str(value).lower()],
    ),
]


@dataclass(frozen=True)
class DashboardArguments:
    """Shows runs on a local web page that follows them; Ctrl-C ends it."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # run folders, or folders of runs; none: runs
    port: Port = None  # None: the first free one from 7860 on


def show(arguments: DashboardArguments, say: Callable[[str], None] = print) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Raises:
      UserError: no such folder, trackio is not installed, or the port is taken.
    """
    roots = [Path(run) for run in arguments.runs or ("runs",)]
    if not arguments.runs and not roots[0].is_dir():
        raise UserError("there is no folder runs here; `metaopt train` makes one, or name a folder of runs.")
    for root in roots:
        index.find_runs(root)
    with _served(arguments.port) as (address, board):
        known = board.update(roots)
        chosen = f"&run_ids={','.join(board.newest(MOST_AT_FIRST))}" if known > MOST_AT_FIRST else ""
        drawn = f", the {MOST_AT_FIRST} newest drawn at first" if chosen else ""
        where = f"{known} runs below {', '.join(map(str, roots))}{drawn}"
        say(f"dashboard: {address}{chosen} ({where}); Ctrl-C ends it")
        # SIGTERM too, so that the database's folder goes.
        with contextlib.suppress(KeyboardInterrupt), handling(_end, [signal.SIGTERM]):
            while True:
                time.sleep(EVERY)
                board.update(roots)


def _end(signum: int) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _served(port: int | None) -> Iterator[tuple[str, Board]]:
    """(address, board) of a page that is served within the block."""
    place = Path(tempfile.mkdtemp(prefix="metaopt-dashboard-"))
    try:
        _keep_to_itself(place)
        try:
            import trackio
        except ImportError:
            raise UserError(f"the dashboard needs trackio, which is not installed; {REMEDY}") from None
        project = "metaopt"
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.init_db(project)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it would print an address with a token for changes
                server, address, _, _ = trackio.show(
                    project=project,
                    host="127.0.0.1",
                    server_port=port,
                    share=False,
                    open_browser=False,
                    block_thread=False,
                    color_palette=list(PALETTE),
                )
        except OSError:
            taken = "no port is free" if port is None else f"port {port} is taken"
            raise UserError(f"{taken}; give another --port.") from None
        # Before it holds anything: its application has been started, so that this has to come around the whole of it.
        config = server._uvicorn_server.config
        config.loaded_app = OwnAddress(config.loaded_app)
        try:
            yield f"{address}?project={project}&x_axis=meta_step&hide_empty_tabs=true", Board(project, place)
        finally:
            with contextlib.redirect_stdout(io.StringIO()):
                server.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)


class OwnAddress:
    """An ASGI application that answers who asks for this machine by its own names, and nobody else.

    A page elsewhere could let its own name point here, and read what is shown as its own.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        port = scope["server"][1]
        hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name.lower() == b"host"]
        if len(hosts) == 1 and hosts[0] in {name + end for name in OWN_NAMES for end in ("", f":{port}")}:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            text = f"this dashboard answers at http://127.0.0.1:{port} only\n".encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": text})


def _keep_to_itself(place: Path) -> None:
    """Has to come before trackio is imported: its folder, and nothing sent anywhere."""
    for name in ("TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID", "TRACKIO_SPACE_ID", "TRACKIO_WEBHOOK_URL", "SPACE_ID"):
        os.environ.pop(name, None)
    os.environ |= {
        "TRACKIO_DIR": str(place),
        "TRACKIO_PLOT_ORDER": ",".join(ORDER),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }


class Board:
    """Writes run folders into trackio's database, and what was added to them since."""

    def __init__(self, project: str, place: Path) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        self._storage = SQLiteStorage
        self._project = project
        self._place = place
        self._names: dict[Path, str] = {}
        self._followers: dict[Path, Follower] = {}
        self._evaluated: dict[Path, int] = {}  # when the evaluation on the page was written, in ns
        self._last: dict[Path, int] = {}  # the last meta-step

    def update(self, roots: list[Path]) -> int:
        """Looks for new runs, new rows and new evaluations. Returns the number of runs."""
        found: dict[Path, Path] = {}
        for root in roots:
            with contextlib.suppress(UserError):  # it was there at first
                found |= {path: root for path in index.find_runs(root) if path not in found}
        for path in sorted(found.keys() - self._names.keys(), key=lambda path: (begun(path), path)):
            self._names[path] = _unique(run_name(path, found[path]), self._names.values())
        for place, (path, name) in enumerate(self._names.items()):
            self._follow(path, name, _id(place))
            self._show_evaluation(path, name, _id(place))
        return len(self._names)

    def newest(self, most: int) -> list[str]:
        """Ids of the runs on the page that began last; neighbours in trackio's list, each has a colour of its own."""
        return [_id(place) for place, path in enumerate(self._names) if path in self._last][-most:]

    def _follow(self, path: Path, name: str, run_id: str) -> None:
        follower = self._followers.setdefault(path, Follower(path / folder.METRICS))
        rows = follower.new_rows()
        if follower.restarted:  # resumed from a checkpoint before its last rows
            self._storage.delete_run(self._project, name, run_id)
            self._evaluated.pop(path, None)
        begin = begun(path)
        for first in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[first : first + ROWS_AT_ONCE]
            self._storage.bulk_log(
                project=self._project,
                run=name,
                run_id=run_id,
                metrics_list=[{**_with_logarithms(grouped(row)), "meta_step": row["meta_step"]} for row in part],
                steps=[row["meta_step"] for row in part],
                timestamps=[time_of(row, begin).isoformat() for row in part],
                config=_config(path) if first == 0 else None,
            )
            self._last[path] = max(row["meta_step"] for row in part)

    def _show_evaluation(self, path: Path, name: str, run_id: str) -> None:
        """Tables and curves of evaluation.json beside the metrics, at the last meta-step."""
        try:
            written = (path / folder.EVALUATION).stat().st_mtime_ns
        except OSError:
            return
        # Before its first row a run has no place on the page.
        if path not in self._last or self._evaluated.get(path) == written:
            return
        self._evaluated[path] = written
        import trackio

        results = files.read_object(path / folder.EVALUATION).get("results") or []
        step = self._last[path]
        media: dict[str, Any] = {}
        rows = result_rows(results)
        if rows:
            table = [{key: number(value) for key, value in row.items()} for row in rows]
            media["evaluation/results"] = trackio.Table(data=table)._to_dict(self._project, name, step)  # pyright: ignore
        for title, file, caption in pictures(results, {}, self._place / "pictures"):
            image = trackio.Image(str(file), caption=caption)
            image._save(self._project, name, step)
            media[title] = image._to_dict()
        if media:
            self._storage.bulk_log(project=self._project, run=name, run_id=run_id, metrics_list=[media], steps=[step])


def _id(place: int) -> str:
    return str(place + 1)  # addresses list them between commas, which names may hold


def _with_logarithms(values: dict[str, float]) -> dict[str, float]:
    """Beside the losses their decimal logarithms: trackio's own are of all plots at once, and take 0 for 1."""
    found = {
        f"losses/log10 of {name.replace('/', ' ')}": math.log10(value)
        for name, value in values.items()
        if 0 < value < math.inf and (name in LOSSES or getattr(validation_name(name), "what", "") in ("mean", "median"))
    }
    return found | values


def run_name(path: Path, root: Path) -> str:
    """`quadratic_rl/001` for a run below `runs`; below another folder its name comes first."""
    path, root = path.resolve(), root.resolve()
    base = path.parent.parent if path == root else root if root.name == "runs" else root.parent
    return printable(str(path.relative_to(base)))


def _unique(name: str, taken: Any) -> str:
    taken, number, first = set(taken), 1, name
    while name in taken:
        number += 1
        name = f"{first} ({number})"
    return name


def _config(path: Path) -> dict[str, Any]:
    fields = index.fields_of(files.read_object(path / folder.CONFIG))
    return {printable(name): printable(index.value_words(fields, name)) for name in fields}
